//! What a recorder of a ledger in several partitions answers, once its own followers have all of it.

use consentd_core::state::Effect;

use super::checks::OF_TEMPLATE;
use super::process::OWN;
use super::recorder::{Step, Wish};
use super::world::{Happening, World};
use crate::erase::erased_before;
use crate::ledger::{Stored, USERS};
use crate::oracle::{Violation, is_denial};
use crate::process::{gives_back, process_of};
use crate::recorder::time_of;
use crate::sidecar::Brought;
use crate::world::MILLI;

impl World {
    /// The own followers do not have all of it yet: they are asked to read the log.
    pub fn follows_on(&mut self, index: usize, step: Step) {
        let recorder = &self.recorders[index];
        let awaited = recorder.sent.awaited(&recorder.followed).into_iter();
        let missing: Vec<u32> =
            awaited.filter(|it| !it.has_arrived()).map(|it| it.partition).collect();
        for partition in missing {
            let at = usize::try_from(partition).unwrap();
            let life = self.partitions[at].life;
            self.after(0, Happening::Brought(at, life, Brought::Wanted));
        }
        self.recorder_goes_on(index, 50 * MILLI, step);
    }

    /// The caller is answered, once the own followers have all that was appended.
    pub fn acknowledges(&mut self, index: usize) -> Result<(), Violation> {
        self.is_acknowledged(index)?;
        self.is_answered(index);
        Ok(())
    }

    pub fn is_answered(&mut self, index: usize) {
        self.end_call(index, true);
        if gives_back(index) {
            self.settles(index);
        }
        self.recorder_starts(index);
    }

    fn is_acknowledged(&mut self, index: usize) -> Result<(), Violation> {
        let recorder = &mut self.recorders[index];
        let (effects, person) =
            (std::mem::take(&mut recorder.effects), std::mem::take(&mut recorder.person));
        let (number, began, taken) = (recorder.user, recorder.began, recorder.taken);
        let (revision, ago, wish) = (recorder.revision, recorder.ago, recorder.wish.clone());
        let link_time = recorder.link_time;
        if recorder.leaves_no_trace {
            return Ok(());
        }
        let is_whole = taken == (self.taken, self.erasures);
        let is_own = process_of(index) == Some(OWN) && self.is_followed_at(number);
        let place = self.place;
        let stored: Vec<Option<Stored>> =
            (0..USERS).map(|it| self.partitions[place[it]].primary.stored[it].clone()).collect();
        let has = |id: usize, effect: &Effect| {
            let state = stored[id].as_ref().map(|stored| stored.said.state.clone());
            state.unwrap_or_default().apply(effect) == Ok(false)
        };
        for effect in effects.into_iter().filter(is_denial) {
            for id in self.acks.person(number) {
                if is_whole && (id == number || person.contains(&id)) && !has(id, &effect) {
                    let why = format!("{effect:?} of {number} is acknowledged, and {id} lacks it");
                    return Err(Violation::new(3, why));
                }
                // An id that was linked meanwhile has a copy of what still denied by then.
                let told = person.contains(&id) || self.acks.stands(number, &effect, began);
                if told && (is_whole || has(id, &effect)) {
                    self.acknowledge(id, effect.clone(), began, is_own);
                    let is_untimed = ago.is_none() && matches!(wish, Some(Wish::Denied(_)));
                    if is_untimed && is_whole && person.contains(&id) {
                        self.acknowledge_strong(id, effect.clone(), began, is_own);
                    }
                }
            }
            if is_whole && number != OF_TEMPLATE {
                self.tell(number, effect, began, revision)?;
            }
        }
        let Some(Wish::Link(other)) = wish else { return Ok(()) };
        let names = |one: usize, other: usize| {
            stored[one].as_ref().is_some_and(|stored| stored.said.names(other))
        };
        let both = names(number, other) && names(other, number);
        let is_erased = |number: usize| {
            stored[number].as_ref().is_some_and(|stored| erased_before(&stored.said, link_time))
        };
        if !both && (is_erased(number) || is_erased(other)) {
            return Ok(());
        }
        if !both {
            let why = format!("users {number} and {other} are linked, and do not know it");
            return if is_whole { Err(Violation::new(3, why)) } else { Ok(()) };
        }
        self.acks.linked.insert((number, other));
        let person = self.acks.person(number);
        // What was denied before an id was erased is denied by its tombstone alone.
        let in_force = |id: usize, effect: Effect| {
            let said = stored[id].as_ref().map(|stored| &stored.said);
            let erased = said.filter(|said| erased_before(said, Some(time_of(&effect))));
            let erased = erased.and_then(|said| said.erased);
            erased.map_or(effect, |time| Effect::Suppression { time, suppressed: true })
        };
        let denied = person.iter().flat_map(|id| {
            let all = self.acks.of(*id).into_iter();
            all.map(|(effect, began)| (in_force(*id, effect), began))
        });
        let denied: Vec<(Effect, u64)> = denied.collect();
        for id in person {
            for (effect, began) in &denied {
                if is_whole || has(id, effect) {
                    self.acknowledge(id, effect.clone(), *began, is_own);
                }
            }
        }
        Ok(())
    }

    fn is_followed_at(&self, number: usize) -> bool {
        self.partitions[self.place[number]].is_followed
    }
}
