//! What was sent and what was acknowledged, and whether a ledger agrees.

use std::collections::HashMap;
use std::time::Duration;

use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::{self, Reason};

use crate::model::Rng;
use crate::sidecar::{ago, inbound, opt_in, opt_out};

pub(super) const BUSINESS: &str = "acme";

/// How the recorder refers to the message that a keyword stood in.
const KEYWORD_IN: &str = "keyword in message ";

/// All that was sent and answered, over all rounds.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) users: Vec<User>,
    /// The highest revision that was acknowledged.
    pub(super) highest: u64,
    events: usize,
}

/// A user and all that was sent about them, in the order of sending.
pub(super) struct User {
    pub(super) id: String,
    /// Opts in once, at first, and never again.
    leaves: bool,
    pub(super) sent: Vec<Sent>,
}

/// An event that was sent.
pub(super) struct Sent {
    pub(super) writer: usize,
    /// In the event itself, so that it is known again in the history.
    pub(super) name: String,
    what: What,
    time: Option<prost_types::Timestamp>,
    /// The highest revision that had been acknowledged to anybody when this was sent.
    floor: u64,
    pub(super) answer: Option<pb::RecordEventResponse>,
}

/// Where an event stands in a [`Journal`].
#[derive(Clone, Copy)]
pub(super) struct Place {
    user: usize,
    index: usize,
}

/// What a check says.
#[derive(Debug)]
pub(super) struct Says {
    pub(super) allowed: bool,
    pub(super) reason: Reason,
}

impl Journal {
    pub(super) fn add_user(&mut self, id: String, leaves: bool) -> usize {
        self.users.push(User { id, leaves, sent: Vec::new() });
        self.users.len() - 1
    }

    /// Draws the next event about a user, and notes that it is sent.
    pub(super) fn next(
        &mut self,
        rng: &mut Rng,
        writer: usize,
        user: usize,
    ) -> (Place, pb::ConsentEvent) {
        self.events += 1;
        let name = format!("event-{}", self.events);
        let known = &mut self.users[user];
        // Every event that changes a record adds to its history, so that each revision is seen
        // there: an opt-in has a time, and nothing has a request id that would be remembered.
        let (mut what, timed) = match rng.below(10) {
            _ if known.leaves && known.sent.is_empty() => (opt_in("marketing"), true),
            0..4 if !known.leaves => (opt_in("marketing"), true),
            0..6 => (opt_out(rng.pick(&["*", "marketing"])), false),
            6..9 => (inbound("hello"), false),
            _ => (inbound("Stop."), false),
        };
        match &mut what {
            What::OptIn(said) => said.evidence.as_mut().unwrap().reference.clone_from(&name),
            What::OptOut(said) => said.reference.clone_from(&name),
            What::InboundMessage(said) => said.message_id.clone_from(&name),
            other => unreachable!("{other:?}"),
        }
        let time = timed.then(|| ago(Duration::ZERO));
        let event = pb::ConsentEvent {
            user_id: known.id.clone(),
            business_id: BUSINESS.into(),
            event_time: time,
            what: Some(what.clone()),
        };
        let floor = self.highest;
        known.sent.push(Sent { writer, name, what, time, floor, answer: None });
        (Place { user, index: known.sent.len() - 1 }, event)
    }

    pub(super) fn acknowledge(&mut self, place: Place, answer: pb::RecordEventResponse) {
        self.highest = self.highest.max(answer.revision);
        self.users[place.user].sent[place.index].answer = Some(answer);
    }
}

/// Which event an entry of a history stems from.
pub(super) fn name_of(entry: &pb::ListEventsResponse) -> &str {
    match entry.event.as_ref().and_then(|event| event.what.as_ref()) {
        Some(What::OptIn(said)) => said.evidence.as_ref().map_or("", |proof| &proof.reference),
        Some(What::OptOut(said)) => said.reference.trim_start_matches(KEYWORD_IN),
        Some(What::InboundMessage(said)) => &said.message_id,
        _ => "",
    }
}

impl Sent {
    /// The entries that a history may have of it.
    fn parts(&self) -> Vec<What> {
        let What::InboundMessage(said) = &self.what else { return vec![self.what.clone()] };
        let heard = pb::InboundMessage { text: String::new(), ..said.clone() };
        let mut parts = vec![What::InboundMessage(heard)];
        if said.text == "Stop." {
            let reference = format!("{KEYWORD_IN}{}", self.name);
            parts.push(What::OptOut(pb::OptOut { scope: "*".into(), reference }));
        }
        parts
    }

    /// Whether an opt-out was acknowledged, be it in an event or by a keyword in a message.
    fn withdrew(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| {
            matches!(self.what, What::OptOut(_)) || !answer.opted_out_scope.is_empty()
        })
    }

    /// Compares one entry with it.
    fn check_entry(&self, user: &str, entry: &pb::ListEventsResponse) -> Result<(), String> {
        let event = entry.event.as_ref().ok_or("an entry without an event")?;
        let what = event.what.as_ref().ok_or("an entry without a what")?;
        if !self.parts().contains(what) {
            return Err(format!("was sent as {:?} and is listed as {what:?}", self.what));
        }
        if (event.user_id.as_str(), event.business_id.as_str()) != (user, BUSINESS) {
            return Err(format!("is listed under {}", event.user_id));
        }
        if self.time.is_some_and(|sent| Some(millis(sent)) != event.event_time.map(millis)) {
            return Err("has another time than it was sent with".to_owned());
        }
        Ok(())
    }

    /// Compares all entries of it with what was acknowledged.
    fn check_answer(&self, entries: &[&pb::ListEventsResponse]) -> Result<(), String> {
        let Some(answer) = &self.answer else { return Ok(()) };
        // Of a message that says stop, either part may have changed nothing.
        let enough = if answer.applied {
            (1..=self.parts().len()).contains(&entries.len())
        } else {
            entries.is_empty()
        };
        if !enough || entries.iter().any(|entry| entry.revision != answer.revision) {
            return Err(format!("was acknowledged as {answer:?}; the ledger has {entries:?}"));
        }
        if answer.applied && answer.revision <= self.floor {
            return Err("went before what had been acknowledged when it was sent".to_owned());
        }
        Ok(())
    }
}

fn millis(time: prost_types::Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos / 1_000_000)
}

impl User {
    /// Compares what a ledger says of this user with what was sent and acknowledged.
    pub(super) fn check(
        &self,
        listed: &[pb::ListEventsResponse],
        says: &Says,
    ) -> Result<(), String> {
        let about = |name: &str, fault| format!("{} of {}: {fault}", name, self.id);
        let numbered = self.sent.iter().enumerate();
        let numbers: HashMap<&str, usize> = numbered.map(|(n, sent)| (&*sent.name, n)).collect();
        let mut entries: Vec<Vec<&pb::ListEventsResponse>> = vec![Vec::new(); self.sent.len()];
        let mut last_of_writer = HashMap::new();
        let mut last_revision = 0;
        for entry in listed {
            let name = name_of(entry);
            let number = *numbers.get(name).ok_or(about(name, format!("not sent: {entry:?}")))?;
            let sent = &self.sent[number];
            sent.check_entry(&self.id, entry).map_err(|fault| about(name, fault))?;
            if entry.revision < last_revision {
                return Err(about(name, "is listed behind a later revision".to_owned()));
            }
            last_revision = entry.revision;
            // What one writer sends about one user is applied in that order.
            let before = last_of_writer.insert(sent.writer, number);
            if before.is_some_and(|before| before > number) {
                return Err(about(name, "is listed behind what its writer sent later".to_owned()));
            }
            let what = |entry: &pb::ListEventsResponse| entry.event.clone().and_then(|e| e.what);
            if entries[number].iter().any(|other| what(other) == what(entry)) {
                return Err(about(name, format!("is there twice: {entry:?}")));
            }
            entries[number].push(entry);
        }
        for (sent, entries) in self.sent.iter().zip(&entries) {
            sent.check_answer(entries).map_err(|fault| about(&sent.name, fault))?;
        }
        self.check_says(listed, says).map_err(|fault| format!("{}: {fault}", self.id))
    }

    /// A check must deny what was withdrawn, and allow what was given, by the history's last word.
    fn check_says(&self, listed: &[pb::ListEventsResponse], says: &Says) -> Result<(), String> {
        let out = matches!(says.reason, Reason::OptedOut | Reason::OptedOutAll) && !says.allowed;
        if self.leaves && self.sent.iter().any(Sent::withdrew) && !out {
            return Err(format!("an acknowledged opt-out is answered {says:?}"));
        }
        let words = listed.iter().filter_map(|entry| {
            let event = entry.event.as_ref()?;
            match event.what.as_ref()? {
                What::OptIn(_) => Some((event.event_time.map(millis), false)),
                What::OptOut(_) => Some((event.event_time.map(millis), true)),
                _ => None,
            }
        });
        // At equal times the opt-out stands.
        let agrees = match words.max() {
            None => !out && says.reason != Reason::OptedIn,
            Some((_, true)) => out,
            Some((_, false)) => says.reason == Reason::OptedIn && says.allowed,
        };
        if agrees { Ok(()) } else { Err(format!("its history ends otherwise than {says:?}")) }
    }
}
