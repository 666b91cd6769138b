//! The requests of a load, encoded before it begins.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use crate::grpc::pb;

/// Which call is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(in crate::cli::bench) enum Call {
    /// CanSend: one question a call
    Unary,
    /// BatchCanSend: --batch questions a call
    Batch,
    /// StreamCanSend: one stream a connection
    Stream,
    /// FilterRecipients: one stream a connection, --batch users a message
    Filter,
}

impl Call {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Unary => "/consent.v1.ConsentService/CanSend",
            Self::Batch => "/consent.v1.ConsentService/BatchCanSend",
            Self::Stream => "/consent.v1.ConsentService/StreamCanSend",
            Self::Filter => "/consent.v1.ConsentService/FilterRecipients",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Batch => "batch",
            Self::Stream => "stream",
            Self::Filter => "filter",
        }
    }

    /// Whether a request is a call of its own.
    pub(super) fn is_unary(self) -> bool {
        matches!(self, Self::Unary | Self::Batch)
    }

    /// Whether a request asks several questions.
    pub(super) fn is_batched(self) -> bool {
        matches!(self, Self::Batch | Self::Filter)
    }
}

/// The bytes of what gRPC puts before a message: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// The requests, in turn.
#[derive(Debug)]
pub(super) struct Requests {
    call: Call,
    bytes: Bytes,
    /// Where each ends, and how many questions it asks.
    parts: Vec<(usize, u32)>,
}

impl Requests {
    /// Encodes questions, so many to a request where the call takes several.
    pub(super) fn new(call: Call, mut questions: Vec<pb::CanSendRequest>, batch: usize) -> Self {
        let mut bytes = BytesMut::new();
        let mut parts = Vec::new();
        let mut end = |bytes: &BytesMut, questions: usize| {
            parts.push((bytes.len(), u32::try_from(questions).unwrap_or(u32::MAX)));
        };
        match call {
            Call::Unary => {
                for question in &questions {
                    frame(&mut bytes, question);
                    end(&bytes, 1);
                }
            }
            Call::Batch => {
                for questions in questions.chunks(batch) {
                    frame(&mut bytes, &pb::BatchCanSendRequest { requests: questions.to_vec() });
                    end(&bytes, questions.len());
                }
            }
            Call::Stream => {
                for question in questions {
                    // Its sequence is put before it when it is sent.
                    let message = pb::StreamCanSendRequest { sequence: 0, request: Some(question) };
                    bytes.put_slice(&message.encode_to_vec());
                    end(&bytes, 1);
                }
            }
            Call::Filter => {
                let about = |question: &pb::CanSendRequest| {
                    let pb::CanSendRequest { business_id, category, form, .. } = question;
                    (business_id.clone(), category.clone(), *form)
                };
                // A campaign is one business' and of one category.
                questions.sort_by_cached_key(about);
                for campaign in questions.chunk_by(|one, next| about(one) == about(next)) {
                    for chunk in campaign.chunks(batch) {
                        let (business_id, category, form) = about(&campaign[0]);
                        let user_ids = chunk.iter().map(|one| one.user_id.clone()).collect();
                        let message =
                            pb::FilterRecipientsRequest { business_id, category, form, user_ids };
                        frame(&mut bytes, &message);
                        end(&bytes, chunk.len());
                    }
                }
            }
        }
        Self { call, bytes: bytes.freeze(), parts }
    }

    pub(super) fn call(&self) -> Call {
        self.call
    }

    /// The request that a number stands for: they begin again after the last.
    pub(super) fn get(&self, number: u64) -> Bytes {
        let place = self.place(number);
        let before = place.checked_sub(1).and_then(|before| self.parts.get(before));
        let begin = before.map_or(0, |part| part.0);
        let end = self.parts.get(place).map_or(begin, |part| part.0);
        self.bytes.slice(begin..end)
    }

    /// How many questions it asks.
    pub(super) fn questions(&self, number: u64) -> u64 {
        self.parts.get(self.place(number)).map_or(0, |part| part.1.into())
    }

    fn place(&self, number: u64) -> usize {
        let count = u64::try_from(self.parts.len()).unwrap_or(u64::MAX);
        usize::try_from(number % count.max(1)).unwrap_or(0)
    }
}

/// Appends a message with the prefix of gRPC.
fn frame(bytes: &mut BytesMut, message: &impl prost::Message) {
    prefix(bytes, message.encoded_len());
    bytes.put_slice(&message.encode_to_vec());
}

/// Appends what gRPC puts before a message of such a length.
fn prefix(bytes: &mut BytesMut, length: usize) {
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Appends a question of a stream under its sequence.
pub(super) fn sequenced(bytes: &mut BytesMut, sequence: u64, question: &[u8]) {
    const SEQUENCE: u8 = 1 << 3;
    let length = 1 + prost::length_delimiter_len(usize::try_from(sequence).unwrap_or(usize::MAX));
    prefix(bytes, length + question.len());
    bytes.put_u8(SEQUENCE);
    prost::encoding::encode_varint(sequence, bytes);
    bytes.put_slice(question);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> Vec<pb::CanSendRequest> {
        let about = |n: u64| pb::CanSendRequest {
            user_id: format!("u{n}"),
            business_id: "b".to_owned(),
            category: ["marketing", "service"][usize::try_from(n % 2).unwrap()].to_owned(),
            ..Default::default()
        };
        (0..10).map(about).collect()
    }

    fn message<T: prost::Message + Default>(framed: &[u8]) -> T {
        let length = u32::from_be_bytes(framed[1..PREFIX].try_into().unwrap());
        assert_eq!((framed[0], usize::try_from(length).unwrap()), (0, framed.len() - PREFIX));
        T::decode(&framed[PREFIX..]).unwrap()
    }

    #[test]
    fn every_question_is_asked_once_and_then_again() {
        let unary = Requests::new(Call::Unary, questions(), 1);
        for (number, question) in (0..).zip(questions().iter().cycle().take(25)) {
            assert_eq!(message::<pb::CanSendRequest>(&unary.get(number)), *question);
            assert_eq!(unary.questions(number), 1);
        }
        let batch = Requests::new(Call::Batch, questions(), 4);
        let sent = (0..3).flat_map(|number| {
            let requests = message::<pb::BatchCanSendRequest>(&batch.get(number)).requests;
            assert_eq!(u64::try_from(requests.len()).unwrap(), batch.questions(number));
            requests
        });
        assert_eq!(sent.collect::<Vec<_>>(), questions());
    }

    #[test]
    fn questions_of_a_stream_have_their_sequence() {
        let stream = Requests::new(Call::Stream, questions(), 1);
        for (sequence, number) in [(1, 0), (127, 1), (128, 2), (1_000, 3)] {
            let mut bytes = BytesMut::new();
            sequenced(&mut bytes, sequence, &stream.get(number));
            let question = questions().into_iter().nth(usize::try_from(number).unwrap());
            let expected = pb::StreamCanSendRequest { sequence, request: question };
            assert_eq!(message::<pb::StreamCanSendRequest>(&bytes), expected);
        }
    }

    #[test]
    fn a_campaign_is_of_one_category() {
        let filter = Requests::new(Call::Filter, questions(), 3);
        let chunks: Vec<pb::FilterRecipientsRequest> =
            (0..4).map(|number| message(&filter.get(number))).collect();
        let told: Vec<_> = chunks.iter().map(|c| (&*c.category, c.user_ids.join(" "))).collect();
        let expected = [
            ("marketing", "u0 u2 u4"),
            ("marketing", "u6 u8"),
            ("service", "u1 u3 u5"),
            ("service", "u7 u9"),
        ];
        assert_eq!(told, expected.map(|(category, users)| (category, users.to_owned())));
    }
}
