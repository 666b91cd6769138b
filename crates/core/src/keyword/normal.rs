//! What is compared: a text without case, accents, punctuation, or more than single spaces.

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

/// A text's normal form. Empty where there is no letter and no digit in it.
pub(super) fn normal(text: &str) -> String {
    let folded = text.nfkd().default_case_fold().nfkd();
    let mut normal = String::new();
    for c in folded {
        if c.is_whitespace() {
            if !normal.is_empty() && !normal.ends_with(' ') {
                normal.push(' ');
            }
        } else if c.is_alphanumeric() && canonical_combining_class(c) == 0 && !is_filler(c) {
            normal.push(bare(c));
        }
    }
    normal.truncate(normal.trim_end().len());
    normal
}

/// Letters that only stretch a word or fill a place: Arabic's kashida and Hangul's fillers.
fn is_filler(c: char) -> bool {
    matches!(c, '\u{640}' | '\u{115f}' | '\u{1160}')
}

/// The letter without its accent, where Unicode takes the two together for a letter of its own;
/// and of those that people type for one another, one.
fn bare(c: char) -> char {
    match c {
        'ł' => 'l',
        'đ' | 'ð' => 'd',
        'ø' => 'o',
        'ħ' => 'h',
        'ŧ' => 't',
        // Turkish: `CIK` and `ÇIK` are `çık`, whatever the phone's language.
        'ı' => 'i',
        // Arabic, Urdu and Persian: the same letters by their keyboards.
        'ٱ' => 'ا',
        'ى' | 'ی' => 'ي',
        'ک' => 'ك',
        'ة' | 'ہ' | 'ھ' | 'ۃ' => 'ه',
        c => c,
    }
}
