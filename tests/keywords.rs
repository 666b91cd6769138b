//! Real-looking messages in many languages, each with what must come of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use consentd::config::ServeArgs;
use consentd_core::keyword::{KeywordBook, Meaning, languages};
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;

const MESSAGES: &str = include_str!("data/keywords.tsv");

/// A business that speaks every language, has a topic of its own, and sells in Spanish.
fn configuration() -> String {
    let spoken = languages().map(|tag| format!("{tag:?}")).collect::<Vec<_>>().join(", ");
    format!(
        "[keywords]\nlanguages = [{spoken}]\ntopics = [\"marketing.offers\"]\n\
         [[keywords.opt-out]]\nscope = \"marketing.offers\"\nwords = [\"parar ofertas\"]\n\
         locale = \"es\"\n\
         [keywords.business.acme]\n\
         [[keywords.business.acme.opt-in]]\nwords = [\"start\", \"unstop\", \"subscribe\"]\n\
         category = \"marketing\"\nbusiness-name = \"Acme\"\n\
         statement = \"Reply START for offers from Acme on WhatsApp\"\n"
    )
}

fn book() -> KeywordBook {
    let args = ServeArgs::from_toml(&configuration()).unwrap();
    KeywordBook::new(args.settings().unwrap().keywords)
}

/// A pair with a topic that is not configured.
fn state() -> State {
    let mut state = State::default();
    let scope = Scope::parse("utility.order_updates").unwrap();
    state.apply(&Effect::Choice(scope, Choice::opt_in(Timestamp::MIN, None))).unwrap();
    state
}

/// A message without the escapes for what an editor does not show.
fn unescaped(text: &str) -> String {
    let text = text.replace("\\n", "\n").replace("\\t", "\t");
    let mut parts = text.split("\\u{");
    let mut unescaped = parts.next().unwrap().to_owned();
    for part in parts {
        let (code, rest) = part.split_once('}').unwrap();
        unescaped.push(char::from_u32(u32::from_str_radix(code, 16).unwrap()).unwrap());
        unescaped.push_str(rest);
    }
    unescaped
}

/// Language, what must come of it, message.
fn rows() -> Vec<(&'static str, &'static str, String)> {
    let lines = MESSAGES.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let mut cells = line.split('\t');
        let row = (cells.next().unwrap(), cells.next().unwrap(), unescaped(cells.next().unwrap()));
        assert_eq!(cells.next(), None, "{line}");
        row
    };
    lines.map(row).collect()
}

#[test]
fn every_message_means_what_it_must() {
    let (book, state) = (book(), state());
    let mut wrong = String::new();
    for (language, expected, text) in rows() {
        let heard = book.of("acme").meaning(&text, &state);
        let meant = match heard.as_ref().map(|heard| &heard.meaning) {
            None => "-".to_owned(),
            Some(Meaning::Confirm) => "yes".to_owned(),
            Some(Meaning::OptIn(_)) => "start".to_owned(),
            Some(Meaning::OptOut(scopes)) => {
                scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", ")
            }
        };
        if meant != expected {
            writeln!(wrong, "{language} {text:?}: {meant} and not {expected}").unwrap();
        }
        if let Some(heard) = heard {
            // What is told means the same, so that a bot can say it back.
            let again = book.of("acme").meaning(&heard.keyword, &state);
            assert_eq!(again.map(|again| again.meaning), Some(heard.meaning), "{text:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn there_are_messages_enough_in_every_language() {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (language, expected, _) in rows() {
        let [opting_out, confirming, nothing] = counts.entry(language).or_default();
        *match expected {
            "-" => nothing,
            "yes" | "start" => confirming,
            _ => opting_out,
        } += 1;
    }
    let spoken: Vec<_> = languages().collect();
    assert_eq!(counts.len(), spoken.len());
    assert!(counts.len() >= 12);
    for language in spoken {
        let [opting_out, confirming, nothing] = counts[language];
        assert!(opting_out >= 12 && confirming >= 1 && nothing >= 10, "{language}: {counts:?}");
    }
    assert!(counts.values().flatten().sum::<usize>() >= 300);
}

#[test]
fn a_language_is_told_with_its_words() {
    let (book, state) = (book(), state());
    let told = |business: &str, text: &str| {
        let heard = book.of(business).meaning(text, &state).unwrap();
        (heard.keyword, heard.locale)
    };
    for (text, keyword, locale) in [
        ("ARRET", "arrêt", "fr"),
        ("Huy dang ky!", "hủy đăng ký", "vi"),
        ("parar ofertas", "parar ofertas", "es"),
        ("الغاء الاشتراك", "إلغاء الاشتراك", "ar"),
        ("STOP", "stop", ""),
        // Spanish comes before Portuguese in the business's languages.
        ("cancelar", "cancelar", "es"),
    ] {
        assert_eq!(told("acme", text), (keyword.to_owned(), locale.to_owned()), "{text}");
    }
}

#[test]
fn a_statement_of_one_business_opts_nobody_in_at_another() {
    let book = book();
    assert!(book.of("acme").meaning("start", &State::default()).is_some());
    for other in ["globex", "ACME", ""] {
        assert!(book.of(other).meaning("start", &State::default()).is_none());
        assert!(book.of(other).meaning("parar ofertas", &State::default()).is_some());
    }
}
