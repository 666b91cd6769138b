//! The wire codecs: prost's, but for what it says of bytes that are not the message they should be;
//! and one that leaves a message's bytes to its reader.

use std::marker::PhantomData;

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstEncoder;
use tonic_types::{ErrorDetails, StatusExt as _};

/// Encodes `T`, decodes `U`.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Prost<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Prost(PhantomData)
    }
}

/// The most fields of a message, those within others aside: a batch's items, mostly. Two MiB hold
/// a million empty ones, which would take fifty times as much memory once decoded.
pub(super) const MAX_FIELDS: usize = 16 * 1024;

/// The buffer of a single question, or of its answer: most are shorter, and others make it grow.
const SMALL_BUFFER_BYTES: usize = 512;

/// The buffers of a stream, each way; they grow with a message, and every open stream has them.
const STREAM_BUFFER_BYTES: usize = 4 * 1024;

/// So many bytes of a stream's answers are sent together: a frame of HTTP/2.
const STREAM_YIELD_BYTES: usize = 16 * 1024;

/// Decodes messages by prost.
pub struct Prost<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Prost<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        decode(bytes, MAX_FIELDS).map(Some)
    }
}

/// Decodes a message of at most `most` fields by prost.
pub(super) fn decode<M: Message + Default>(bytes: Bytes, most: usize) -> Result<M, Status> {
    if has_more_fields(&bytes, most) {
        return Err(refused(String::new(), &format!("more than {most} fields, or items")));
    }
    // prost's own codec answers INTERNAL, as if the fault were ours.
    M::decode(bytes).map_err(|error| malformed(&error))
}

/// Encodes answers by prost, and leaves questions to their reader: they come as bytes.
pub(super) struct Unread<T>(BufferSettings, PhantomData<T>);

impl<T> Unread<T> {
    /// For a call of one short message either way: buffers need not be larger.
    pub(super) fn small() -> Self {
        Self(BufferSettings::new(SMALL_BUFFER_BYTES, SMALL_BUFFER_BYTES), PhantomData)
    }

    /// For many messages, or large ones.
    pub(super) fn large() -> Self {
        Self(BufferSettings::new(STREAM_BUFFER_BYTES, STREAM_YIELD_BYTES), PhantomData)
    }
}

impl<T: Message + Send + 'static> tonic::codec::Codec for Unread<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = ProstEncoder<T>;
    type Decoder = AsBytes;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(self.0)
    }

    fn decoder(&mut self) -> Self::Decoder {
        AsBytes(self.0)
    }
}

/// Leaves questions and answers alone: both are messages' bytes.
pub(super) struct Written;

impl tonic::codec::Codec for Written {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = AsBytes;
    type Decoder = AsBytes;

    fn encoder(&mut self) -> Self::Encoder {
        AsBytes(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        AsBytes(BufferSettings::default())
    }
}

/// A message as its bytes.
pub(super) struct AsBytes(BufferSettings);

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0
    }
}

impl Encoder for AsBytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        buffer.put_slice(&message);
        Ok(())
    }
}

fn has_more_fields(bytes: &[u8], most: usize) -> bool {
    // A field takes two bytes at the least, so that few messages are looked at.
    bytes.len() / 2 > most && count_fields(bytes, most) > most
}

/// How many fields a message has, those within others aside: as far as it can be read, and not more
/// than one beyond `most`.
pub(super) fn count_fields(mut rest: &[u8], most: usize) -> usize {
    let mut fields = 0;
    while fields <= most && !rest.is_empty() {
        let skipped = decode_key(&mut rest).and_then(|(tag, wire_type)| {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default())
        });
        if skipped.is_err() {
            break; // Decoding says what is wrong, and where.
        }
        fields += 1;
    }
    fields
}

fn malformed(error: &prost::DecodeError) -> Status {
    let text = error.to_string();
    let what = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
    let (field, why) = path_of(what);
    refused(field, why)
}

fn refused(field: String, why: &str) -> Status {
    let at = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let message = format!("the bytes are not the message that this call takes: {at}{why}");
    Status::with_error_details(
        tonic::Code::InvalidArgument,
        message,
        ErrorDetails::with_bad_request_violation(field, why),
    )
}

/// The field's path, and what is wrong with it. prost names the innermost field first, each
/// behind its message: "OptIn.category: ConsentEvent.what: RecordEventRequest.event: invalid …".
fn path_of(what: &str) -> (String, &str) {
    let (mut path, mut why) = (Vec::new(), what);
    let mut inner = "";
    while let Some((part, rest)) = why.split_once(": ")
        && let Some((message, field)) = part.split_once('.').filter(|_| !part.contains(' '))
    {
        // prost gives a oneof's own name; its members are called as their messages are.
        let in_oneof = field == "what" && !inner.is_empty();
        path.push(if in_oneof { snake_case(inner) } else { field.to_owned() });
        (inner, why) = (message, rest);
    }
    path.reverse();
    (path.join("."), why)
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (index, c) in name.char_indices() {
        if index > 0 && c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
