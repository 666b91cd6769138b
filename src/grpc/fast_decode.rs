//! Questions, read where they lie in a request's bytes: no id is copied, and nothing is allocated
//! for each. And answers of a batch, written without a message for each.
//!
//! Only what usual encoders write is read here. Whatever else may be right or wrong about a
//! message is left to prost, which also says what is wrong; so both take the same messages, and
//! take them for the same.

use std::time::Duration;

use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_varint, message};

use super::{convert, pb};
use crate::checker::CheckResult;
use consentd_core::decision::Reason;
use consentd_core::record::Revision;

/// Not what usual encoders write: prost knows what it is, and whether it is anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unusual;

/// A question as it came: a `CanSendRequest` whose texts lie elsewhere.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Asked<'a> {
    pub(super) user_id: &'a str,
    pub(super) business_id: &'a str,
    pub(super) category: &'a str,
    pub(super) form: i32,
    pub(super) min_revision: u64,
}

/// A `StreamCanSendRequest`, likewise.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sequenced<'a> {
    pub(super) sequence: u64,
    pub(super) asked: Option<Asked<'a>>,
}

/// A `FilterRecipientsRequest`, likewise; the users are put where the reader wants them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Campaign<'a> {
    pub(super) business_id: &'a str,
    pub(super) category: &'a str,
    pub(super) form: i32,
}

/// A field's value, by how it is written.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width: no field of these messages is.
    Other,
}

impl<'a> Value<'a> {
    fn number(self) -> Result<u64, Unusual> {
        if let Self::Number(number) = self { Ok(number) } else { Err(Unusual) }
    }

    fn bytes(self) -> Result<&'a [u8], Unusual> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Unusual) }
    }

    fn text(self) -> Result<&'a str, Unusual> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Unusual)
    }

    /// The same; bytes that are those of a text are one, too.
    fn text_like(self, text: &'a str) -> Result<&'a str, Unusual> {
        if self.bytes()? == text.as_bytes() { Ok(text) } else { self.text() }
    }

    /// As an enum's number: the lower half, as prost takes it.
    #[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "so it is defined")]
    fn choice(self) -> Result<i32, Unusual> {
        Ok(self.number()? as i32)
    }
}

/// Calls `each` with every field's tag and value, in their order.
fn fields<'a>(
    mut rest: &'a [u8],
    mut each: impl FnMut(u32, Value<'a>) -> Result<(), Unusual>,
) -> Result<(), Unusual> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| Unusual)?;
        let value = match wire_type {
            WireType::Varint => Value::Number(decode_varint(&mut rest).map_err(|_| Unusual)?),
            WireType::LengthDelimited => {
                let len = decode_varint(&mut rest).map_err(|_| Unusual)?;
                Value::Bytes(take(&mut rest, usize::try_from(len).map_err(|_| Unusual)?)?)
            }
            WireType::SixtyFourBit => take(&mut rest, 8).map(|_| Value::Other)?,
            WireType::ThirtyTwoBit => take(&mut rest, 4).map(|_| Value::Other)?,
            WireType::StartGroup | WireType::EndGroup => return Err(Unusual),
        };
        each(tag, value)?;
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Unusual> {
    let (taken, after) = rest.split_at_checked(len).ok_or(Unusual)?;
    *rest = after;
    Ok(taken)
}

impl<'a> Asked<'a> {
    /// Reads a `CanSendRequest`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Unusual> {
        let mut asked = Self::default();
        asked.merge(bytes)?;
        Ok(asked)
    }

    /// Reads more of it: a message that is written in parts is all of them.
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), Unusual> {
        self.merge_like(bytes, &Self::default())
    }

    /// The same, beside a question that is like this one as a rule.
    fn merge_like(&mut self, bytes: &'a [u8], like: &Self) -> Result<(), Unusual> {
        fields(bytes, |tag, value| {
            match tag {
                1 => self.user_id = value.text()?,
                2 => self.business_id = value.text_like(like.business_id)?,
                3 => self.category = value.text_like(like.category)?,
                4 => self.form = value.choice()?,
                5 => self.min_revision = value.number()?,
                _ => {}
            }
            Ok(())
        })
    }

    /// Reads the questions of a `BatchCanSendRequest`, `most` and one more at the most.
    pub(super) fn read_batch(bytes: &'a [u8], most: usize) -> Result<Vec<Self>, Unusual> {
        let mut batch = Vec::new();
        let mut before = Self::default();
        fields(bytes, |tag, value| {
            if tag == 1 {
                if batch.len() > most {
                    return Err(Unusual);
                }
                let mut asked = Self::default();
                asked.merge_like(value.bytes()?, &before)?;
                batch.push(asked);
                before = asked;
            }
            Ok(())
        })?;
        Ok(batch)
    }
}

impl<'a> From<&'a pb::CanSendRequest> for Asked<'a> {
    fn from(request: &'a pb::CanSendRequest) -> Self {
        Self {
            user_id: &request.user_id,
            business_id: &request.business_id,
            category: &request.category,
            form: request.form,
            min_revision: request.min_revision,
        }
    }
}

/// A question that waits, without the bytes that it came in: they could be many more.
pub(super) struct Kept {
    /// Its ids, and what it is about, one behind the other.
    text: Box<str>,
    /// Where the user's id ends, and the business'.
    ends: (usize, usize),
    form: i32,
    min_revision: u64,
}

impl Kept {
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The question.
    pub(super) fn asked(&self) -> Asked<'_> {
        let (user_end, business_end) = self.ends;
        let part = |from, to| self.text.get(from..to).unwrap_or_default();
        Asked {
            user_id: part(0, user_end),
            business_id: part(user_end, business_end),
            category: part(business_end, self.text.len()),
            form: self.form,
            min_revision: self.min_revision,
        }
    }
}

impl From<&Asked<'_>> for Kept {
    fn from(asked: &Asked<'_>) -> Self {
        let user_end = asked.user_id.len();
        Self {
            text: [asked.user_id, asked.business_id, asked.category].concat().into(),
            ends: (user_end, user_end + asked.business_id.len()),
            form: asked.form,
            min_revision: asked.min_revision,
        }
    }
}

impl<'a> Sequenced<'a> {
    /// Reads a `StreamCanSendRequest`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Unusual> {
        let mut read = Self::default();
        fields(bytes, |tag, value| {
            match tag {
                1 => read.sequence = value.number()?,
                2 => read.asked.get_or_insert_default().merge(value.bytes()?)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }
}

impl<'a> From<&'a pb::StreamCanSendRequest> for Sequenced<'a> {
    fn from(request: &'a pb::StreamCanSendRequest) -> Self {
        Self { sequence: request.sequence, asked: request.request.as_ref().map(Asked::from) }
    }
}

impl<'a> Campaign<'a> {
    /// Reads a `FilterRecipientsRequest`; its users, `most` and one more at the most, go to the
    /// end of `users`.
    pub(super) fn read(
        bytes: &'a [u8],
        most: usize,
        users: &mut Vec<&'a str>,
    ) -> Result<Self, Unusual> {
        let mut read = Self::default();
        fields(bytes, |tag, value| {
            match tag {
                1 => read.business_id = value.text()?,
                2 => read.category = value.text()?,
                3 => read.form = value.choice()?,
                4 if users.len() > most => return Err(Unusual),
                4 => users.push(value.text()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }
}

impl<'a> From<&'a pb::FilterRecipientsRequest> for Campaign<'a> {
    fn from(request: &'a pb::FilterRecipientsRequest) -> Self {
        Self { business_id: &request.business_id, category: &request.category, form: request.form }
    }
}

/// Writes the answers of a batch, one behind the other: the bytes of a `BatchCanSendResponse`.
///
/// What many of them have in common is written once and copied; every length fits into one byte.
pub(super) struct Results {
    bytes: Vec<u8>,
    /// The common fields of answers with this revision and staleness.
    common: (Revision, Duration, Vec<u8>),
}

/// About how many bytes an answer takes.
const BYTES_OF_AN_ANSWER: usize = 48;

impl Results {
    /// None yet, and room for so many.
    pub(super) fn with_capacity(answers: usize) -> Self {
        let bytes = Vec::with_capacity(answers.saturating_mul(BYTES_OF_AN_ANSWER));
        Self { bytes, common: (0, Duration::ZERO, Vec::new()) }
    }

    /// The response's bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes what prost has to write.
    pub(super) fn put(&mut self, result: pb::batch_can_send_result::Result) {
        let result = pb::BatchCanSendResult { result: Some(result) };
        message::encode(1, &result, &mut self.bytes);
    }

    /// Writes an answer.
    pub(super) fn put_answer(&mut self, answer: &CheckResult) {
        let CheckResult { decision, revision, staleness } = answer;
        if self.common.2.is_empty() || (self.common.0, self.common.1) != (*revision, *staleness) {
            let staleness_on_wire = Some(convert::duration(*staleness));
            let common = pb::CanSendResponse {
                revision: *revision,
                staleness: staleness_on_wire,
                ..Default::default()
            };
            self.common = (*revision, *staleness, common.encode_to_vec());
        }
        let out = &mut self.bytes;
        let start = out.len();
        // `results`, and in it `response`: their lengths are known in the end.
        out.extend_from_slice(&[0x0a, 0, 0x0a, 0]);
        if decision.allowed() {
            out.extend_from_slice(&[0x08, 1]);
        }
        out.extend_from_slice(&[0x10, number_of(decision.reason)]);
        if decision.free_form_allowed {
            out.extend_from_slice(&[0x18, 1]);
        }
        if decision.template_allowed {
            out.extend_from_slice(&[0x20, 1]);
        }
        for (key, time) in [(0x2a, decision.window_expire), (0x32, decision.retry)] {
            if let Some(time) = time {
                let at = out.len();
                out.extend_from_slice(&[key, 0]);
                let prost_types::Timestamp { seconds, nanos } = convert::timestamp(time);
                if seconds != 0 {
                    out.push(0x08);
                    encode_varint(seconds.cast_unsigned(), out);
                }
                if nanos != 0 {
                    out.push(0x10);
                    encode_varint(u64::from(nanos.unsigned_abs()), out);
                }
                set_length(out, at + 1);
            }
        }
        out.extend_from_slice(&self.common.2);
        set_length(out, start + 3);
        set_length(out, start + 1);
    }
}

/// Sets the byte at a place to the number of bytes behind it.
fn set_length(out: &mut [u8], at: usize) {
    let length = u8::try_from(out.len().saturating_sub(at + 1)).unwrap_or(u8::MAX);
    if let Some(byte) = out.get_mut(at) {
        *byte = length;
    }
}

/// A reason's number, which is below 128.
fn number_of(reason: Reason) -> u8 {
    u8::try_from(i32::from(convert::reason(reason))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
