//! The normal form by which texts are compared: without case, accents and punctuation, and with single
//! spaces.

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

/// The normal form of a text. It is empty if the text has no letter and no digit.
pub(super) fn normalize(text: &str) -> String {
    // Most texts are ASCII, which has nothing to decompose, and no other folding than to lower case.
    if text.is_ascii() {
        normalize_folded(text.chars().map(|c| c.to_ascii_lowercase()), text.len())
    } else {
        normalize_folded(text.nfkd().default_case_fold().nfkd(), text.len())
    }
}

fn normalize_folded(folded: impl Iterator<Item = char>, capacity: usize) -> String {
    let mut normal = String::with_capacity(capacity);
    for c in folded {
        if c.is_whitespace() {
            if !normal.is_empty() && !normal.ends_with(' ') {
                normal.push(' ');
            }
        } else if c.is_ascii_alphanumeric() {
            normal.push(c);
        } else if c.is_alphanumeric() && canonical_combining_class(c) == 0 && !is_filler(c) {
            normal.push(bare(c));
        }
    }
    normal.truncate(normal.trim_end().len());
    normal
}

/// Letters that only stretch or pad a word: Arabic's kashida and Hangul's fillers.
fn is_filler(c: char) -> bool {
    matches!(c, '\u{640}' | '\u{115f}' | '\u{1160}')
}

/// The base letter of letters with a stroke, which Unicode does not decompose, and one letter for those
/// that people type for one another.
fn bare(c: char) -> char {
    match c {
        'ł' => 'l',
        'đ' | 'ð' => 'd',
        'ø' => 'o',
        'ħ' => 'h',
        'ŧ' => 't',
        // Turkish: `CIK` and `ÇIK` are `çık`, whatever the phone's language.
        'ı' => 'i',
        // Arabic, Urdu and Persian keyboards have different code points for the same letters.
        'ٱ' => 'ا',
        'ى' | 'ی' => 'ي',
        'ک' => 'ك',
        'ة' | 'ہ' | 'ھ' | 'ۃ' => 'ه',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ascii_has_the_normal_form_that_unicode_gives_it(text in "[\\x00-\\x7f]{0,40}") {
            let folded = text.nfkd().default_case_fold().nfkd();
            prop_assert_eq!(normalize(&text), normalize_folded(folded, 0));
        }
    }
}
