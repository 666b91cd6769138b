//! The codecs of gRPC messages: prost's, with an error that names the field at fault; and codecs that
//! pass a message's bytes on, to be read in place.

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
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder(PhantomData)
    }
}

/// The most top-level fields of a message, which are mostly a batch's items. Two MiB hold a million
/// empty ones, which would take fifty times as much memory once decoded.
pub(super) const MAX_FIELDS: usize = 16 * 1024;

/// The buffer of a single request or response. Most are shorter; others make it grow.
const SMALL_BUFFER_BYTES: usize = 512;

/// The buffers of an open stream, one each way. They grow with a message.
const STREAM_BUFFER_BYTES: usize = 4 * 1024;

/// The bytes of a stream's responses that are sent together: a frame of HTTP/2.
const STREAM_YIELD_BYTES: usize = 16 * 1024;

/// Decodes messages with prost.
pub struct ProstDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for ProstDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        decode(bytes, MAX_FIELDS).map(Some)
    }
}

/// Decodes a message of at most `most` top-level fields with prost.
pub(super) fn decode<M: Message + Default>(bytes: Bytes, most: usize) -> Result<M, Status> {
    if has_more_fields(&bytes, most) {
        return Err(refused(String::new(), &format!("more than {most} fields, or items")));
    }
    // tonic's prost codec would answer INTERNAL, as if the fault were the server's.
    M::decode(bytes).map_err(|error| malformed(&error))
}

/// Encodes responses with prost, and passes requests on as bytes.
pub(super) struct RawDecodeCodec<T>(BufferSettings, PhantomData<T>);

impl<T> RawDecodeCodec<T> {
    /// For a unary call with short messages.
    pub(super) fn small() -> Self {
        Self(BufferSettings::new(SMALL_BUFFER_BYTES, SMALL_BUFFER_BYTES), PhantomData)
    }

    /// For many messages, or large ones.
    pub(super) fn large() -> Self {
        Self(BufferSettings::new(STREAM_BUFFER_BYTES, STREAM_YIELD_BYTES), PhantomData)
    }
}

impl<T: Message + Send + 'static> tonic::codec::Codec for RawDecodeCodec<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = ProstEncoder<T>;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(self.0)
    }

    fn decoder(&mut self) -> Self::Decoder {
        BytesCodec(self.0)
    }
}

/// Passes requests and responses on as bytes.
pub(super) struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> Self::Encoder {
        BytesCodec(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BytesCodec(BufferSettings::default())
    }
}

/// Reads and writes a message as its bytes.
pub(super) struct BytesCodec(BufferSettings);

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0
    }
}

impl Encoder for BytesCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        buffer.put_slice(&message);
        Ok(())
    }
}

fn has_more_fields(bytes: &[u8], most: usize) -> bool {
    // A field takes at least two bytes, so few messages need to be counted.
    bytes.len() / 2 > most && count_fields(bytes, most) > most
}

/// Counts the top-level fields of a message, as far as it is well-formed, and up to one beyond `most`.
pub(super) fn count_fields(mut rest: &[u8], most: usize) -> usize {
    let mut fields = 0;
    while fields <= most && !rest.is_empty() {
        let skipped = decode_key(&mut rest).and_then(|(tag, wire_type)| {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default())
        });
        if skipped.is_err() {
            break; // Decoding reports the fault.
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

/// Splits prost's error text into the field's path and the cause. prost names the innermost field
/// first, each with its message: "OptIn.category: ConsentEvent.what: RecordEventRequest.event:
/// invalid …".
fn path_of(what: &str) -> (String, &str) {
    let (mut path, mut why) = (Vec::new(), what);
    let mut inner = "";
    while let Some((part, rest)) = why.split_once(": ")
        && let Some((message, field)) = part.split_once('.').filter(|_| !part.contains(' '))
    {
        // prost names the oneof. Its members have the names of their messages.
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
