//! The wire codec: prost's, but for what it says of bytes that are not the message they should be.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
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
const MAX_FIELDS: usize = 16 * 1024;

/// Decodes messages by prost.
pub struct Prost<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Prost<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if has_too_many_fields(buffer) {
            let why = format!("more than {MAX_FIELDS} fields, or items");
            return Err(refused(String::new(), &why));
        }
        // prost's own codec answers INTERNAL, as if the fault were ours.
        U::decode(buffer).map(Some).map_err(|error| malformed(&error))
    }
}

fn has_too_many_fields(buffer: &DecodeBuf<'_>) -> bool {
    // A field takes two bytes at the least, so that few messages are looked at.
    if buffer.remaining() <= 2 * MAX_FIELDS {
        return false;
    }
    let mut rest = buffer.chunk();
    let mut fields = 0;
    while fields <= MAX_FIELDS && !rest.is_empty() {
        let skipped = decode_key(&mut rest).and_then(|(tag, wire_type)| {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default())
        });
        if skipped.is_err() {
            return false; // Decoding says what is wrong, and where.
        }
        fields += 1;
    }
    fields > MAX_FIELDS
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
