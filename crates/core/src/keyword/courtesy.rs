//! Opt-outs that are repeated or polite: `STOP STOP`, `please stop`, `stop now, thank you`.
//!
//! Such a text consists of listed opt-outs and courtesies alone, so that nothing is guessed: one
//! other word makes it a sentence (`please stop by`), which is left to people.

use std::collections::BTreeSet;
use std::iter;
use std::sync::LazyLock;

use super::normalize::normalize;

/// Words that people put around an opt-out in each language: *please*, *thank you*, *now*. None of
/// them changes what the opt-out means, and none negates: `ok` and `no` are answers and not here.
///
/// They count in all languages, because many are borrowed (`बंद करो please`).
const COURTESIES: &[(&str, &[&str])] = &[
    (
        "en",
        &[
            "please",
            "pls",
            "plz",
            "kindly",
            "thanks",
            "thank you",
            "thank you very much",
            "many thanks",
            "thx",
            "now",
            "right now",
            "immediately",
            "at once",
        ],
    ),
    ("es", &["por favor", "porfavor", "porfa", "gracias", "muchas gracias", "ahora"]),
    ("pt", &["por favor", "pfv", "pf", "obrigado", "obrigada", "muito obrigado", "agora"]),
    (
        "fr",
        &[
            "s'il vous plaît",
            "s’il te plaît",
            "svp",
            "stp",
            "merci",
            "merci beaucoup",
            "maintenant",
            "immédiatement",
        ],
    ),
    ("de", &["bitte", "danke", "vielen dank", "danke schön", "jetzt", "sofort"]),
    ("it", &["per favore", "per piacere", "grazie", "grazie mille", "adesso", "subito", "ora"]),
    ("nl", &["alsjeblieft", "alstublieft", "aub", "graag", "bedankt", "dank u", "dank je", "nu"]),
    ("pl", &["proszę", "dziękuję", "dzięki", "teraz", "natychmiast"]),
    ("ru", &["пожалуйста", "спасибо", "сейчас", "немедленно"]),
    ("tr", &["lütfen", "teşekkürler", "teşekkür ederim", "sağ olun", "hemen", "şimdi"]),
    ("ar", &["من فضلك", "من فضلكم", "لو سمحت", "رجاء", "الرجاء", "شكرا", "شكراً لك", "الآن", "فورا"]),
    ("he", &["בבקשה", "תודה", "תודה רבה", "עכשיו", "מיד", "נא"]),
    (
        "hi",
        &["कृपया", "प्लीज़", "प्लीज", "धन्यवाद", "शुक्रिया", "अभी", "तुरंत", "kripya", "dhanyavad", "abhi"],
    ),
    ("ur", &["براہ کرم", "برائے مہربانی", "پلیز", "شکریہ", "ابھی", "فوراً"]),
    ("bn", &["দয়া করে", "প্লিজ", "অনুগ্রহ করে", "ধন্যবাদ", "এখনই", "এখন"]),
    ("id", &["tolong", "mohon", "terima kasih", "makasih", "sekarang", "sekarang juga", "segera"]),
    ("vi", &["làm ơn", "vui lòng", "xin vui lòng", "cảm ơn", "xin cảm ơn", "ngay", "ngay bây giờ"]),
    (
        "zh",
        &[
            "请",
            "請",
            "麻烦",
            "麻煩",
            "谢谢",
            "謝謝",
            "谢谢你",
            "感谢",
            "感謝",
            "立即",
            "马上",
            "馬上",
            "现在",
            "現在",
        ],
    ),
    (
        "ja",
        &[
            "してください",
            "して下さい",
            "お願いします",
            "をお願いします",
            "お願い致します",
            "ありがとう",
            "ありがとうございます",
            "ありがとうございました",
            "今すぐ",
            "すぐに",
        ],
    ),
    (
        "ko",
        &[
            "제발",
            "부탁합니다",
            "부탁드립니다",
            "부탁드려요",
            "해주세요",
            "해 주세요",
            "감사합니다",
            "고맙습니다",
            "지금",
            "당장",
            "즉시",
        ],
    ),
    ("sw", &["tafadhali", "asante", "asante sana", "ahsante", "sasa", "sasa hivi"]),
];

static NORMAL_FORMS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    COURTESIES.iter().flat_map(|(_, words)| *words).map(|word| normalize(word)).collect()
});

/// The longest courtesy, in bytes of its normal form.
static LONGEST_BYTES: LazyLock<usize> =
    LazyLock::new(|| NORMAL_FORMS.iter().map(String::len).max().unwrap_or(0));

/// Whether a text, in its normal form, is a courtesy.
fn is_courtesy(text: &str) -> bool {
    NORMAL_FORMS.contains(text)
}

/// The opt-outs in a text that has nothing but opt-outs and courtesies, or nothing if it has
/// anything else.
///
/// `text` is in its normal form. `opt_out` looks up a phrase of at most `longest_bytes` bytes.
/// Phrases may share no word, and a phrase ends where a word does; Chinese, Japanese and Korean are
/// written without blanks, so there each character may end one.
pub(super) fn opt_outs<'a, T>(
    text: &'a str,
    longest_bytes: usize,
    opt_out: impl Fn(&'a str) -> Option<T>,
) -> Vec<T> {
    let longest = longest_bytes.max(*LONGEST_BYTES);
    let ends: Vec<usize> = boundaries(text).collect();
    // Dynamic programming over the boundaries: for each that phrases can reach from the start, the
    // last phrase, and the boundary before it.
    let mut phrases: Vec<Option<(Option<usize>, Option<T>)>> = Vec::new();
    phrases.resize_with(ends.len(), || None);
    let starts = iter::once(0).chain(ends.iter().copied());
    for (from, start) in starts.enumerate() {
        let last = from.checked_sub(1);
        if !last.is_none_or(|last| phrases.get(last).is_some_and(Option::is_some)) {
            continue;
        }
        for (to, end) in ends.iter().enumerate().skip(from) {
            let phrase = text.get(start..*end).unwrap_or_default().trim();
            if phrase.len() > longest {
                break;
            }
            let found = opt_out(phrase);
            let Some(slot) = phrases.get_mut(to) else { break };
            if slot.as_ref().is_none_or(|(_, before)| before.is_none())
                && (found.is_some() || (slot.is_none() && is_courtesy(phrase)))
            {
                *slot = Some((last, found));
            }
        }
    }
    let mut opt_outs = Vec::new();
    let mut at = ends.len().checked_sub(1);
    while let Some(end) = at {
        let Some((last, found)) = phrases.get_mut(end).and_then(Option::take) else {
            return Vec::new();
        };
        opt_outs.extend(found);
        at = last;
    }
    opt_outs
}

/// A text without the courtesies before and after it.
///
/// Only as many bytes as the longest courtesy has are read for each one, so that a long text of
/// courtesies takes linear time.
pub(super) fn without_courtesies(text: &str) -> &str {
    let mut rest = text;
    loop {
        let before = rest.match_indices(' ').take_while(|(at, _)| *at <= *LONGEST_BYTES);
        let before = before.filter_map(|(at, _)| {
            let (first, rest) = rest.split_at_checked(at)?;
            is_courtesy(first).then(|| rest.trim_start())
        });
        let after = || {
            let longest = rest.len().saturating_sub(*LONGEST_BYTES);
            let after =
                rest.rmatch_indices(' ').take_while(move |(at, _)| at.saturating_add(1) >= longest);
            after.filter_map(|(at, _)| {
                let (rest, last) = rest.split_at_checked(at)?;
                is_courtesy(last.trim_start()).then_some(rest)
            })
        };
        // The longest courtesy on each side.
        match before.last().or_else(|| after().last()) {
            Some(shorter) => rest = shorter,
            None => return rest,
        }
    }
}

/// Where a phrase may end: after each word, and after each character of a script without blanks.
fn boundaries(text: &str) -> impl Iterator<Item = usize> + '_ {
    let ends = text.char_indices().map(|(at, c)| (at.saturating_add(c.len_utf8()), c));
    ends.filter(|&(end, c)| {
        let next = text.get(end..).and_then(|rest| rest.chars().next());
        c != ' ' && next.is_none_or(|next| next == ' ' || has_no_blanks(c) || has_no_blanks(next))
    })
    .map(|(end, _)| end)
}

/// Whether a character is of a script that is written without blanks between words, or, as Korean's
/// `취소해주세요`, often is: kana, ideographs, and the letters that Hangul is decomposed into.
fn has_no_blanks(c: char) -> bool {
    matches!(c,
        '\u{1100}'..='\u{11ff}'
        | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}')
}

#[cfg(test)]
mod tests {
    use super::super::languages::{LANGUAGES, OPT_OUT_MARKETING};
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let listed = ["stop", "stop all", "停止", "remove me"];
        opt_outs(text, 16, |phrase| listed.contains(&phrase).then_some(phrase))
    }

    #[test]
    fn courtesies_are_no_keywords_and_have_letters() {
        let keywords: BTreeSet<String> = LANGUAGES
            .iter()
            .flat_map(|language| [language.opt_out, language.before_topic, language.confirm])
            .flatten()
            .chain(OPT_OUT_MARKETING.iter().map(|(_, word)| word))
            .map(|word| normalize(word))
            .collect();
        for (tag, words) in COURTESIES {
            assert!(LANGUAGES.iter().any(|language| language.tag == *tag), "{tag}");
            for word in *words {
                assert!(
                    !normalize(word).is_empty() && !keywords.contains(&normalize(word)),
                    "{word}"
                );
            }
        }
        for language in LANGUAGES.iter().filter(|language| !language.tag.is_empty()) {
            assert!(COURTESIES.iter().any(|(tag, _)| *tag == language.tag), "{}", language.tag);
        }
    }

    #[test]
    fn text_of_opt_outs_and_courtesies_has_its_opt_outs() {
        assert_eq!(found("stop"), ["stop"]);
        assert_eq!(found("stop stop"), ["stop", "stop"]);
        assert_eq!(found("please stop all now thank you"), ["stop all"]);
        assert_eq!(found("thank you stop remove me").len(), 2);
        assert_eq!(found("请停止停止谢谢"), ["停止", "停止"]);
        assert_eq!(found("please 停止"), ["停止"]);
    }

    #[test]
    fn text_with_any_other_word_has_none() {
        for text in
            ["", "please", "thank you", "stop it", "please stop by", "dont stop", "不要停止"]
        {
            assert_eq!(found(text), [""; 0], "{text}");
        }
        // Words are not cut where they have blanks between them.
        assert_eq!(found("stopstop"), [""; 0]);
        assert_eq!(found("stopplease"), [""; 0]);
    }

    #[test]
    fn longest_message_is_read_in_one_pass() {
        let text = "stop ".repeat(3_000);
        assert_eq!(found(text.trim_end()).len(), 3_000);
        let text = "停".repeat(5_000);
        assert_eq!(found(&text), [""; 0]);
    }

    #[test]
    fn courtesies_around_a_text_are_taken_off() {
        assert_eq!(without_courtesies("please stop offers right now thank you"), "stop offers");
        assert_eq!(without_courtesies("stop now offers"), "stop now offers");
        assert_eq!(without_courtesies("stop offers now thank you very much"), "stop offers");
        assert_eq!(without_courtesies("please"), "please");
        let long = format!("{}stop offers{}", "now ".repeat(2_000), " thank you".repeat(1_000));
        assert_eq!(without_courtesies(&long), "stop offers");
        assert_eq!(without_courtesies(""), "");
    }
}
