//! What answers say: as little of them is decoded as is counted, so that the client is no slower
//! than it must be.

use super::requests::Call;

/// One of the questions of a request, answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// A decision, by the number of its reason.
    Reason(u64),
    /// An error of that one question, by its code.
    Error(u64),
}

/// Something in an answer that is no message of the contract.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the answer is not of the contract")]
pub(super) struct Malformed;

/// A field's value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of no type that the contract's answers have.
    Fixed,
}

/// The fields of a message in the wire format of Protocol Buffers.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => self.skip(4)?,
            _ => return Err(Malformed),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn skip(&mut self, bytes: usize) -> Result<Value<'a>, Malformed> {
        self.0 = self.0.get(bytes..).ok_or(Malformed)?;
        Ok(Value::Fixed)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

/// Reads what an answer says to each of its questions.
pub(super) fn read(
    call: Call,
    message: &[u8],
    mut each: impl FnMut(Answer),
) -> Result<(), Malformed> {
    if call == Call::Unary {
        each(decision(message)?);
        return Ok(());
    }
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match (call, field) {
            (Call::Stream, (2, Value::Bytes(bytes))) | (Call::Batch, (1, Value::Bytes(bytes))) => {
                each(result(bytes)?);
            }
            (Call::Filter, (1, Value::Varint(reason))) => each(screened(reason)),
            (Call::Filter, (1, Value::Bytes(packed))) => {
                let mut packed = Fields(packed);
                while !packed.0.is_empty() {
                    each(screened(packed.varint()?));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The sequence of an answer on a stream of questions.
pub(super) fn sequence(message: &[u8]) -> Result<u64, Malformed> {
    number(message, 1)
}

/// The verdict on a recipient: without a reason its id was malformed.
fn screened(reason: u64) -> Answer {
    const INVALID_ARGUMENT: u64 = 3;
    if reason == 0 { Answer::Error(INVALID_ARGUMENT) } else { Answer::Reason(reason) }
}

/// A `BatchCanSendResult`.
fn result(message: &[u8]) -> Result<Answer, Malformed> {
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(response)) => return decision(response),
            (2, Value::Bytes(error)) => {
                let code = number(error, 1)?;
                return Ok(Answer::Error(code));
            }
            _ => {}
        }
    }
    Err(Malformed)
}

/// A `CanSendResponse`; a server never leaves its reason out.
fn decision(message: &[u8]) -> Result<Answer, Malformed> {
    match number(message, 2)? {
        0 => Err(Malformed),
        reason => Ok(Answer::Reason(reason)),
    }
}

/// A number of a message by its field; 0 where it is unset.
fn number(message: &[u8], wanted: u64) -> Result<u64, Malformed> {
    let mut fields = Fields(message);
    let mut found = 0;
    while let Some((field, value)) = fields.next()? {
        if let (true, Value::Varint(value)) = (field == wanted, value) {
            found = value;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::grpc::pb;
    use crate::grpc::pb::batch_can_send_result::Result as Outcome;

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
        }
    }

    fn outcomes() -> Vec<pb::BatchCanSendResult> {
        let error = pb::ItemError { code: 14, field: String::new(), message: "no".to_owned() };
        [Outcome::Response(response(pb::Reason::OptedIn)), Outcome::Error(error)]
            .map(|result| pb::BatchCanSendResult { result: Some(result) })
            .to_vec()
    }

    fn all(call: Call, message: &impl prost::Message) -> Vec<Answer> {
        let mut answers = Vec::new();
        read(call, &message.encode_to_vec(), |answer| answers.push(answer)).unwrap();
        answers
    }

    #[test]
    fn what_prost_writes_is_read() {
        let capped = response(pb::Reason::FrequencyCapped);
        assert_eq!(all(Call::Unary, &capped), [Answer::Reason(17)]);
        let batch = pb::BatchCanSendResponse { results: outcomes() };
        let both = vec![Answer::Reason(1), Answer::Error(14)];
        assert_eq!(all(Call::Batch, &batch), both);
        for (result, expected) in outcomes().into_iter().zip(both) {
            let answer = pb::StreamCanSendResponse { sequence: 300, result: Some(result) };
            assert_eq!(all(Call::Stream, &answer), [expected]);
            assert_eq!(sequence(&answer.encode_to_vec()), Ok(300));
        }
        let reasons = [0, 1, 10, 19];
        let filter = pb::FilterRecipientsResponse {
            reasons: reasons.to_vec(),
            allowed_count: 1,
            staleness: None,
        };
        let expected =
            [Answer::Error(3), Answer::Reason(1), Answer::Reason(10), Answer::Reason(19)];
        assert_eq!(all(Call::Filter, &filter), expected);
    }

    #[test]
    fn what_is_broken_off_or_says_nothing_is_malformed() {
        let whole = response(pb::Reason::OptedIn).encode_to_vec();
        let refused = |call, bytes: &[u8]| read(call, bytes, |_| {}) == Err(Malformed);
        for length in [whole.len() - 1, 5, 3] {
            assert!(refused(Call::Unary, &whole[..length]), "{length}");
        }
        assert!(refused(Call::Unary, &[]));
        assert!(refused(Call::Batch, &[0x0a, 0]));
        assert!(refused(Call::Filter, &[0x0a, 1, 0x80]));
    }
}
