//! The header block of a HEADERS frame, read as far as its `:authority` needs (HPACK, RFC 7541).

use std::borrow::Cow;
use std::ops::Range;

use super::client_frames::{HEADER_BYTES, PADDED, PRIORITY};

/// Where the header block of a HEADERS frame is (RFC 9113, section 6.2).
pub(super) fn header_block(flags: u8, frame: &[u8]) -> Option<Range<usize>> {
    let (mut start, mut end) = (HEADER_BYTES, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(start)?))?;
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    (start <= end).then_some(start..end)
}

/// The symbols of HPACK's Huffman code by the length of their codes in bits, from 5 on (RFC 7541, appendix B). The code is
/// canonical: those of one length count upwards in this order. Longer ones are of bytes that no authority has.
const SYMBOLS: [&[u8]; 11] = [
    b"012aceiost",
    b" %-./3456789=A_bdfghlmnpru",
    b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    b"&*,;XZ",
    b"",
    b"!\"()?",
    b"'+|",
    b"#>",
    b"\0$@[]~",
    b"^}",
    b"<`{",
];
/// Stands for the first byte whose code is longer, and for what follows: it is one of those itself.
const REST: u8 = b'\\';
/// The bits of the shortest code.
const SHORTEST_CODE: u32 = 5;

/// A string literal of HPACK (RFC 7541, section 5.2).
pub(super) struct StringLiteral {
    /// Where its length begins.
    pub(super) start: usize,
    /// Where its encoded bytes are.
    pub(super) encoded: Range<usize>,
    is_huffman: bool,
}

impl StringLiteral {
    /// Reads the string literal that begins here.
    fn read(bytes: &[u8], start: usize) -> Option<Self> {
        let is_huffman = bytes.get(start)? & 0x80 != 0;
        let (length, from) = integer(bytes, start, 7)?;
        let end = from.checked_add(length)?;
        (end <= bytes.len()).then_some(Self { start, encoded: from..end, is_huffman })
    }

    /// What it says, up to a byte that no authority has: [`REST`]. `None` where it is damaged.
    pub(super) fn decode<'b>(&self, bytes: &'b [u8]) -> Option<Cow<'b, [u8]>> {
        let encoded = bytes.get(self.encoded.clone())?;
        if self.is_huffman {
            huffman(encoded).map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(encoded))
        }
    }
}

/// Decodes Huffman's code (RFC 7541, section 5.2), up to [`REST`].
fn huffman(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(encoded.len() * 8 / SHORTEST_CODE as usize);
    // The bits of a code so far, how many they are, and the first code of that length.
    let (mut code, mut bits, mut first) = (0_usize, 0_u32, 0_usize);
    for bit in encoded.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        code = code << 1 | usize::from(bit);
        first <<= 1;
        bits += 1;
        let Some(length) = bits.checked_sub(SHORTEST_CODE) else { continue };
        let Some(symbols) = SYMBOLS.get(length as usize) else {
            decoded.push(REST);
            return Some(decoded);
        };
        if let Some(symbol) = symbols.get(code - first) {
            decoded.push(*symbol);
            (code, bits, first) = (0, 0, 0);
        } else {
            first += symbols.len();
        }
    }
    // The last byte is filled with ones.
    (bits < 8 && code + 1 == 1 << bits).then_some(decoded)
}

/// The string literal of a header block's `:authority`, if it has one (RFC 7541, section 6).
pub(super) fn authority(frame: &[u8], block: Range<usize>) -> Option<StringLiteral> {
    const AUTHORITY_INDEX: usize = 1;
    const AUTHORITY: &[u8] = b":authority";
    let bytes = frame.get(..block.end)?;
    let mut at = block.start;
    while let Some(first) = bytes.get(at) {
        let prefix_bits = match first {
            // An indexed field, which was a literal once.
            0x80.. => {
                at = integer(bytes, at, 7)?.1;
                continue;
            }
            0x40.. => 6,
            // A dynamic table size update.
            0x20.. => {
                at = integer(bytes, at, 5)?.1;
                continue;
            }
            _ => 4,
        };
        let (name, mut value) = integer(bytes, at, prefix_bits)?;
        let mut is_authority = name == AUTHORITY_INDEX;
        if name == 0 {
            let name = StringLiteral::read(bytes, value)?;
            is_authority = name.decode(bytes).is_some_and(|name| *name == *AUTHORITY);
            value = name.encoded.end;
        }
        let found = StringLiteral::read(bytes, value)?;
        if is_authority {
            return Some(found);
        }
        at = found.encoded.end;
    }
    None
}

/// An integer of HPACK (RFC 7541, section 5.1), and where the next byte is.
fn integer(bytes: &[u8], mut at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let mask = (1 << prefix_bits) - 1;
    let mut value = usize::from(*bytes.get(at)?) & mask;
    at += 1;
    if value < mask {
        return Some((value, at));
    }
    // More than four bytes would be longer than any frame.
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*bytes.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huffman_strings_are_decoded_as_the_specification_shows() {
        // RFC 7541, appendix C.4 and C.6.
        for (encoded, decoded) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
            ("", ""),
        ] {
            let encoded = hex::decode(encoded).unwrap();
            assert_eq!(huffman(&encoded).unwrap(), decoded.as_bytes());
        }
        // "a" before a byte of 0xff.
        assert_eq!(huffman(&[0x1f, 0xff, 0xff, 0xf7, 0x7f]).unwrap(), b"a\\");
        // Too much padding, and padding that is not of ones.
        for damaged in [&[0x07, 0xff][..], &[0x00]] {
            assert_eq!(huffman(damaged), None, "{damaged:?}");
        }
    }
}
