//! Texts that opt out: the words of the rules, and what may stand around them.

use std::collections::BTreeSet;

use super::CLASSES;

/// > Opt-out of `*` by default: …  (the English ones)
#[rustfmt::skip]
const STOP_WORDS: [&str; 10] = [
    "stop", "stopall", "unsubscribe", "cancel", "end", "quit", "revoke", "optout", "opt out",
    "remove",
];

/// > after trimming, case folding, and dropping accents and punctuation
///
/// decided: whatever is neither alphanumeric nor white space is dropped.
/// choice: white space inside is collapsed to one space.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            'á' | 'à' | 'â' | 'ä' | 'ã' | 'å' => plain.push('a'),
            'é' | 'è' | 'ê' | 'ë' => plain.push('e'),
            'í' | 'ì' | 'î' | 'ï' => plain.push('i'),
            'ó' | 'ò' | 'ô' | 'ö' | 'õ' => plain.push('o'),
            'ú' | 'ù' | 'û' | 'ü' => plain.push('u'),
            'ç' => plain.push('c'),
            'ñ' => plain.push('n'),
            '\u{300}'..='\u{36f}' => {} // combining accents
            c if c.is_alphanumeric() || c.is_whitespace() => plain.push(c),
            _ => {}
        }
    }
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// > courtesies around it
const COURTESIES: [&str; 4] = ["please", "thank you", "thanks", "now"];

/// What is left of a text once one of these phrases is taken off its start.
fn after<'a>(text: &'a str, phrases: &[&str]) -> Option<&'a str> {
    let rest = phrases.iter().find_map(|phrase| {
        let rest = text.strip_prefix(phrase)?;
        (rest.is_empty() || rest.starts_with(' ')).then_some(rest)
    });
    rest.map(str::trim_start)
}

/// Whether a text has opt-outs of everything and courtesies alone, and an opt-out at least.
fn insists(mut text: &str) -> bool {
    let mut stops = 0;
    while !text.is_empty() {
        let stopped = after(text, &STOP_WORDS);
        stops += usize::from(stopped.is_some());
        match stopped.or_else(|| after(text, &COURTESIES)) {
            Some(rest) => text = rest,
            None => return false,
        }
    }
    stops > 0
}

/// The scopes that a text opts out of, sorted, for a pair that has `scopes`.
///
/// > A text is a keyword only as a whole
/// > An opt-out may be repeated and have courtesies around it
pub(super) fn stopped_by(text: &str, scopes: &BTreeSet<String>) -> Vec<String> {
    let text = plain(text);
    if insists(&text) {
        return vec!["*".to_owned()];
    }
    let as_written = stopped_by_phrase(&text, scopes);
    if !as_written.is_empty() {
        return as_written;
    }
    let mut bare = text.as_str();
    while let Some(rest) = after(bare, &COURTESIES) {
        bare = rest;
    }
    while let Some(rest) = COURTESIES.iter().find_map(|courtesy| bare.strip_suffix(courtesy)) {
        bare = rest.trim_end();
    }
    stopped_by_phrase(bare, scopes)
}

/// The scopes that a text without courtesies opts out of.
fn stopped_by_phrase(text: &str, scopes: &BTreeSet<String>) -> Vec<String> {
    // decided: the lists go first, then the classes, then the topics.
    let listed = match text {
        text if STOP_WORDS.contains(&text) => Some("*"),
        // > "stop promotions" (WhatsApp's own button) → `marketing`
        "stop promotions" => Some("marketing"),
        // > `stop <topic or class>` opts out of that alone.
        text => CLASSES.iter().map(|(_, class)| *class).find(|c| text == format!("stop {c}")),
    };
    if let Some(scope) = listed {
        return vec![scope.to_owned()];
    }
    let Some(named) = text.strip_prefix("stop ") else { return vec![] };
    // decided: compared without spaces and underscores on both sides; `utility.order_updates`
    // names that category.
    // choice: only topics that the pair has a word on are known, and all of that name are meant.
    let bare = |name: &str| plain(name).replace(' ', "");
    let is_named = |scope: &&String| {
        let topic = scope.split_once('.').map(|(_, topic)| topic);
        topic.is_some_and(|topic| [bare(topic), bare(scope)].contains(&bare(named)))
    };
    scopes.iter().filter(is_named).cloned().collect()
}

// ---- Recording and deciding ----------------------------------------------------------------
