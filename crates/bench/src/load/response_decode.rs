//! Decodes of a response what is counted and skips the rest, so that the client costs little CPU.

use bytes::Buf as _;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::workload::Call;

/// The outcome of one question of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// A decision, by the number of its reason.
    Decision(u64),
    /// An error of this question alone, by its gRPC code.
    Error(u64),
}

/// A response that is no message of the contract.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the response is not of the contract")]
pub(super) struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a wire type that no counted field has.
    Skipped,
}

/// Takes the next field from an encoded message: its number and its value.
fn next_field<'a>(message: &mut &'a [u8]) -> Result<Option<(u32, Value<'a>)>, Malformed> {
    if message.is_empty() {
        return Ok(None);
    }
    let (tag, wire_type) = decode_key(message)?;
    let value = match wire_type {
        WireType::Varint => Value::Varint(decode_varint(message)?),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(message)?).map_err(|_| Malformed)?;
            let (bytes, rest) = message.split_at_checked(length).ok_or(Malformed)?;
            *message = rest;
            Value::Bytes(bytes)
        }
        other => {
            skip_field(other, tag, message, DecodeContext::default())?;
            Value::Skipped
        }
    };
    Ok(Some((tag, value)))
}

/// Decodes the outcome of each question of a request from its response.
pub(super) fn outcomes(
    call: Call,
    mut message: &[u8],
    mut each: impl FnMut(Outcome),
) -> Result<(), Malformed> {
    if call == Call::Unary {
        each(can_send_response(message)?);
        return Ok(());
    }
    while let Some(field) = next_field(&mut message)? {
        match (call, field) {
            (Call::Stream, (2, Value::Bytes(bytes))) | (Call::Batch, (1, Value::Bytes(bytes))) => {
                each(batch_result(bytes)?);
            }
            (Call::Filter, (1, Value::Varint(reason))) => each(recipient(reason)),
            (Call::Filter, (1, Value::Bytes(mut packed))) => {
                while packed.has_remaining() {
                    each(recipient(decode_varint(&mut packed)?));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The sequence of a `StreamCanSendResponse`.
pub(super) fn sequence(message: &[u8]) -> Result<u64, Malformed> {
    varint_field(message, 1)
}

/// The outcome of a recipient in a `FilterRecipientsResponse`: 0 in place of a reason means that
/// the id was invalid.
fn recipient(reason: u64) -> Outcome {
    const INVALID_ARGUMENT: u64 = 3;
    if reason == 0 { Outcome::Error(INVALID_ARGUMENT) } else { Outcome::Decision(reason) }
}

/// The outcome in a `BatchCanSendResult`.
fn batch_result(mut message: &[u8]) -> Result<Outcome, Malformed> {
    while let Some(field) = next_field(&mut message)? {
        match field {
            (1, Value::Bytes(response)) => return can_send_response(response),
            (2, Value::Bytes(error)) => return Ok(Outcome::Error(varint_field(error, 1)?)),
            _ => {}
        }
    }
    Err(Malformed)
}

/// The outcome in a `CanSendResponse`. A server always sets the reason.
fn can_send_response(message: &[u8]) -> Result<Outcome, Malformed> {
    match varint_field(message, 2)? {
        0 => Err(Malformed),
        reason => Ok(Outcome::Decision(reason)),
    }
}

/// The value of a message's varint field, or 0 if it is unset. The last occurrence counts.
fn varint_field(mut message: &[u8], wanted: u32) -> Result<u64, Malformed> {
    let mut found = 0;
    while let Some((tag, value)) = next_field(&mut message)? {
        if let (true, Value::Varint(value)) = (tag == wanted, value) {
            found = value;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use consentd_proto::v1 as pb;
    use pb::batch_can_send_result::Result as OnWire;

    fn response(reason: pb::Reason) -> pb::CanSendResponse {
        pb::CanSendResponse {
            allowed: true,
            reason: reason.into(),
            free_form_allowed: true,
            template_allowed: true,
            window_expire_time: Some(prost_types::Timestamp { seconds: 1_750_000_000, nanos: 1 }),
            retry_time: None,
            revision: 1 << 40,
            staleness: Some(prost_types::Duration { seconds: 1, nanos: 5 }),
            category_used: "marketing".into(),
        }
    }

    fn results() -> Vec<pb::BatchCanSendResult> {
        let error = pb::ItemError { code: 14, field: String::new(), message: "no".to_owned() };
        [OnWire::Response(response(pb::Reason::OptedIn)), OnWire::Error(error)]
            .map(|result| pb::BatchCanSendResult { result: Some(result) })
            .to_vec()
    }

    fn all(call: Call, message: &impl prost::Message) -> Vec<Outcome> {
        let mut found = Vec::new();
        outcomes(call, &message.encode_to_vec(), |outcome| found.push(outcome)).unwrap();
        found
    }

    #[test]
    fn outcomes_of_prost_encoded_responses_are_decoded() {
        let capped = response(pb::Reason::FrequencyCapped);
        assert_eq!(all(Call::Unary, &capped), [Outcome::Decision(17)]);
        let batch = pb::BatchCanSendResponse { results: results() };
        let both = vec![Outcome::Decision(1), Outcome::Error(14)];
        assert_eq!(all(Call::Batch, &batch), both);
        for (result, expected) in results().into_iter().zip(both) {
            let answer = pb::StreamCanSendResponse { sequence: 300, result: Some(result) };
            assert_eq!(all(Call::Stream, &answer), [expected]);
            assert_eq!(sequence(&answer.encode_to_vec()), Ok(300));
        }
        let reasons = [0, 1, 10, 19];
        let filter = pb::FilterRecipientsResponse {
            reasons: reasons.to_vec(),
            allowed_count: 1,
            staleness: None,
            category_used: String::new(),
        };
        let expected =
            [Outcome::Error(3), Outcome::Decision(1), Outcome::Decision(10), Outcome::Decision(19)];
        assert_eq!(all(Call::Filter, &filter), expected);
    }

    #[test]
    fn truncated_or_empty_response_is_malformed() {
        let whole = response(pb::Reason::OptedIn).encode_to_vec();
        let refused = |call, bytes: &[u8]| outcomes(call, bytes, |_| {}) == Err(Malformed);
        for length in [whole.len() - 1, 5, 3] {
            assert!(refused(Call::Unary, &whole[..length]), "{length}");
        }
        assert!(refused(Call::Unary, &[]));
        assert!(refused(Call::Batch, &[0x0a, 0]));
        assert!(refused(Call::Filter, &[0x0a, 1, 0x80]));
    }
}
