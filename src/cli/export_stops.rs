//! `export --stops`: who has stopped marketing inside WhatsApp, at which of the business's numbers.

use std::collections::BTreeMap;

use consentd_core::event::What;
use consentd_core::platform_stops::PlatformStops;
use consentd_core::state::Effect;
use consentd_core::user_id::{self, Reading};

use crate::grpc::{self, pb};

/// The first line.
pub(super) const HEADER: &str = "user_id,business_id,phone_number_id,since";

/// The preferences inside WhatsApp of all pairs that have any.
#[derive(Default)]
pub(super) struct Stops {
    pairs: BTreeMap<(String, String), Preferences>,
}

/// What one pair's user said inside WhatsApp.
struct Preferences {
    /// The user as the latest event wrote it.
    user_id: String,
    stops: PlatformStops,
}

impl Stops {
    /// Adds an exported event.
    pub(super) fn add(&mut self, exported: pb::ExportEventsResponse) {
        let pb::ExportEventsResponse { event, record_time, revision, number, chain_head } =
            exported;
        let listed = pb::ListEventsResponse {
            event,
            record_time,
            revision,
            number,
            chain_head,
            chain: None,
        };
        // An event that this version does not know was recorded by a newer one.
        let Some((_, entry)) = grpc::entry(listed) else { return };
        if !matches!(entry.what, What::Platform { .. } | What::Failure { .. } | What::OptIn { .. })
        {
            return;
        }
        for effect in entry.what.effects(entry.time) {
            let Effect::Platform { time, stopped, number } = effect else { continue };
            let pair = (person(&entry.user_id), entry.business_id.clone());
            let known = self.pairs.entry(pair).or_insert_with(|| Preferences {
                user_id: String::new(),
                stops: PlatformStops::default(),
            });
            known.user_id.clone_from(&entry.user_id);
            known.stops.apply(number.as_ref(), time, stopped);
        }
    }

    /// The stops that stand, as rows of CSV in the order of users.
    pub(super) fn rows(&self) -> impl Iterator<Item = String> {
        self.pairs.iter().flat_map(|((_, business_id), Preferences { user_id, stops })| {
            stops.standing().map(move |(number, since)| {
                let number = number.map(ToString::to_string).unwrap_or_default();
                let ids = [user_id, business_id, &number].map(|id| cell(id));
                format!("{},{}", ids.join(","), since.rfc3339_millis())
            })
        })
    }
}

/// One text for all notations of a user's id.
fn person(user_id: &str) -> String {
    match user_id::read(user_id) {
        Ok(Reading::Phone(number)) => format!("{:0width$}", number.value(), width = number.len()),
        _ => user_id.to_owned(),
    }
}

/// A cell of CSV (RFC 4180).
fn cell(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb::consent_event::What as Pb;

    fn exported(user_id: &str, seconds: i64, what: Pb) -> pb::ExportEventsResponse {
        let time = |nanos| Some(prost_types::Timestamp { seconds, nanos });
        let event = pb::ConsentEvent {
            user_id: user_id.into(),
            business_id: "a, \"b\"".into(),
            event_time: time(999_000_000),
            what: Some(what),
        };
        pb::ExportEventsResponse {
            event: Some(event),
            record_time: time(0),
            revision: 1,
            number: 1,
            chain_head: vec![0; 32],
        }
    }

    fn preference(marketing_stopped: bool, number: &str) -> Pb {
        let phone_number_id = number.to_owned();
        Pb::PlatformPreference(pb::PlatformPreference { marketing_stopped, phone_number_id })
    }

    #[test]
    fn stops_that_stand_are_listed_by_user_and_number() {
        let mut stops = Stops::default();
        let refused = pb::DeliveryFailure { code: 131_050, phone_number_id: "2".into() };
        for (user, seconds, what) in [
            ("+1 555 012 3456", 1, preference(true, "1")),
            ("15550123456", 1, preference(true, "")),
            ("15550123456", 3, Pb::DeliveryFailure(refused)),
            ("15550123456", 2, preference(false, "1")),
            ("US.7", 2, preference(false, "1")),
            ("US.7", 1, preference(true, "1")),
            ("US.7", 9, Pb::OptOut(pb::OptOut { scope: "*".into(), reference: String::new() })),
        ] {
            stops.add(exported(user, seconds, what));
        }
        let business = "\"a, \"\"b\"\"\"";
        let rows: Vec<_> = stops.rows().collect();
        assert_eq!(
            rows,
            [
                format!("15550123456,{business},,1970-01-01T00:00:01.999Z"),
                format!("15550123456,{business},2,1970-01-01T00:00:03.999Z"),
            ]
        );
    }
}
