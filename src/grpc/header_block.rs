//! The header block of a HEADERS frame, read as far as its `:authority` needs (HPACK, RFC 7541).

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

/// A text of HPACK that is not encoded by Huffman's code.
pub(super) struct Literal {
    /// Where its length begins.
    pub(super) start: usize,
    pub(super) text: Range<usize>,
}

/// The literal `:authority` of a header block, if it has one (RFC 7541, section 6).
pub(super) fn authority(frame: &[u8], block: Range<usize>) -> Option<Literal> {
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
            // A new size of the table.
            0x20.. => {
                at = integer(bytes, at, 5)?.1;
                continue;
            }
            _ => 4,
        };
        let (name, mut value) = integer(bytes, at, prefix_bits)?;
        let mut is_authority = name == AUTHORITY_INDEX;
        if name == 0 {
            let name = text(bytes, value)?;
            is_authority = bytes.get(name.clone())? == AUTHORITY;
            value = name.end;
        }
        let found = text(bytes, value)?;
        if is_authority {
            let is_plain = bytes.get(value)? & 0x80 == 0;
            return is_plain.then_some(Literal { start: value, text: found });
        }
        at = found.end;
    }
    None
}

/// Where a text is whose length begins here.
fn text(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let (length, start) = integer(bytes, at, 7)?;
    let end = start.checked_add(length)?;
    (end <= bytes.len()).then_some(start..end)
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
