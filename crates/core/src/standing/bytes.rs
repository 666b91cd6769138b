//! The binary encoding of a resolved state, for snapshots of the table. Decoding accepts any bytes and
//! returns `None` if they are invalid.

use super::{Expiries, Profile, ResolvedState, ScopeStanding, StandingKind};
use crate::scope::Class;
use crate::time::Timestamp;

/// The most topics of an encoded profile.
const MAX_TOPICS: usize = 64;

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
        let flags = [self.suppressed, self.platform_stopped, self.window_closed];
        let all = [self.opted_out_all.is_some(), self.opted_out_all == Some(true)];
        let flags = flags.into_iter().chain(all).rev();
        out.push(flags.fold(0, |byte, flag| byte << 1 | u8::from(flag)));
        self.classes.into_iter().for_each(|on_scope| put_scope_standing(on_scope, out));
        out.push(u8::try_from(self.topics.len()).unwrap_or(u8::MAX));
        for (class, name, on_scope) in &self.topics {
            let class = Class::ALL.iter().position(|known| known == class).unwrap_or_default();
            out.push(u8::try_from(class).unwrap_or_default());
            put_scope_standing(*on_scope, out);
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend(name.as_bytes());
        }
    }

    /// Decodes a profile and removes its bytes from the input. `None` if they are invalid.
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
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
            *slot = scope_standing(input)?;
        }
        let count = usize::from(byte(input)?);
        let mut topics = Vec::with_capacity(count.min(MAX_TOPICS));
        for _ in 0..count {
            let class = *Class::ALL.get(usize::from(byte(input)?))?;
            let on_scope = scope_standing(input)?;
            let length = usize::from(byte(input)?);
            let (name, rest) = input.split_at_checked(length)?;
            *input = rest;
            topics.push((class, str::from_utf8(name).ok()?.into(), on_scope));
        }
        profile.topics = topics.into();
        (flags >> 5 == 0 && count <= MAX_TOPICS).then_some(profile)
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
