//! Questions, read where they lie in a request's bytes: no id is copied, and nothing is allocated
//! for each.
//!
//! Only what usual encoders write is read here. Whatever else may be right or wrong about a
//! message is left to prost, which also says what is wrong; so both take the same messages, and
//! take them for the same.

use prost::encoding::{WireType, decode_key, decode_varint};

use super::pb;

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
        fields(bytes, |tag, value| {
            match tag {
                1 => self.user_id = value.text()?,
                2 => self.business_id = value.text()?,
                3 => self.category = value.text()?,
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
        fields(bytes, |tag, value| {
            if tag == 1 {
                if batch.len() > most {
                    return Err(Unusual);
                }
                batch.push(Self::read(value.bytes()?)?);
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

#[cfg(test)]
mod tests;
