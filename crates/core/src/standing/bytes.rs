//! The binary encoding of a resolved state, for snapshots of the table. Decoding accepts any bytes and
//! returns `None` if they are invalid.

use super::{Expiries, Profile, ResolvedState, ScopeStanding, StandingKind};
use crate::failure::UserFailures;
use crate::id::PhoneNumberId;
use crate::scope::Class;
use crate::time::Timestamp;

/// The most topics of an encoded profile.
const MAX_TOPICS: usize = 64;

/// The flag of a profile that has a list of numbers. Without the list, a stop is at an unknown number, as
/// in the profiles that versions before encoded. They refuse the flag, and read the ledger instead.
const NUMBERS: u32 = 5;

/// The flag of a profile that has a byte of failures behind the flags. Versions before refuse it likewise.
const FAILURES: u32 = 6;

const KINDS: [StandingKind; 11] = [
    StandingKind::None,
    StandingKind::OptedIn,
    StandingKind::Pending,
    StandingKind::PendingOverOptOut,
    StandingKind::PendingOverOptOutAll,
    StandingKind::OptedOut,
    StandingKind::OptedOutAll,
    StandingKind::OptedInOverAll,
    StandingKind::OptedInOverClass,
    StandingKind::OptedInOverOwn,
    StandingKind::PendingOverExpiring,
];

/// Removes the first `N` bytes from the input.
fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*first)
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    take::<1>(input).map(|[byte]| byte)
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.as_bytes());
}

fn text<'a>(input: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(byte(input)?);
    let (text, rest) = input.split_at_checked(length)?;
    *input = rest;
    str::from_utf8(text).ok()
}

/// Decodes where marketing is stopped. `None` if the bytes are invalid.
fn stops(input: &mut &[u8]) -> Option<Box<[Option<PhoneNumberId>]>> {
    let count = usize::from(byte(input)?);
    let stop = |_| match text(input)? {
        "" => Some(None),
        id => PhoneNumberId::parse(id).ok().map(Some),
    };
    (0..count).map(stop).collect()
}

fn put_scope_standing(on_scope: ScopeStanding, out: &mut Vec<u8>) {
    let index = KINDS.iter().position(|kind| *kind == on_scope.kind).unwrap_or_default();
    out.push(u8::try_from(index).unwrap_or_default() | u8::from(on_scope.own) << 7);
}

fn scope_standing(input: &mut &[u8]) -> Option<ScopeStanding> {
    let byte = byte(input)?;
    let kind = *KINDS.get(usize::from(byte & 0x7f))?;
    Some(ScopeStanding { kind, own: byte & 0x80 != 0 })
}

/// Encodes an optional time as milliseconds; -1 stands for `None`.
fn put_time(time: Option<Timestamp>, out: &mut Vec<u8>) {
    out.extend(time.map_or(-1, Timestamp::as_millis).to_le_bytes());
}

/// Decodes a time.
fn time(input: &mut &[u8]) -> Option<Timestamp> {
    Timestamp::from_millis(i64::from_le_bytes(take(input)?))
}

/// Decodes an optional time into `slot`. `None` if the bytes are invalid.
fn time_into(slot: &mut Option<Timestamp>, input: &mut &[u8]) -> Option<()> {
    *slot = match i64::from_le_bytes(take(input)?) {
        -1 => None,
        millis => Some(Timestamp::from_millis(millis)?),
    };
    Some(())
}

impl Profile {
    /// Appends the encoded profile to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = [self.suppressed, self.platform_stopped(), self.window_closed];
        let all = [self.opted_out_all.is_some(), self.opted_out_all == Some(true)];
        let has_numbers = self.stops.iter().any(Option::is_some);
        let failures = self.failures.bits();
        let flags = flags.into_iter().chain(all).chain([has_numbers, failures != 0]).rev();
        out.push(flags.fold(0, |byte, flag| byte << 1 | u8::from(flag)));
        if failures != 0 {
            out.push(failures);
        }
        self.classes.into_iter().for_each(|on_scope| put_scope_standing(on_scope, out));
        out.push(u8::try_from(self.topics.len()).unwrap_or(u8::MAX));
        for (class, name, on_scope) in &self.topics {
            let class = Class::ALL.iter().position(|known| known == class).unwrap_or_default();
            out.push(u8::try_from(class).unwrap_or_default());
            put_scope_standing(*on_scope, out);
            put_text(name, out);
        }
        if has_numbers {
            let count = u8::try_from(self.stops.len()).unwrap_or(u8::MAX);
            out.push(count);
            // No number has an empty id, which so stands for an unknown one.
            let ids = self.stops.iter().map(|id| id.as_ref().map_or("", PhoneNumberId::as_str));
            for id in ids.take(usize::from(count)) {
                put_text(id, out);
            }
        }
    }

    /// Decodes a profile and removes its bytes from the input. `None` if they are invalid.
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
        let flags = byte(input)?;
        let is_set = |bit: u32| flags >> bit & 1 == 1;
        let mut profile = Self {
            suppressed: is_set(0),
            window_closed: is_set(2),
            failures: if is_set(FAILURES) {
                UserFailures::from_bits(byte(input)?)?
            } else {
                UserFailures::default()
            },
            opted_out_all: is_set(3).then_some(is_set(4)),
            ..Self::default()
        };
        for slot in &mut profile.classes {
            *slot = scope_standing(input)?;
        }
        let count = usize::from(byte(input)?);
        let mut topics = Vec::with_capacity(count.min(MAX_TOPICS));
        for _ in 0..count {
            let class = *Class::ALL.get(usize::from(byte(input)?))?;
            let on_scope = scope_standing(input)?;
            topics.push((class, text(input)?.into(), on_scope));
        }
        profile.topics = topics.into();
        profile.stops = match (is_set(1), is_set(NUMBERS)) {
            (true, true) => stops(input)?,
            (stopped, _) => stopped.then_some(None).into_iter().collect(),
        };
        (flags >> 7 == 0 && count <= MAX_TOPICS).then_some(profile)
    }
}

impl ResolvedState {
    /// Appends the encoded state to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.profile.encode(out);
        put_time(self.last_inbound, out);
        out.push(u8::from(self.expiries.is_some()));
        let Some(Expiries { opt_ins, capped }) = &self.expiries else { return };
        put_time(*capped, out);
        out.push(u8::try_from(opt_ins.len()).unwrap_or(u8::MAX));
        for (index, expire) in opt_ins {
            out.push(u8::try_from(*index).unwrap_or(u8::MAX));
            put_time(Some(*expire), out);
        }
    }

    /// Decodes a state from exactly these bytes. `None` if they are invalid.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        let mut resolved = Self { profile: Profile::decode(input)?, ..Self::default() };
        time_into(&mut resolved.last_inbound, input)?;
        if byte(input)? == 1 {
            let mut capped = None;
            time_into(&mut capped, input)?;
            let count = byte(input)?;
            let opt_ins: Option<Vec<_>> =
                (0..count).map(|_| Some((usize::from(byte(input)?), time(input)?))).collect();
            resolved.expiries = Some(Expiries { opt_ins: opt_ins?.into(), capped });
        }
        input.is_empty().then_some(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::UserFailure;
    use crate::state::{Effect, State};

    #[test]
    fn stops_survive_their_bytes_and_older_ones_have_no_number() {
        let number = |id: &str| PhoneNumberId::parse(id).ok();
        for (stopped, flags) in [
            (vec![], 0),
            (vec![None], 0b10),
            (vec![number("1")], 0b10_0010),
            (vec![None, number("1"), number("22")], 0b10_0010),
        ] {
            let mut state = State::default();
            for number in stopped.clone() {
                let time = Timestamp::MIN;
                state.apply(&Effect::Platform { time, stopped: true, number }).unwrap();
            }
            let resolved = ResolvedState::of(&state);
            assert_eq!(resolved.profile.stops(), stopped);
            let mut bytes = Vec::new();
            resolved.encode(&mut bytes);
            // Versions before know the five lowest flags, and refuse all others.
            assert_eq!(bytes.first(), Some(&flags));
            assert_eq!(ResolvedState::decode(&bytes), Some(resolved), "{stopped:?}");
        }
    }

    #[test]
    fn failures_survive_their_bits_beside_all_flags() {
        for bits in 0..8 {
            let profile = Profile {
                suppressed: true,
                window_closed: true,
                failures: UserFailures::from_bits(bits).unwrap(),
                opted_out_all: Some(true),
                ..Profile::default()
            };
            let mut bytes = Vec::new();
            profile.encode(&mut bytes);
            let mut input = &bytes[..];
            assert_eq!(Profile::decode(&mut input), Some(profile));
            assert!(input.is_empty());
        }
        assert_eq!(UserFailures::from_iter(UserFailure::ALL).bits(), 7, "three bits");
    }
}
