//! What an inbound text means, where the whole of it is a keyword.
//!
//! A text is compared as a whole, after trimming, case folding, and dropping accents and
//! punctuation: `Stop.` is a keyword, `we must stop this bill` is not. Nothing is guessed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

use super::event::Evidence;
use super::scope::{Class, Scope};
use super::state::State;

/// A longer text is no keyword, in bytes of UTF-8: four times WhatsApp's longest message.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Words that opt out of everything: English ones, which US carriers and WhatsApp's own tools
/// know, and the usual ones of eight other languages.
const OPT_OUT_ALL: &[&str] = &[
    // English
    "stop",
    "stopall",
    "stop all",
    "unsubscribe",
    "cancel",
    "end",
    "quit",
    "revoke",
    "optout",
    "opt out",
    "remove",
    // Spanish
    "parar",
    "pare",
    "alto",
    "detener",
    "basta",
    "baja",
    "darme de baja",
    "dar de baja",
    "cancelar",
    "desuscribir",
    "desuscribirme",
    "salir",
    "no más",
    // Portuguese
    "sair",
    "descadastrar",
    "cancelar inscrição",
    "remover",
    "pare de enviar",
    // French
    "arrêt",
    "arrêter",
    "arrêtez",
    "désabonner",
    "me désabonner",
    "désabonnement",
    "désinscrire",
    "désinscription",
    "annuler",
    "fin",
    // German
    "stopp",
    "abmelden",
    "abbestellen",
    "austragen",
    "beenden",
    "ende",
    "kündigen",
    // Italian
    "ferma",
    "fermare",
    "fermati",
    "cancella",
    "cancellami",
    "annulla",
    "disiscrivi",
    "disiscrivimi",
    "annulla iscrizione",
    "rimuovi",
    // Hindi, in its own script and as typed in Latin letters
    "रोकें",
    "रोको",
    "रुको",
    "रुकें",
    "बंद",
    "बंद करो",
    "बंद करें",
    "रद्द करें",
    "सदस्यता रद्द करें",
    "स्टॉप",
    "band karo",
    "band kare",
    "roko",
    // Indonesian
    "berhenti",
    "hentikan",
    "batal",
    "batalkan",
    "keluar",
    "berhenti langganan",
    "berhenti berlangganan",
    // Arabic
    "توقف",
    "أوقف",
    "إيقاف",
    "إلغاء",
    "إلغاء الاشتراك",
    "قف",
    "كفى",
    "ستوب",
];

/// WhatsApp's own button, which stops marketing alone.
const OPT_OUT_MARKETING: &[&str] = &["stop promotions"];

/// Words that confirm a double opt-in while one is pending.
const CONFIRM: &[&str] = &["yes"];

/// What an operator may set of the keywords.
#[derive(Clone, Debug)]
pub struct KeywordLists {
    /// Words that opt out, and what of.
    pub opt_out: Vec<(Scope, Vec<String>)>,
    /// Topics that `stop <topic>` may name, besides those of the pair's own scopes.
    pub topics: Vec<Scope>,
    /// Words that opt in, and the consent that they stand for.
    pub opt_in: Vec<OptInKeyword>,
    /// Words that confirm a pending double opt-in.
    pub confirm: Vec<String>,
}

/// The consent that a word such as `start` stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptInKeyword {
    /// The words.
    pub words: Vec<String>,
    /// What they opt in to.
    pub category: Scope,
    /// What was said to users of them; its reference is filled in from the message.
    pub evidence: Evidence,
}

impl Default for KeywordLists {
    fn default() -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            opt_out: vec![
                (Scope::All, owned(OPT_OUT_ALL)),
                (Scope::Class(Class::Marketing), owned(OPT_OUT_MARKETING)),
            ],
            topics: Vec::new(),
            opt_in: Vec::new(),
            confirm: owned(CONFIRM),
        }
    }
}

/// What a text asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// To opt out of these scopes; one, but where a topic is known under several classes.
    OptOut(Vec<Scope>),
    /// To opt in as configured.
    OptIn(Arc<OptInKeyword>),
    /// To confirm what is pending.
    Confirm,
}

enum Word {
    OptOut(Scope),
    OptIn(Arc<OptInKeyword>),
    Confirm,
}

/// The keywords, ready to be compared.
pub struct Keywords {
    words: HashMap<String, Word>,
    topics: Vec<Scope>,
}

impl Keywords {
    /// Prepares the lists. A word that is on several of them opts out.
    #[must_use]
    pub fn new(lists: KeywordLists) -> Self {
        let mut words = HashMap::new();
        for word in &lists.confirm {
            words.insert(normal(word), Word::Confirm);
        }
        for keyword in lists.opt_in {
            let keyword = Arc::new(keyword);
            for word in &keyword.words {
                words.insert(normal(word), Word::OptIn(Arc::clone(&keyword)));
            }
        }
        // From the narrowest to the broadest, so that the broadest stands.
        let mut opt_out = lists.opt_out;
        opt_out.sort_by(|(a, _), (b, _)| b.cmp(a));
        for (scope, listed) in opt_out {
            for word in listed {
                words.insert(normal(&word), Word::OptOut(scope.clone()));
            }
        }
        words.remove("");
        Self { words, topics: lists.topics }
    }

    /// What `text` asks for, where the whole of it is a keyword.
    #[must_use]
    pub fn meaning(&self, text: &str, state: &State) -> Option<Meaning> {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let text = normal(text);
        match self.words.get(&text) {
            Some(Word::OptOut(scope)) => Some(Meaning::OptOut(vec![scope.clone()])),
            Some(Word::OptIn(keyword)) => Some(Meaning::OptIn(Arc::clone(keyword))),
            Some(Word::Confirm) => Some(Meaning::Confirm),
            None => self.named_scopes(text.strip_prefix("stop ")?, state).map(Meaning::OptOut),
        }
    }

    /// The scopes that `stop <name>` means: a class, or a topic that the pair has or that is
    /// configured, in every class that has it.
    fn named_scopes(&self, name: &str, state: &State) -> Option<Vec<Scope>> {
        if let Some(class) = Class::from_name(name) {
            return Some(vec![Scope::Class(class)]);
        }
        let name = name.replace(' ', "");
        let is_meant = |scope: &&Scope| {
            matches!(scope, Scope::Topic(class, topic)
                if topic.replace('_', "") == name
                    || format!("{}{}", class.name(), topic.replace('_', "")) == name)
        };
        let known = self.topics.iter().chain(state.scopes.keys());
        let meant: BTreeSet<Scope> = known.filter(is_meant).cloned().collect();
        (!meant.is_empty()).then(|| meant.into_iter().collect())
    }
}

/// A text without case, accents, punctuation, or more than single spaces.
fn normal(text: &str) -> String {
    let folded = text.nfkd().default_case_fold().nfkd();
    let mut normal = String::new();
    for c in folded {
        if c.is_whitespace() {
            if !normal.is_empty() && !normal.ends_with(' ') {
                normal.push(' ');
            }
        } else if c.is_alphanumeric() && canonical_combining_class(c) == 0 {
            normal.push(c);
        }
    }
    normal.truncate(normal.trim_end().len());
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consent::event::Method;
    use crate::consent::state::{Effect, Word as Said};
    use crate::consent::time::Timestamp;

    fn keywords() -> Keywords {
        let start = OptInKeyword {
            words: vec!["start".into(), "stop".into()],
            category: Scope::Class(Class::Utility),
            evidence: Evidence {
                method: Method::Whatsapp,
                statement: "Reply START for WhatsApp messages from Acme".into(),
                business_name: "Acme".into(),
                locale: "en".into(),
                reference: String::new(),
                confirmation: String::new(),
            },
        };
        Keywords::new(KeywordLists {
            opt_in: vec![start],
            topics: vec![Scope::parse("marketing.daily_deals").unwrap()],
            ..KeywordLists::default()
        })
    }

    fn state() -> State {
        let mut state = State::default();
        for scope in ["utility.order_updates", "marketing.news", "service.news"] {
            let said = Said::opt_in(Timestamp::MIN, None);
            state.apply(&Effect::Word(Scope::parse(scope).unwrap(), said)).unwrap();
        }
        state
    }

    fn opts_out(text: &str) -> Option<String> {
        match keywords().meaning(text, &state())? {
            Meaning::OptOut(scopes) => {
                Some(scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", "))
            }
            _ => None,
        }
    }

    #[test]
    fn whole_texts_opt_out() {
        for text in [
            "STOP",
            "Stop.",
            " stop \n",
            "stop!!!",
            "S.T.O.P",
            "ＳＴＯＰ",
            "stop 🛑",
            "Stop-All",
            "stop  all",
            "opt-out",
            "OPT OUT",
            "Opt_out",
            "unsubscribe",
            "Arrêt",
            "ARRET",
            "arre\u{302}t",
            "désabonner",
            "BAJA",
            "No mas",
            "Cancelar inscricao",
            "Stopp",
            "kundigen",
            "ferma",
            "बंद करें",
            "रोकें।",
            "berhenti",
            "توقف",
            "الغاء الاشتراك",
            "إيقافْ",
            "\u{200f}إلغاء",
            "\"stop\"",
        ] {
            assert_eq!(opts_out(text).as_deref(), Some("*"), "{text}");
        }
    }

    #[test]
    fn named_scopes_opt_out_of_those_alone() {
        for (text, scopes) in [
            ("Stop promotions", "marketing"),
            ("stop marketing", "marketing"),
            ("STOP Utility!", "utility"),
            ("stop order updates", "utility.order_updates"),
            ("Stop order_updates.", "utility.order_updates"),
            ("stop utility.order_updates", "utility.order_updates"),
            ("stop daily deals", "marketing.daily_deals"),
            ("stop news", "marketing.news, service.news"),
        ] {
            assert_eq!(opts_out(text).as_deref(), Some(scopes), "{text}");
        }
    }

    #[test]
    fn other_texts_do_not() {
        for text in [
            "",
            " ",
            ".",
            "we must stop this bill",
            "don't stop",
            "stop it",
            "please stop by",
            "Does it come in another color?",
            "stopp ing",
            "the end",
            "yes please",
            "stop weather",
            "non stop",
            "cancel my order",
            "end of may",
            "weekend",
            "bandana",
        ] {
            assert_eq!(keywords().meaning(text, &state()), None, "{text}");
        }
        assert_eq!(keywords().meaning(&"stop ".repeat(9_000), &state()), None);
    }

    #[test]
    fn opting_in_is_only_as_configured() {
        let plain = Keywords::new(KeywordLists::default());
        for text in ["start", "unstop", "subscribe"] {
            assert_eq!(plain.meaning(text, &state()), None, "{text}");
        }
        assert!(matches!(keywords().meaning("Start!", &state()), Some(Meaning::OptIn(_))));
        assert_eq!(keywords().meaning("YES.", &state()), Some(Meaning::Confirm));
    }

    #[test]
    fn every_default_word_is_its_own_normal_form_once_normalised() {
        for word in OPT_OUT_ALL {
            assert_eq!(opts_out(word).as_deref(), Some("*"), "{word}");
            assert_eq!(normal(&normal(word)), normal(word), "{word}");
        }
    }
}
