//! Decodes the records that most pairs have, without an allocation for each of their fields.
//!
//! A table is loaded from millions of records, and needs none of their request ids. [`decode_plain`] reads
//! the messages that this program itself writes for ordinary pairs: fields in ascending order, none twice,
//! none that is rare. Whatever else it meets it leaves to [`decode_record`], which alone decides what cannot
//! be read.

use prost::encoding::decode_varint;

use super::{
    DecodedMark, PLAIN, ScopeTimes, decode_record, mark_of, optional, pb, platform_of,
    scope_state_of,
};
use crate::UnreadableRecord;
use consentd_core::record::Record;
use consentd_core::scope::Scope;
use consentd_core::state::State;

/// Decodes a record for a table: its requests may be missing. Whether it can be read is what
/// [`decode_record`] says.
pub(crate) fn decode_record_for_table(bytes: &[u8]) -> Result<Record, UnreadableRecord> {
    match decode_plain(bytes) {
        Some(record) => Ok(record),
        None => decode_record(bytes),
    }
}

/// The value of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Bytes(_) => None,
        }
    }

    fn millis(self) -> Option<i64> {
        self.number().map(u64::cast_signed)
    }

    fn flag(self) -> Option<bool> {
        self.number().map(|number| number != 0)
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Calls `each` for every field of a message; `None` if it returns that, or if the message is not one of
/// numbers and bytes whose tags ascend. Only the tags in `repeated` may occur several times.
fn for_each_field<'a>(
    mut rest: &'a [u8],
    repeated: &[u64],
    mut each: impl FnMut(u64, Value<'a>) -> Option<()>,
) -> Option<()> {
    let mut last = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let tag = key >> 3;
        if tag < last || (tag == last && !repeated.contains(&tag)) {
            return None;
        }
        last = tag;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, behind) = rest.split_at_checked(length)?;
                rest = behind;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        each(tag, value)?;
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    match rest.split_first() {
        Some((&byte, behind)) if byte < 0x80 => {
            *rest = behind;
            Some(u64::from(byte))
        }
        _ => decode_varint(rest).ok(),
    }
}

fn decode_plain(bytes: &[u8]) -> Option<Record> {
    let (mut state, mut record) = (State::default(), Record::default());
    let (mut platform, mut suppression) = (None, None);
    let (mut is_plain, mut has_chain) = (false, false);
    for_each_field(bytes, &[2, 9], |tag, value| {
        match tag {
            1 => is_plain = value.number()? == u64::from(PLAIN),
            2 => decode_scope(value.bytes()?, &mut state)?,
            3 => state.last_inbound = optional(Some(value.millis()?))?,
            4 => state.window_closed = optional(Some(value.millis()?))?,
            5 => state.capped = optional(Some(value.millis()?))?,
            7 => platform = Some(decode_mark(value.bytes()?)?),
            8 => suppression = Some(decode_mark(value.bytes()?)?),
            9 => check_request(value.bytes()?)?,
            10 => record.history_len = value.number()?,
            11 => {
                record.chain = value.bytes()?.try_into().ok()?;
                has_chain = true;
            }
            _ => return None,
        }
        Some(())
    })?;
    state.platform = platform_of(platform, Vec::new())?;
    let (suppression, last_suppressed): DecodedMark = mark_of(suppression)?;
    (state.suppression, state.last_suppressed) = (suppression, last_suppressed);
    record.state = state;
    (is_plain && has_chain).then_some(record)
}

fn decode_scope(bytes: &[u8], state: &mut State) -> Option<()> {
    let (mut name, mut times) = ("", ScopeTimes::default());
    for_each_field(bytes, &[], |tag, value| {
        match tag {
            1 => name = value.text()?,
            2 => times.opt_out = Some(value.millis()?),
            3 => times.opt_in = Some(decode_opt_in(value.bytes()?)?),
            4 => times.pending = Some(decode_opt_in(value.bytes()?)?),
            5 => times.replaced_opt_out = Some(value.millis()?),
            _ => return None,
        }
        Some(())
    })?;
    state.scopes.insert(Scope::parse(name).ok()?, scope_state_of(times)?);
    Some(())
}

fn decode_opt_in(bytes: &[u8]) -> Option<pb::OptInWord> {
    let mut opt_in = pb::OptInWord::default();
    for_each_field(bytes, &[], |tag, value| {
        match tag {
            1 => opt_in.time = value.millis()?,
            2 => opt_in.expire = Some(value.millis()?),
            3 => opt_in.confirms = value.flag()?,
            _ => return None,
        }
        Some(())
    })?;
    Some(opt_in)
}

fn decode_mark(bytes: &[u8]) -> Option<pb::Mark> {
    let mut mark = pb::Mark::default();
    for_each_field(bytes, &[], |tag, value| {
        match tag {
            1 => mark.time = value.millis()?,
            2 => mark.set = value.flag()?,
            3 => mark.last_set = Some(value.millis()?),
            _ => return None,
        }
        Some(())
    })?;
    Some(mark)
}

/// Checks that a request can be read.
fn check_request(bytes: &[u8]) -> Option<()> {
    let mut digests = 0_u32;
    for_each_field(bytes, &[], |tag, value| {
        match tag {
            1 | 2 => {
                let _: [u8; 16] = value.bytes()?.try_into().ok()?;
                digests = digests.saturating_add(1);
            }
            3 | 4 => drop(value.number()?),
            5..=8 => drop(value.text()?),
            9 => drop(optional(Some(value.millis()?))?),
            _ => return None,
        }
        Some(())
    })?;
    (digests == 2).then_some(())
}
