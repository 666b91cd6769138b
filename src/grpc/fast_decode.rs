//! Zero-copy decoding of check requests, and encoding of batch results without a message for each.
//!
//! Only what common encoders write is decoded here. Any other message, valid or not, is left to prost,
//! which also reports what is wrong with it. So both accept the same messages, with the same values.

use std::time::Duration;

use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_varint, message};

use super::{convert, pb};
use crate::checker::CheckResult;
use consentd_core::decision::Reason;
use consentd_core::record::Revision;

/// The message is not what common encoders write, and prost must decode it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FallBackToProst;

/// A `CanSendRequest` that borrows its texts from the request's bytes. Its fields are not validated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct RawCheckRequest<'a> {
    pub(super) user_id: &'a str,
    pub(super) business_id: &'a str,
    pub(super) category: &'a str,
    pub(super) form: i32,
    pub(super) min_revision: u64,
    /// Only prost decodes a request with a template.
    pub(super) template: Option<&'a pb::Template>,
}

/// A `StreamCanSendRequest`, likewise borrowed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct RawStreamRequest<'a> {
    pub(super) sequence: u64,
    pub(super) asked: Option<RawCheckRequest<'a>>,
}

/// A `FilterRecipientsRequest` without its users, likewise borrowed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct RawCampaign<'a> {
    pub(super) business_id: &'a str,
    pub(super) category: &'a str,
    pub(super) form: i32,
    /// Only prost decodes a campaign with a template.
    pub(super) template: Option<&'a pb::Template>,
}

/// A field's value, by its wire type.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A value of a fixed width, which no field of these messages has.
    Other,
}

impl<'a> Value<'a> {
    fn number(self) -> Result<u64, FallBackToProst> {
        if let Self::Number(number) = self { Ok(number) } else { Err(FallBackToProst) }
    }

    fn bytes(self) -> Result<&'a [u8], FallBackToProst> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(FallBackToProst) }
    }

    fn text(self) -> Result<&'a str, FallBackToProst> {
        std::str::from_utf8(self.bytes()?).map_err(|_| FallBackToProst)
    }

    /// As [`text`](Self::text), but if the bytes equal `text` they need no validation.
    fn text_like(self, text: &'a str) -> Result<&'a str, FallBackToProst> {
        if self.bytes()? == text.as_bytes() { Ok(text) } else { self.text() }
    }

    /// An enum's number: the lower 32 bits, as in prost.
    #[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "so it is defined")]
    fn choice(self) -> Result<i32, FallBackToProst> {
        Ok(self.number()? as i32)
    }
}

/// Calls `each` with the tag and value of every field, in order.
fn fields<'a>(
    mut rest: &'a [u8],
    mut each: impl FnMut(u32, Value<'a>) -> Result<(), FallBackToProst>,
) -> Result<(), FallBackToProst> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| FallBackToProst)?;
        let value = match wire_type {
            WireType::Varint => {
                Value::Number(decode_varint(&mut rest).map_err(|_| FallBackToProst)?)
            }
            WireType::LengthDelimited => {
                let len = decode_varint(&mut rest).map_err(|_| FallBackToProst)?;
                Value::Bytes(take(&mut rest, usize::try_from(len).map_err(|_| FallBackToProst)?)?)
            }
            WireType::SixtyFourBit => take(&mut rest, 8).map(|_| Value::Other)?,
            WireType::ThirtyTwoBit => take(&mut rest, 4).map(|_| Value::Other)?,
            WireType::StartGroup | WireType::EndGroup => return Err(FallBackToProst),
        };
        each(tag, value)?;
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], FallBackToProst> {
    let (taken, after) = rest.split_at_checked(len).ok_or(FallBackToProst)?;
    *rest = after;
    Ok(taken)
}

impl<'a> RawCheckRequest<'a> {
    /// Reads a `CanSendRequest`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, FallBackToProst> {
        let mut asked = Self::default();
        asked.merge(bytes)?;
        Ok(asked)
    }

    /// Merges another part of the message: protobuf allows a message field to be split.
    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), FallBackToProst> {
        self.merge_like(bytes, &Self::default())
    }

    /// The same, with another request whose texts are probably equal.
    fn merge_like(&mut self, bytes: &'a [u8], like: &Self) -> Result<(), FallBackToProst> {
        fields(bytes, |tag, value| {
            match tag {
                1 => self.user_id = value.text()?,
                2 => self.business_id = value.text_like(like.business_id)?,
                3 => self.category = value.text_like(like.category)?,
                4 => self.form = value.choice()?,
                5 => self.min_revision = value.number()?,
                6 => return Err(FallBackToProst),
                _ => {}
            }
            Ok(())
        })
    }

    /// Reads the requests of a `BatchCanSendRequest`, up to one more than `most`.
    pub(super) fn read_batch(bytes: &'a [u8], most: usize) -> Result<Vec<Self>, FallBackToProst> {
        let mut batch = Vec::new();
        let mut before = Self::default();
        fields(bytes, |tag, value| {
            if tag == 1 {
                if batch.len() > most {
                    return Err(FallBackToProst);
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

impl<'a> From<&'a pb::CanSendRequest> for RawCheckRequest<'a> {
    fn from(request: &'a pb::CanSendRequest) -> Self {
        Self {
            user_id: &request.user_id,
            business_id: &request.business_id,
            category: &request.category,
            form: request.form,
            min_revision: request.min_revision,
            template: request.template.as_ref(),
        }
    }
}

/// The fields of a waiting request, without its bytes, which could be many more.
pub(super) struct OwnedCheckRequest {
    /// The user id, the business id and the category, concatenated.
    text: Box<str>,
    /// The ends of the two ids in the text.
    ends: (usize, usize),
    form: i32,
    min_revision: u64,
    template: Option<Box<pb::Template>>,
}

impl OwnedCheckRequest {
    /// Bytes of the texts.
    pub(super) fn bytes(&self) -> usize {
        let of_template = |template: &pb::Template| {
            size_of::<pb::Template>() + template.name.len() + template.language.len()
        };
        self.text.len() + self.template.as_deref().map_or(0, of_template)
    }

    /// The request, borrowed.
    pub(super) fn asked(&self) -> RawCheckRequest<'_> {
        let (user_end, business_end) = self.ends;
        let part = |from, to| self.text.get(from..to).unwrap_or_default();
        RawCheckRequest {
            user_id: part(0, user_end),
            business_id: part(user_end, business_end),
            category: part(business_end, self.text.len()),
            form: self.form,
            min_revision: self.min_revision,
            template: self.template.as_deref(),
        }
    }
}

impl From<&RawCheckRequest<'_>> for OwnedCheckRequest {
    fn from(asked: &RawCheckRequest<'_>) -> Self {
        let user_end = asked.user_id.len();
        Self {
            text: [asked.user_id, asked.business_id, asked.category].concat().into(),
            ends: (user_end, user_end + asked.business_id.len()),
            form: asked.form,
            min_revision: asked.min_revision,
            template: asked.template.cloned().map(Box::new),
        }
    }
}

impl<'a> RawStreamRequest<'a> {
    /// Reads a `StreamCanSendRequest`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, FallBackToProst> {
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

impl<'a> From<&'a pb::StreamCanSendRequest> for RawStreamRequest<'a> {
    fn from(request: &'a pb::StreamCanSendRequest) -> Self {
        Self {
            sequence: request.sequence,
            asked: request.request.as_ref().map(RawCheckRequest::from),
        }
    }
}

impl<'a> RawCampaign<'a> {
    /// Reads a `FilterRecipientsRequest`, and appends its users to `users`, up to one more than `most`.
    pub(super) fn read(
        bytes: &'a [u8],
        most: usize,
        users: &mut Vec<&'a str>,
    ) -> Result<Self, FallBackToProst> {
        let mut read = Self::default();
        fields(bytes, |tag, value| {
            match tag {
                1 => read.business_id = value.text()?,
                2 => read.category = value.text()?,
                3 => read.form = value.choice()?,
                5 => return Err(FallBackToProst),
                4 if users.len() > most => return Err(FallBackToProst),
                4 => users.push(value.text()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }
}

impl<'a> From<&'a pb::FilterRecipientsRequest> for RawCampaign<'a> {
    fn from(request: &'a pb::FilterRecipientsRequest) -> Self {
        Self {
            business_id: &request.business_id,
            category: &request.category,
            form: request.form,
            template: request.template.as_ref(),
        }
    }
}

/// Encodes the results of a batch as the bytes of a `BatchCanSendResponse`.
///
/// Fields that most results have in common are encoded once and copied. Every length fits in one byte.
pub(super) struct BatchResponseEncoder {
    bytes: Vec<u8>,
    /// The encoded fields of results with this revision and staleness.
    common: (Revision, Duration, Vec<u8>),
}

/// About the bytes of an encoded result.
const RESULT_BYTES: usize = 48;

impl BatchResponseEncoder {
    /// An encoder with capacity for so many results.
    pub(super) fn with_capacity(answers: usize) -> Self {
        let bytes = Vec::with_capacity(answers.saturating_mul(RESULT_BYTES));
        Self { bytes, common: (0, Duration::ZERO, Vec::new()) }
    }

    /// The response's bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Encodes a result with prost.
    pub(super) fn put(&mut self, result: pb::batch_can_send_result::Result) {
        let result = pb::BatchCanSendResult { result: Some(result) };
        message::encode(1, &result, &mut self.bytes);
    }

    /// Encodes the result of a check that names no template.
    pub(super) fn put_answer(&mut self, answer: &CheckResult) {
        let CheckResult { decision, revision, staleness, stricter: _ } = answer;
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
        // `results`, and in it `response`: their lengths are set at the end.
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

/// Sets the byte at an index to the number of bytes after it.
fn set_length(out: &mut [u8], at: usize) {
    let length = u8::try_from(out.len().saturating_sub(at + 1)).unwrap_or(u8::MAX);
    if let Some(byte) = out.get_mut(at) {
        *byte = length;
    }
}

/// A reason's number, which is below 128 and so encodes to one byte.
fn number_of(reason: Reason) -> u8 {
    u8::try_from(i32::from(convert::reason(reason))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
