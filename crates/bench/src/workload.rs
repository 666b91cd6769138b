//! The questions of a load and how they are encoded, before the load begins.

use bytes::{BufMut as _, Bytes, BytesMut};
use consentd_proto::v1 as pb;
use prost::Message as _;
use siphasher::sip128::SipHasher24;

use crate::fixture;

/// The categories that are asked about, in turn.
const CATEGORIES: [&str; 4] =
    ["marketing", "utility.order_updates", "marketing.daily_deals", "authentication"];

/// Generates questions about the pairs of a [`fixture::Fixture`]. A question is a hash of its
/// number and the seed, so that no random generator's version matters.
#[derive(Clone, Debug)]
pub struct Questions {
    /// The number of pairs, at least 1.
    pub pairs: u64,
    /// The share of questions that are about one of the pairs, from 0 to 1; the others are about
    /// unknown users.
    pub hit_ratio: f64,
    /// Equal seeds generate equal questions.
    pub seed: u64,
}

impl Questions {
    /// The question of a number.
    #[must_use]
    pub fn question(&self, number: u64) -> pb::CanSendRequest {
        let random = SipHasher24::new_with_keys(self.seed, 0).hash(&number.to_be_bytes());
        let pair = random.h1 % self.pairs.max(1);
        let is_hit = fraction(random.h2) < self.hit_ratio;
        let user_id = if is_hit { fixture::user(pair) } else { fixture::unknown_user(pair) };
        let category = usize::try_from(number % 4).ok().and_then(|index| CATEGORIES.get(index));
        pb::CanSendRequest {
            user_id,
            business_id: fixture::BUSINESS.to_owned(),
            category: category.copied().unwrap_or("marketing").to_owned(),
            ..Default::default()
        }
    }
}

/// Maps random bits to a number from 0 to 1, 1 excluded.
#[allow(clippy::cast_precision_loss, reason = "a double has as many bits as are kept")]
pub(crate) fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// The call under load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Call {
    /// `CanSend`: one question a call.
    Unary,
    /// `BatchCanSend`: several questions a call.
    Batch,
    /// `StreamCanSend`: one stream a connection, one question a message.
    Stream,
    /// `FilterRecipients`: one stream a connection, several users a message.
    Filter,
}

impl Call {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Unary => "/consent.v1.ConsentService/CanSend",
            Self::Batch => "/consent.v1.ConsentService/BatchCanSend",
            Self::Stream => "/consent.v1.ConsentService/StreamCanSend",
            Self::Filter => "/consent.v1.ConsentService/FilterRecipients",
        }
    }

    /// A short name, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Batch => "batch",
            Self::Stream => "stream",
            Self::Filter => "filter",
        }
    }

    /// Whether each request is a call of its own rather than a message on a stream.
    pub(crate) fn is_unary(self) -> bool {
        matches!(self, Self::Unary | Self::Batch)
    }

    /// Whether a request has several questions.
    #[must_use]
    pub fn is_batched(self) -> bool {
        matches!(self, Self::Batch | Self::Filter)
    }
}

/// The size of the prefix that gRPC puts before each message: a compression flag and the length.
pub(crate) const GRPC_PREFIX_BYTES: usize = 5;

/// Encoded requests, which a load sends in turn.
#[derive(Debug)]
pub struct Workload {
    call: Call,
    bytes: Bytes,
    requests: Vec<EncodedRequest>,
}

/// One request of a [`Workload`].
#[derive(Clone, Copy, Debug)]
struct EncodedRequest {
    /// The offset of its end in the workload's bytes. It begins at the previous one's end.
    end: usize,
    questions: u32,
}

impl Workload {
    /// Encodes questions. A request of a batched call has `batch` of them, at least 1.
    #[must_use]
    pub fn new(call: Call, mut questions: Vec<pb::CanSendRequest>, batch: usize) -> Self {
        let batch = batch.max(1);
        let mut bytes = BytesMut::new();
        let mut requests = Vec::new();
        let mut end = |bytes: &BytesMut, questions: usize| {
            let questions = u32::try_from(questions).unwrap_or(u32::MAX);
            requests.push(EncodedRequest { end: bytes.len(), questions });
        };
        match call {
            Call::Unary => {
                for question in &questions {
                    put_framed(&mut bytes, question);
                    end(&bytes, 1);
                }
            }
            Call::Batch => {
                for questions in questions.chunks(batch) {
                    let message = pb::BatchCanSendRequest { requests: questions.to_vec() };
                    put_framed(&mut bytes, &message);
                    end(&bytes, questions.len());
                }
            }
            Call::Stream => {
                for question in questions {
                    // `put_sequenced` adds the prefix and the sequence when it is sent.
                    let message = pb::StreamCanSendRequest { sequence: 0, request: Some(question) };
                    bytes.put_slice(&message.encode_to_vec());
                    end(&bytes, 1);
                }
            }
            Call::Filter => {
                // A message has one business and one category.
                questions.sort_by_cached_key(campaign_of);
                for campaign in
                    questions.chunk_by(|one, next| campaign_of(one) == campaign_of(next))
                {
                    for chunk in campaign.chunks(batch) {
                        let (business_id, category, form) = campaign_of(&campaign[0]);
                        let user_ids = chunk.iter().map(|one| one.user_id.clone()).collect();
                        let message = pb::FilterRecipientsRequest {
                            business_id,
                            category,
                            form,
                            user_ids,
                            template: None,
                        };
                        put_framed(&mut bytes, &message);
                        end(&bytes, chunk.len());
                    }
                }
            }
        }
        Self { call, bytes: bytes.freeze(), requests }
    }

    /// The call that the requests are for.
    #[must_use]
    pub fn call(&self) -> Call {
        self.call
    }

    /// The bytes of the request with a number. Numbers wrap around after the last request.
    pub(crate) fn request(&self, number: u64) -> Bytes {
        let index = self.index(number);
        let before = index.checked_sub(1).and_then(|before| self.requests.get(before));
        let begin = before.map_or(0, |request| request.end);
        let end = self.requests.get(index).map_or(begin, |request| request.end);
        self.bytes.slice(begin..end)
    }

    /// How many questions the request with a number has.
    pub(crate) fn questions(&self, number: u64) -> u64 {
        self.requests.get(self.index(number)).map_or(0, |request| request.questions.into())
    }

    fn index(&self, number: u64) -> usize {
        let count = u64::try_from(self.requests.len()).unwrap_or(u64::MAX);
        usize::try_from(number % count.max(1)).unwrap_or(0)
    }
}

/// What the recipients of one `FilterRecipients` message have in common.
fn campaign_of(question: &pb::CanSendRequest) -> (String, String, i32) {
    (question.business_id.clone(), question.category.clone(), question.form)
}

/// Appends a message with its gRPC prefix.
fn put_framed(bytes: &mut BytesMut, message: &impl prost::Message) {
    put_prefix(bytes, message.encoded_len());
    bytes.put_slice(&message.encode_to_vec());
}

fn put_prefix(bytes: &mut BytesMut, length: usize) {
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Appends an encoded question of a stream with its gRPC prefix and its sequence.
pub(crate) fn put_sequenced(bytes: &mut BytesMut, sequence: u64, question: &[u8]) {
    /// Field 1 of `StreamCanSendRequest`, a varint.
    const SEQUENCE_KEY: u8 = 1 << 3;
    let length = 1 + prost::length_delimiter_len(usize::try_from(sequence).unwrap_or(usize::MAX));
    put_prefix(bytes, length + question.len());
    bytes.put_u8(SEQUENCE_KEY);
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
        let length = u32::from_be_bytes(framed[1..GRPC_PREFIX_BYTES].try_into().unwrap());
        assert_eq!(
            (framed[0], usize::try_from(length).unwrap()),
            (0, framed.len() - GRPC_PREFIX_BYTES)
        );
        T::decode(&framed[GRPC_PREFIX_BYTES..]).unwrap()
    }

    #[test]
    fn workload_past_its_end_begins_again() {
        let unary = Workload::new(Call::Unary, questions(), 1);
        for (number, question) in (0..).zip(questions().iter().cycle().take(25)) {
            assert_eq!(message::<pb::CanSendRequest>(&unary.request(number)), *question);
            assert_eq!(unary.questions(number), 1);
        }
        let batch = Workload::new(Call::Batch, questions(), 4);
        let sent = (0..3).flat_map(|number| {
            let requests = message::<pb::BatchCanSendRequest>(&batch.request(number)).requests;
            assert_eq!(u64::try_from(requests.len()).unwrap(), batch.questions(number));
            requests
        });
        assert_eq!(sent.collect::<Vec<_>>(), questions());
    }

    #[test]
    fn stream_question_is_prefixed_with_its_sequence() {
        let stream = Workload::new(Call::Stream, questions(), 1);
        for (sequence, number) in [(1, 0), (127, 1), (128, 2), (1_000, 3)] {
            let mut bytes = BytesMut::new();
            put_sequenced(&mut bytes, sequence, &stream.request(number));
            let question = questions().into_iter().nth(usize::try_from(number).unwrap());
            let expected = pb::StreamCanSendRequest { sequence, request: question };
            assert_eq!(message::<pb::StreamCanSendRequest>(&bytes), expected);
        }
    }

    #[test]
    fn filter_request_has_recipients_of_one_category() {
        let filter = Workload::new(Call::Filter, questions(), 3);
        let chunks: Vec<pb::FilterRecipientsRequest> =
            (0..4).map(|number| message(&filter.request(number))).collect();
        let campaigns: Vec<_> =
            chunks.iter().map(|c| (&*c.category, c.user_ids.join(" "))).collect();
        let expected = [
            ("marketing", "u0 u2 u4"),
            ("marketing", "u6 u8"),
            ("service", "u1 u3 u5"),
            ("service", "u7 u9"),
        ];
        assert_eq!(campaigns, expected.map(|(category, users)| (category, users.to_owned())));
    }
}
