//! The wire codec: prost's, but for what it says of bytes that are not the message they should be.

use std::marker::PhantomData;

use prost::Message;
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

/// Decodes messages by prost.
pub struct Prost<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Prost<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // prost's own codec answers INTERNAL, as if the fault were ours.
        U::decode(buffer).map(Some).map_err(|error| malformed(&error))
    }
}

fn malformed(error: &prost::DecodeError) -> Status {
    let text = error.to_string();
    // "failed to decode Protobuf message: CanSendRequest.user_id: invalid string value: …": the
    // path ends at the last part without a space, and its message's name is not part of a field.
    let what = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
    let field = what.split(": ").next().filter(|part| !part.contains(' '));
    let field = field.and_then(|part| part.split_once('.')).map_or("", |(_, field)| field);
    let message = format!("the bytes are not the message that this call takes: {what}");
    Status::with_error_details(
        tonic::Code::InvalidArgument,
        message,
        ErrorDetails::with_bad_request_violation(field, what),
    )
}
