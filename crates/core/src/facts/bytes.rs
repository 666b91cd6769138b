//! A resolved state as bytes, for a table that is saved. Any bytes can be read: what no state
//! makes is none.

use super::{Beside, Mark, Marked, Profile, Resolved};
use crate::scope::Class;
use crate::time::Timestamp;

/// The most topics that are read: more scopes no pair has.
const MAX_TOPICS: usize = 64;

const MARKS: [Mark; 11] = [
    Mark::None,
    Mark::OptedIn,
    Mark::Pending,
    Mark::PendingOverOptOut,
    Mark::PendingOverOptOutAll,
    Mark::OptedOut,
    Mark::OptedOutAll,
    Mark::OptedInOverAll,
    Mark::OptedInOverClass,
    Mark::OptedInOverOwn,
    Mark::PendingOverLapsing,
];

/// Takes so many bytes off the front.
fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*first)
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    take::<1>(input).map(|[byte]| byte)
}

fn put_marked(marked: Marked, out: &mut Vec<u8>) {
    let place = MARKS.iter().position(|mark| *mark == marked.mark).unwrap_or_default();
    out.push(u8::try_from(place).unwrap_or_default() | u8::from(marked.own) << 7);
}

fn marked(input: &mut &[u8]) -> Option<Marked> {
    let byte = byte(input)?;
    let mark = *MARKS.get(usize::from(byte & 0x7f))?;
    Some(Marked { mark, own: byte & 0x80 != 0 })
}

/// A moment, or none: -1.
fn put_time(time: Option<Timestamp>, out: &mut Vec<u8>) {
    out.extend(time.map_or(-1, Timestamp::as_millis).to_le_bytes());
}

/// A moment.
fn time(input: &mut &[u8]) -> Option<Timestamp> {
    Timestamp::from_millis(i64::from_le_bytes(take(input)?))
}

/// A moment or none, into its place; none where the bytes are neither's.
fn time_into(place: &mut Option<Timestamp>, input: &mut &[u8]) -> Option<()> {
    *place = match i64::from_le_bytes(take(input)?) {
        -1 => None,
        millis => Some(Timestamp::from_millis(millis)?),
    };
    Some(())
}

impl Profile {
    /// Adds the profile's bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        let flags = [self.suppressed, self.platform_stopped, self.window_closed];
        let all = [self.opted_out_all.is_some(), self.opted_out_all == Some(true)];
        let flags = flags.into_iter().chain(all).rev();
        out.push(flags.fold(0, |byte, flag| byte << 1 | u8::from(flag)));
        self.classes.into_iter().for_each(|marked| put_marked(marked, out));
        out.push(u8::try_from(self.topics.len()).unwrap_or(u8::MAX));
        for (class, name, marked) in &self.topics {
            let class = Class::ALL.iter().position(|known| known == class).unwrap_or_default();
            out.push(u8::try_from(class).unwrap_or_default());
            put_marked(*marked, out);
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend(name.as_bytes());
        }
    }

    /// Takes a profile's bytes off the front; none where they are none's.
    #[must_use]
    pub fn take(input: &mut &[u8]) -> Option<Self> {
        let flags = byte(input)?;
        let is_set = |bit: u32| flags >> bit & 1 == 1;
        let mut profile = Self {
            suppressed: is_set(0),
            platform_stopped: is_set(1),
            window_closed: is_set(2),
            opted_out_all: is_set(3).then_some(is_set(4)),
            ..Self::default()
        };
        for slot in &mut profile.classes {
            *slot = marked(input)?;
        }
        let count = usize::from(byte(input)?);
        let mut topics = Vec::with_capacity(count.min(MAX_TOPICS));
        for _ in 0..count {
            let class = *Class::ALL.get(usize::from(byte(input)?))?;
            let marked = marked(input)?;
            let length = usize::from(byte(input)?);
            let (name, rest) = input.split_at_checked(length)?;
            *input = rest;
            topics.push((class, str::from_utf8(name).ok()?.into(), marked));
        }
        profile.topics = topics.into();
        (flags >> 5 == 0 && count <= MAX_TOPICS).then_some(profile)
    }
}

impl Resolved {
    /// Adds the state's bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.profile.put(out);
        put_time(self.last_inbound, out);
        out.push(u8::from(self.beside.is_some()));
        let Some(Beside { expiries, capped }) = &self.beside else { return };
        put_time(*capped, out);
        out.push(u8::try_from(expiries.len()).unwrap_or(u8::MAX));
        for (place, expire) in expiries {
            out.push(u8::try_from(*place).unwrap_or(u8::MAX));
            put_time(Some(*expire), out);
        }
    }

    /// The state of these bytes; none where they are none's.
    #[must_use]
    pub fn of_bytes(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        let mut resolved = Self { profile: Profile::take(input)?, ..Self::default() };
        time_into(&mut resolved.last_inbound, input)?;
        if byte(input)? == 1 {
            let mut capped = None;
            time_into(&mut capped, input)?;
            let count = byte(input)?;
            let expiries: Option<Vec<_>> =
                (0..count).map(|_| Some((usize::from(byte(input)?), time(input)?))).collect();
            resolved.beside = Some(Beside { expiries: expiries?.into(), capped });
        }
        input.is_empty().then_some(resolved)
    }
}
