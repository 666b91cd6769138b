//! Hidden characters in ids: invisible ones, and those that look like others. Two ids that differ only
//! in them look equal to people, and would be two users to a program.
//!
//! A plain id has none: it is printable ASCII without spaces at its ends, or Unicode in normalization
//! form NFKC without white space other than inner ASCII spaces, and without control, format and other
//! default-ignorable characters.

use std::borrow::Cow;
use std::fmt;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};

/// A hidden character in a text. Its `Display` has the code point, the name of a frequent one, and the
/// remedy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HiddenChar {
    /// The character.
    pub character: char,
    /// Its offset in bytes of UTF-8, from 0.
    pub offset: usize,
    kind: Kind,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind {
    /// White space at an end.
    Edge,
    /// White space other than the ASCII space.
    Space,
    /// A control character.
    Control,
    /// A character without a glyph.
    Invisible,
    /// A compatibility form of this text.
    Compatible(String),
    /// A combining mark, which makes a precomposed letter with the characters before it.
    Uncomposed,
}

/// Whether a text is printable ASCII without spaces at its ends, as nearly every id is.
#[must_use]
#[inline]
pub fn is_plain_ascii(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first() != Some(&b' ') && bytes.last() != Some(&b' ');
    ends && bytes.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The first hidden character of a text. Allocates nothing for plain ASCII. It takes time in proportion
/// to the text's length, and times the logarithm of it for a text that is not in NFKC.
#[must_use]
pub fn find(text: &str) -> Option<HiddenChar> {
    if is_plain_ascii(text) {
        return None;
    }
    invisible_or_space(text).or_else(|| not_normal(text))
}

/// Whether a text has no hidden character.
fn is_plain(text: &str) -> bool {
    is_plain_ascii(text) || (invisible_or_space(text).is_none() && is_normal(text))
}

/// The first hidden character of a text that is not one by NFKC.
fn invisible_or_space(text: &str) -> Option<HiddenChar> {
    let end = text.len().saturating_sub(text.chars().next_back().map_or(0, char::len_utf8));
    for (offset, character) in text.char_indices() {
        let kind = match invisible(character) {
            _ if character.is_whitespace() && !character.is_control() => match character {
                _ if offset == 0 || offset == end => Kind::Edge,
                ' ' => continue,
                _ => Kind::Space,
            },
            Some(kind) => kind,
            None => continue,
        };
        return Some(HiddenChar { character, offset, kind });
    }
    None
}

/// The text without hidden characters: trimmed, without invisible characters, in NFKC.
#[must_use]
pub fn cleaned(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let seen = |text: &str| -> String {
        text.chars().filter(|c| c.is_whitespace() || invisible(*c).is_none()).collect()
    };
    // Removing an invisible character may let its neighbours compose, and NFKC may produce spaces.
    let normal: String = seen(text).nfkc().collect();
    let spaced: String =
        seen(&normal).chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    Cow::Owned(spaced.trim().to_owned())
}

/// Whether a character has no glyph and is neither a space nor a control character.
pub(crate) fn is_invisible(character: char) -> bool {
    matches!(invisible(character), Some(Kind::Invisible))
}

/// The kind of an invisible character. `None` for a visible one and for spaces.
fn invisible(character: char) -> Option<Kind> {
    if character.is_ascii() {
        return character.is_control().then_some(Kind::Control);
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(character);
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    match category {
        GeneralCategory::Control => Some(Kind::Control),
        GeneralCategory::Format
        | GeneralCategory::LineSeparator
        | GeneralCategory::ParagraphSeparator => Some(Kind::Invisible),
        _ if character == BRAILLE_BLANK || ignorable.contains(character) => Some(Kind::Invisible),
        _ => None,
    }
}

/// The Braille pattern without dots, which fonts show as a space although Unicode calls it a symbol.
const BRAILLE_BLANK: char = '\u{2800}';

/// Whether a text is in NFKC.
fn is_normal(text: &str) -> bool {
    is_nfkc_quick(text.chars()) == IsNormalized::Yes || text.nfkc().eq(text.chars())
}

/// The first character that NFKC changes: the last one of the shortest beginning of the text that is
/// not in NFKC.
///
/// It is found by bisection. Each part of a text in NFKC is in NFKC too (UAX #15, "closed under
/// substrings"), so that all beginnings from the shortest such one on are not in NFKC.
fn not_normal(text: &str) -> Option<HiddenChar> {
    if is_normal(text) {
        return None;
    }
    // The beginning that ends at `normal` is in NFKC, and the one that ends at `changed` is not.
    let (mut normal, mut changed) = (0_usize, text.len());
    let (offset, character) = loop {
        let mut rest = text.get(normal..changed)?.char_indices();
        let (_, first) = rest.next()?;
        if rest.next().is_none() {
            break (normal, first);
        }
        let middle =
            text.ceil_char_boundary(normal.midpoint(changed).max(normal.saturating_add(1)));
        let middle =
            if middle < changed { middle } else { normal.saturating_add(first.len_utf8()) };
        if is_normal(text.get(..middle)?) { normal = middle } else { changed = middle }
    };
    let alone: String = std::iter::once(character).nfkc().collect();
    let is_same = alone.chars().eq(std::iter::once(character));
    let kind = if is_same { Kind::Uncomposed } else { Kind::Compatible(alone) };
    Some(HiddenChar { character, offset, kind })
}

impl fmt::Display for HiddenChar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { character, offset, kind } = self;
        let code = u32::from(*character);
        let name = name(*character).map(|name| format!(" {name}")).unwrap_or_default();
        let named = format!("U+{code:04X}{name} at byte {offset}");
        match kind {
            Kind::Edge => {
                write!(f, "has white space at an end, which nobody sees: {named}; remove it")
            }
            Kind::Space => {
                write!(
                    f,
                    "holds white space that is no ASCII space: {named}; write U+0020 or nothing"
                )
            }
            Kind::Control => write!(f, "holds a control character: {named}; remove it"),
            Kind::Invisible => write!(
                f,
                "holds an invisible character: {named}, as copying from a chat or a spreadsheet \
                 leaves; remove it"
            ),
            Kind::Compatible(plain) => write!(
                f,
                "holds a compatibility form of \"{plain}\": {named}; write \"{plain}\" (Unicode's \
                 NFKC)"
            ),
            Kind::Uncomposed => write!(
                f,
                "holds a mark that makes one letter with what is before it: {named}; write the \
                 letter that has it (Unicode's NFC)"
            ),
        }
    }
}

/// The Unicode names of the most frequent hidden characters.
fn name(character: char) -> Option<&'static str> {
    Some(match character {
        '\0' => "NULL",
        '\t' => "CHARACTER TABULATION",
        '\n' => "LINE FEED",
        '\r' => "CARRIAGE RETURN",
        ' ' => "SPACE",
        '\u{7f}' => "DELETE",
        '\u{a0}' => "NO-BREAK SPACE",
        '\u{ad}' => "SOFT HYPHEN",
        '\u{301}' => "COMBINING ACUTE ACCENT",
        '\u{303}' => "COMBINING TILDE",
        '\u{308}' => "COMBINING DIAERESIS",
        '\u{34f}' => "COMBINING GRAPHEME JOINER",
        '\u{61c}' => "ARABIC LETTER MARK",
        '\u{115f}' => "HANGUL CHOSEONG FILLER",
        '\u{1160}' => "HANGUL JUNGSEONG FILLER",
        '\u{180e}' => "MONGOLIAN VOWEL SEPARATOR",
        '\u{2002}' => "EN SPACE",
        '\u{2003}' => "EM SPACE",
        '\u{2007}' => "FIGURE SPACE",
        '\u{2009}' => "THIN SPACE",
        '\u{200b}' => "ZERO WIDTH SPACE",
        '\u{200c}' => "ZERO WIDTH NON-JOINER",
        '\u{200d}' => "ZERO WIDTH JOINER",
        '\u{200e}' => "LEFT-TO-RIGHT MARK",
        '\u{200f}' => "RIGHT-TO-LEFT MARK",
        '\u{2028}' => "LINE SEPARATOR",
        '\u{2029}' => "PARAGRAPH SEPARATOR",
        '\u{202a}' => "LEFT-TO-RIGHT EMBEDDING",
        '\u{202b}' => "RIGHT-TO-LEFT EMBEDDING",
        '\u{202c}' => "POP DIRECTIONAL FORMATTING",
        '\u{202d}' => "LEFT-TO-RIGHT OVERRIDE",
        '\u{202e}' => "RIGHT-TO-LEFT OVERRIDE",
        '\u{202f}' => "NARROW NO-BREAK SPACE",
        '\u{2060}' => "WORD JOINER",
        '\u{2066}' => "LEFT-TO-RIGHT ISOLATE",
        '\u{2067}' => "RIGHT-TO-LEFT ISOLATE",
        '\u{2068}' => "FIRST STRONG ISOLATE",
        '\u{2069}' => "POP DIRECTIONAL ISOLATE",
        '\u{2800}' => "BRAILLE PATTERN BLANK",
        '\u{3000}' => "IDEOGRAPHIC SPACE",
        '\u{3164}' => "HANGUL FILLER",
        '\u{fe0f}' => "VARIATION SELECTOR-16",
        '\u{feff}' => "ZERO WIDTH NO-BREAK SPACE",
        '\u{ffa0}' => "HALFWIDTH HANGUL FILLER",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_character_is_named_with_its_place() {
        for (text, said) in [
            (" a", "white space at an end, which nobody sees: U+0020 SPACE at byte 0"),
            ("a ", "U+0020 SPACE at byte 1"),
            (
                "a\u{a0}",
                "white space at an end, which nobody sees: U+00A0 NO-BREAK SPACE at byte 1",
            ),
            ("a\u{3000}b", "no ASCII space: U+3000 IDEOGRAPHIC SPACE at byte 1"),
            ("a\u{1680}b", "no ASCII space: U+1680 at byte 1"),
            ("a\tb", "a control character: U+0009 CHARACTER TABULATION at byte 1"),
            ("a\u{85}", "a control character: U+0085 at byte 1"),
            ("abc\u{200b}", "an invisible character: U+200B ZERO WIDTH SPACE at byte 3"),
            ("a\u{ad}b", "U+00AD SOFT HYPHEN at byte 1"),
            ("a\u{202e}b", "U+202E RIGHT-TO-LEFT OVERRIDE at byte 1"),
            ("a\u{3164}b", "U+3164 HANGUL FILLER at byte 1"),
            ("a\u{2800}b", "U+2800 BRAILLE PATTERN BLANK at byte 1"),
            ("a\u{e0041}", "U+E0041 at byte 1"),
            ("\u{2764}\u{fe0f}", "U+FE0F VARIATION SELECTOR-16 at byte 3"),
            ("x\u{ff41}", "a compatibility form of \"a\": U+FF41 at byte 1; write \"a\""),
            ("o\u{fb03}ce", "a compatibility form of \"ffi\": U+FB03 at byte 1"),
            ("\u{ff11}", "a compatibility form of \"1\": U+FF11 at byte 0"),
            (
                "cafe\u{301}",
                "one letter with what is before it: U+0301 COMBINING ACUTE ACCENT at byte 4",
            ),
            ("\u{212b}", "a compatibility form of \"\u{c5}\": U+212B at byte 0"),
        ] {
            let found = find(text).map(|hidden| hidden.to_string()).unwrap_or_default();
            assert!(found.contains(said), "{text:?}: {found}");
        }
    }

    /// A search that tests each beginning of this text would take minutes.
    #[test]
    fn a_hidden_character_far_inside_a_text_is_found() {
        let before = "\u{e9}\u{939}".repeat(20_000);
        for (hidden, offset) in [("\u{ff41}", 0), ("e\u{301}", 1), ("\u{1100}\u{1161}", 3)] {
            for after in [String::new(), "\u{ff41}\u{301}".to_owned(), before.clone()] {
                let text = format!("{before}{hidden}{after}");
                let found = find(&text).map(|found| found.offset);
                assert_eq!(found, Some(before.len() + offset), "{hidden:?}");
            }
            assert!(!cleaned(&format!("{before}{hidden}")).contains(hidden));
        }
    }

    #[test]
    fn visible_text_has_no_hidden_characters() {
        for text in [
            "",
            "US.13491208655302741918",
            "the shop",
            "~!@#",
            "caf\u{e9}",
            "магазин",
            "पुस्तक",
            "متجر",
            "店舗",
            "가게",
            "\u{1f6d2}",
            "a\u{303}\u{330}",
        ] {
            let normal: String = text.nfkc().collect();
            assert_eq!(find(&normal), None, "{text:?}");
            assert_eq!(cleaned(&normal), normal);
        }
    }

    #[test]
    fn a_cleaned_text_has_nothing_hidden_whatever_it_was() {
        for (text, clean) in [
            (" a ", "a"),
            ("\u{200b}US.1\u{feff}", "US.1"),
            ("e\u{200d}\u{301}", "\u{e9}"),
            ("ａｃｍｅ\u{3000}１", "acme 1"),
            ("\u{200b}", ""),
            ("a\tb", "a b"),
        ] {
            assert_eq!(cleaned(text), clean, "{text:?}");
        }
        // Every character, alone and between others.
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = format!("a{character}\u{301}b");
            let clean = cleaned(&text);
            assert_eq!(find(&clean), None, "U+{:04X}", u32::from(character));
        }
    }

    #[test]
    fn two_plain_texts_that_differ_are_seen_to_differ_in_nfkc() {
        // A plain text is its own NFKC, so that no two plain texts have the same one.
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = format!("a{character}b");
            if find(&text).is_none() {
                assert!(text.nfkc().eq(text.chars()), "U+{:04X}", u32::from(character));
            }
        }
    }
}
