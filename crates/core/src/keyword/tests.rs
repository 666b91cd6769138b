use super::*;
use crate::event::{Method, StatementNames};
use crate::state::{Choice, Effect};
use crate::time::Timestamp;

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
            phone_number_id: None,
            statement_names: StatementNames::default(),
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
        let said = Choice::opt_in(Timestamp::MIN, None);
        state.apply(&Effect::Choice(Scope::parse(scope).unwrap(), said)).unwrap();
    }
    state
}

fn opts_out(text: &str) -> Option<String> {
    match keywords().meaning(text, &state())?.meaning {
        Meaning::OptOut(scopes) => {
            Some(scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    }
}

#[test]
fn whole_text_that_is_a_keyword_opts_out() {
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
fn stop_with_a_name_opts_out_of_that_scope_only() {
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
fn text_that_contains_a_keyword_has_no_meaning() {
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
fn text_opts_in_only_as_configured() {
    let plain = Keywords::new(KeywordLists::default());
    for text in ["start", "unstop", "subscribe"] {
        assert_eq!(plain.meaning(text, &state()), None, "{text}");
    }
    let heard = keywords().meaning("Start!", &state()).unwrap();
    assert!(matches!(heard.meaning, Meaning::OptIn(_)));
    assert_eq!((&*heard.keyword, &*heard.locale), ("start", "en"));
    let heard = keywords().meaning("YES.", &state()).unwrap();
    assert_eq!((heard.meaning, &*heard.locale), (Meaning::Confirm, "en"));
}

#[test]
fn normal_form_of_a_built_in_keyword_is_stable() {
    for language in LANGUAGES {
        for word in language.opt_out {
            assert_eq!(opts_out(word).as_deref(), Some("*"), "{word}");
        }
        for word in language.opt_out.iter().chain(language.confirm).chain(language.before_topic) {
            assert_eq!(normalize(&normalize(word)), normalize(word), "{word}");
            assert!(word.len() <= MAX_KEYWORD_BYTES && !normalize(word).is_empty(), "{word}");
        }
    }
}

#[test]
fn confirmation_or_ordinary_answer_never_opts_out() {
    for language in LANGUAGES {
        for word in language.confirm {
            assert_eq!(opts_out(word), None, "{word}");
        }
    }
    for word in ["no", "non", "não", "nein", "нет", "ok", "acha", "đúng", "Huy", "dur", "td", "ya"]
    {
        assert_eq!(opts_out(word), None, "{word}");
    }
}

fn told_of(lists: KeywordLists, text: &str) -> (String, String) {
    let heard = Keywords::new(lists).meaning(text, &state()).unwrap();
    (heard.keyword, heard.locale)
}

#[test]
fn match_has_the_listed_keyword_and_its_language() {
    let of = |languages: &[&str], text: &str| {
        let languages = languages.iter().map(|tag| (*tag).to_owned()).collect();
        told_of(KeywordLists { languages, ..KeywordLists::default() }, text)
    };
    let pair = |keyword: &str, locale: &str| (keyword.to_owned(), locale.to_owned());
    assert_eq!(of(&[], "ARRET !!"), pair("arrêt", "fr"));
    assert_eq!(of(&[], "STOP"), pair("stop", ""), "which is said everywhere");
    assert_eq!(of(&["de"], "STOP"), pair("stop", ""));
    assert_eq!(of(&[], "Cancelar"), pair("cancelar", ""), "Spanish or Portuguese");
    assert_eq!(of(&["en", "pt"], "Cancelar"), pair("cancelar", "pt"));
    assert_eq!(of(&["pt", "es"], "Cancelar"), pair("cancelar", "pt"));
    assert_eq!(
        of(&["en"], "disiscrivimi"),
        pair("disiscrivimi", "it"),
        "opting out needs no leave"
    );
    assert_eq!(of(&["it"], "Sí"), pair("sì", "it"));
    assert_eq!(of(&[], "Stop Order-Updates!"), pair("stop order_updates", ""));
    assert_eq!(of(&["es"], "PARAR order_updates"), pair("parar order_updates", "es"));
    assert_eq!(of(&[], "stop utility.order updates"), pair("stop order_updates", ""));
    assert_eq!(of(&[], "Arrêtez marketing"), pair("arrêtez marketing", "fr"));
}

#[test]
fn keyword_confirms_only_in_languages_of_the_business() {
    let of = |languages: &[&str], confirm: Option<&[&str]>, text: &str| {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (languages, confirm) = (owned(languages), confirm.map(owned));
        let lists = KeywordLists { languages, confirm, ..KeywordLists::default() };
        Keywords::new(lists).meaning(text, &state()).map(|heard| heard.meaning)
    };
    for (languages, confirm, text, confirms) in [
        (&[][..], None, "yes", true),
        (&[], None, "sí", false),
        (&["es", "en"], None, "si", true),
        (&["es", "en"], None, "Yes", true),
        (&["es"], None, "yes", false),
        (&["es"], Some(&["acepto"][..]), "sí", false),
        (&["es"], Some(&["acepto"][..]), "¡ACEPTO!", true),
        (&["de", "nl"], None, "ja", true),
        (&["hi"], None, "हाँ", true),
        // A keyword on several lists opts out.
        (&["es"], Some(&["baja"][..]), "baja", false),
    ] {
        let meant = of(languages, confirm, text) == Some(Meaning::Confirm);
        assert_eq!(meant, confirms, "{languages:?} {confirm:?} {text}");
    }
}

#[test]
fn business_can_add_keywords_and_exclude_built_in_ones() {
    let offers = Scope::parse("marketing.offers").unwrap();
    let own = KeywordLists {
        except: vec!["ALTO".into(), "Stop Promotions".into()],
        opt_out: vec![OptOutKeyword {
            words: vec!["parar ofertas".into(), "alto".into(), "stop".into()],
            buttons: Vec::new(),
            scope: offers.clone(),
            locale: "es".into(),
        }],
        ..KeywordLists::default()
    };
    let business = [("tienda".to_owned(), own)].into();
    let book = KeywordBook::new(KeywordSettings { business, ..KeywordSettings::default() });
    let meant = |business: &str, text: &str| {
        let heard = book.of(business).meaning(text, &State::default());
        heard.map(|heard| match heard.meaning {
            Meaning::OptOut(scopes) => scopes,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(meant("tienda", "Parar, ofertas!"), Some(vec![offers.clone()]));
    assert_eq!(meant("tienda", "alto"), Some(vec![offers]));
    assert_eq!(meant("tienda", "stop"), Some(vec![Scope::All]), "the broadest stands");
    assert_eq!(meant("tienda", "unsubscribe"), Some(vec![Scope::All]));
    assert_eq!(meant("tienda", "stop promotions"), None);
    assert_eq!(meant("other", "alto"), Some(vec![Scope::All]));
    assert_eq!(meant("Tienda", "parar ofertas"), None, "ids are told apart by their case");
    assert!(book.of("tienda").can_opt_out_of_all());
    let none = KeywordLists { built_in: false, ..KeywordLists::default() };
    assert!(!Keywords::new(none).can_opt_out_of_all());
}

#[test]
fn buttons_opt_out_by_configuration_and_by_what_they_show() {
    let out = |scope, words: &[&str], buttons: &[&str]| OptOutKeyword {
        words: words.iter().map(|&word| word.to_owned()).collect(),
        buttons: buttons.iter().map(|&label| label.to_owned()).collect(),
        scope,
        locale: String::new(),
    };
    let marketing = || Scope::Class(Class::Marketing);
    let keywords = Keywords::new(KeywordLists {
        except: vec!["Stop promo codes".into()],
        opt_out: vec![
            out(marketing(), &["basta promo"], &["No, thanks", "promo:no", "Stop"]),
            out(Scope::All, &[], &["leave-all", "Basta promo"]),
            out(Scope::Class(Class::Utility), &["no news"], &["No offers", "Stop promos", "both"]),
            out(marketing(), &["no news"], &["no offers", "both"]),
            out(Scope::parse("marketing.deals").unwrap(), &["no news"], &["both", "Stop ads"]),
        ],
        ..KeywordLists::default()
    });
    let state = State::default();
    let scope = |matched: Option<KeywordMatch>| match matched?.meaning {
        Meaning::OptOut(scopes) => scopes.first().cloned(),
        other => panic!("{other:?}"),
    };
    for (label, pressed, typed) in [
        ("no thanks!", Some(marketing()), None),
        ("PROMO_NO", Some(marketing()), None),
        ("leave-all", Some(Scope::All), None),
        // Of two meanings the broader one.
        ("Stop", Some(Scope::All), Some(Scope::All)),
        ("basta promo", Some(Scope::All), Some(marketing())),
        ("Detener promociones", Some(marketing()), Some(marketing())),
        ("Parar promoções", Some(marketing()), Some(marketing())),
        ("Interrompi promozioni", Some(marketing()), Some(marketing())),
        ("Arrêter les promotions", Some(marketing()), None),
        ("Werbung stoppen", Some(marketing()), None),
        ("Stop promo codes", None, None),
        ("Where is my order?", None, None),
        ("", None, None),
    ] {
        assert_eq!(scope(keywords.meaning_of_button(label, &state)), pressed, "{label}");
        assert_eq!(scope(keywords.meaning(label, &state)), typed, "{label}");
    }
    // Of two meanings of different classes, both.
    let both = vec![marketing(), Scope::Class(Class::Utility)];
    for label in ["No offers", "Stop promos", "BOTH", "no news"] {
        let matched = keywords.meaning_of_button(label, &state).unwrap();
        assert_eq!(matched.meaning, Meaning::OptOut(both.clone()), "{label}");
    }
    assert_eq!(keywords.meaning("No news!", &state).unwrap().meaning, Meaning::OptOut(both));
    let narrow = keywords.meaning_of_button("Stop ads", &state).unwrap();
    assert_eq!(narrow.meaning, Meaning::OptOut(vec![marketing()]), "the rule covers the topic");
    let built_in = KeywordLists { built_in: false, ..KeywordLists::default() };
    let label = "Arrêter les promotions";
    assert_eq!(Keywords::new(built_in).meaning_of_button(label, &state), None);
    let heard = Keywords::new(KeywordLists::default()).meaning_of_button(label, &state).unwrap();
    assert_eq!((&*heard.keyword, &*heard.locale), ("arrêter promo", "fr"));
}
