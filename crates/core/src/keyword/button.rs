//! Buttons that stop promotions, in the language of their template.
//!
//! WhatsApp offers an opt-out button for marketing templates, whose label is in the template's language:
//! "Stop promotions", "Detener promociones", "Parar promoções", "Interrompi promozioni" are known from
//! public code (28 November 2026); Meta's pages have no list. A business may also write a label of its
//! own. So a label is read by a rule: it opts out of marketing if it begins with a verb that stops, or
//! ends with one where a language has its verbs last, and names promotions in the same language.
//!
//! The verbs are narrower than the words of a text that opt out: *cancel* and *remove* are often about
//! an order. The rule is for texts that a business offers: labels and payloads of buttons, rows of
//! lists, and answers in forms, which do not say whether the user chose or typed them. It is not for
//! messages that a user types.

use std::sync::LazyLock;

use super::normalize::normalize;

/// The most words of a label: a longer text is a sentence that happens to have the words.
const MAX_WORDS: usize = 8;

/// Verbs that stop, and words for promotions, of one language. A word for promotions stands for all
/// words that begin with it.
struct Language {
    tag: &'static str,
    verbs: &'static [&'static str],
    promotions: &'static [&'static str],
    order: Order,
}

/// Where a language has its verbs.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Order {
    /// First.
    First,
    /// First or last.
    Any,
    /// First or last, in a script without spaces between words.
    Unspaced,
}

/// Verbs that are used in every language.
const VERBS: &[&str] = &["stop"];

/// Words for promotions that are used in every language.
const PROMOTIONS: &[&str] = &["promo", "marketing"];

const fn language(
    tag: &'static str,
    order: Order,
    verbs: &'static [&'static str],
    promotions: &'static [&'static str],
) -> Language {
    Language { tag, verbs, promotions, order }
}

/// The languages of the built-in words.
const LANGUAGES: &[Language] = &[
    language(
        "en",
        Order::First,
        &["no more", "unsubscribe", "opt out", "optout", "end", "mute", "block", "don't send"],
        &["offers", "ads", "advert", "newsletter"],
    ),
    language(
        "es",
        Order::First,
        &[
            "detener",
            "detén",
            "parar",
            "pare",
            "no más",
            "no quiero",
            "dejar de",
            "desuscribir",
            "desuscribirme",
            "darme de baja",
            "dar de baja",
            "baja",
            "desactivar",
            "suspender",
        ],
        &["ofertas", "publicidad", "anuncios", "boletín"],
    ),
    language(
        "pt",
        Order::First,
        &[
            "parar",
            "pare",
            "não quero",
            "interromper",
            "deixar de",
            "descadastrar",
            "sair",
            "chega de",
            "desativar",
            "suspender",
        ],
        &["ofertas", "publicidade", "anúncios"],
    ),
    language(
        "fr",
        Order::First,
        &[
            "arrêt",
            "arrêter",
            "arrêtez",
            "ne plus",
            "plus de",
            "désabonner",
            "me désabonner",
            "se désabonner",
            "désinscrire",
            "me désinscrire",
            "désactiver",
            "suspendre",
            "interrompre",
        ],
        &["offres", "publicité", "pub", "pubs", "soldes"],
    ),
    language(
        "de",
        Order::Any,
        &[
            "stopp",
            "stoppe",
            "stoppen",
            "keine",
            "beenden",
            "beende",
            "abbestellen",
            "abmelden",
            "einstellen",
            "deaktivieren",
        ],
        &["werbung", "werbe", "angebote", "aktionen", "newsletter"],
    ),
    language(
        "it",
        Order::First,
        &[
            "interrompi",
            "interrompere",
            "ferma",
            "fermare",
            "basta",
            "non voglio",
            "niente",
            "disiscrivi",
            "disiscrivimi",
            "annulla iscrizione",
            "disattiva",
        ],
        &["offerte", "pubblicità"],
    ),
    language(
        "nl",
        Order::Any,
        &["stoppen", "geen", "afmelden", "uitschrijven", "beëindigen", "uitzetten"],
        &["aanbiedingen", "reclame", "acties", "nieuwsbrief"],
    ),
    language(
        "pl",
        Order::First,
        &[
            "zatrzymaj",
            "wstrzymaj",
            "przestań",
            "przestańcie",
            "zakończ",
            "wypisz",
            "rezygnuję",
            "nie chcę",
            "wyłącz",
        ],
        &["oferty", "ofert", "reklam"],
    ),
    language(
        "ru",
        Order::First,
        &[
            "стоп",
            "остановить",
            "остановите",
            "прекратить",
            "прекратите",
            "отписаться",
            "отписка",
            "отключить",
            "отказаться",
            "хватит",
            "не присылать",
        ],
        &["промо", "акци", "реклам", "рассыл", "предложени"],
    ),
    language(
        "tr",
        Order::Any,
        &["durdur", "durdurun", "kapat", "istemiyorum", "son ver", "iptal et", "bırak"],
        &["kampanya", "reklam", "tanıtım", "teklif"],
    ),
    language(
        "ar",
        Order::First,
        &["إيقاف", "أوقف", "أوقفوا", "توقف", "وقف", "إلغاء الاشتراك", "لا أريد"],
        &["العروض", "عروض", "الترويج", "ترويج", "الإعلانات", "إعلانات", "التسويق"],
    ),
    language(
        "he",
        Order::First,
        &["הפסק", "הפסיקו", "הפסקת", "להפסיק", "עצור", "הסר", "הסירו", "ביטול"],
        &["מבצעים", "המבצעים", "פרסומות", "פרסום", "הפרסומות", "קידום"],
    ),
    language(
        "hi",
        Order::Any,
        &[
            "रोकें",
            "रोको",
            "बंद करें",
            "बंद करो",
            "बन्द करें",
            "नहीं चाहिए",
            "band karo",
            "band karen",
            "band kare",
            "roko",
        ],
        &["प्रमोशन", "प्रोमोशन", "प्रचार", "ऑफ़र", "ऑफर", "विज्ञापन"],
    ),
    language(
        "ur",
        Order::Any,
        &["بند کریں", "بند کرو", "روکیں", "روکو"],
        &["پروموشن", "تشہیر", "اشتہار", "آفر"],
    ),
    language(
        "bn",
        Order::Any,
        &["বন্ধ করুন", "বন্ধ করো", "বন্ধ কর", "থামান"],
        &["প্রচার", "প্রমোশন", "অফার", "বিজ্ঞাপন"],
    ),
    language(
        "id",
        Order::First,
        &["hentikan", "berhenti", "setop", "jangan kirim", "tidak mau", "matikan"],
        &["penawaran", "iklan", "tawaran"],
    ),
    language(
        "vi",
        Order::First,
        &["dừng", "ngừng", "ngưng", "hủy nhận", "từ chối", "không nhận"],
        &["khuyến mãi", "khuyến mại", "quảng cáo", "ưu đãi"],
    ),
    language(
        "zh",
        Order::Unspaced,
        &["停止", "退订", "退訂", "拒收", "取消", "不再", "不要"],
        &["促销", "促銷", "推广", "推廣", "营销", "行銷", "優惠", "优惠", "广告", "廣告"],
    ),
    language(
        "ja",
        Order::Unspaced,
        &["停止", "配信停止", "停止する", "解除", "ストップ", "止める", "不要"],
        &["プロモーション", "宣伝", "広告", "お得な情報", "キャンペーン"],
    ),
    language(
        "ko",
        Order::Unspaced,
        &["중지", "중단", "정지", "거부", "수신거부", "그만", "받지 않기", "해지"],
        &["프로모션", "광고", "홍보", "마케팅"],
    ),
    language(
        "sw",
        Order::First,
        &["sitisha", "simamisha", "komesha", "acha", "acheni", "usitume"],
        &["matangazo", "ofa", "promosheni"],
    ),
];

/// A label that stops promotions: the words by which it does, as they are listed, and their language.
pub(super) struct Stopped {
    pub(super) keyword: String,
    pub(super) locale: &'static str,
}

/// A listed word and its normal form.
type Listed = (&'static str, String);

/// The words of a language, ready to be compared: normalized once, and not for each label.
struct Index {
    language: &'static Language,
    verbs: Vec<Listed>,
    promotions: Vec<Listed>,
}

static INDEX: LazyLock<Vec<Index>> = LazyLock::new(|| {
    let listed = |own: &'static [&'static str], shared: &'static [&'static str]| {
        own.iter().chain(shared).map(|word| (*word, normalize(word))).collect()
    };
    let index = |language: &'static Language| Index {
        language,
        verbs: listed(language.verbs, VERBS),
        promotions: listed(language.promotions, PROMOTIONS),
    };
    LANGUAGES.iter().map(index).collect()
});

/// Whether a button's label, in its normal form, asks to stop promotions.
pub(super) fn stops_promotions(label: &str) -> Option<Stopped> {
    if label.split(' ').count() > MAX_WORDS {
        return None;
    }
    let mut stopped = INDEX.iter().filter_map(|index| stopped_in(label, index));
    let first = stopped.next()?;
    // A label that is in several languages has none for certain.
    let locale = if stopped.next().is_some() { "" } else { first.locale };
    Some(Stopped { locale, ..first })
}

/// The same in one language.
fn stopped_in(label: &str, Index { language, verbs, promotions }: &Index) -> Option<Stopped> {
    let rests =
        verbs.iter().filter_map(|(verb, normal)| Some((verb, rest(label, normal, language)?)));
    let named =
        |rest: &str| promotions.iter().find(|(_, normal)| names(rest, normal, language.order));
    let mut found = rests.filter_map(|(verb, rest)| {
        let (promotions, _) = named(rest)?;
        Some(Stopped { keyword: format!("{verb} {promotions}"), locale: language.tag })
    });
    found.next()
}

/// What is left of a label without the verb that it begins or ends with.
fn rest<'a>(label: &'a str, verb: &str, language: &Language) -> Option<&'a str> {
    // Latin words have spaces in every language.
    if language.order == Order::Unspaced && !verb.is_ascii() {
        return label.strip_prefix(verb).or_else(|| label.strip_suffix(verb));
    }
    let first = label.strip_prefix(verb).and_then(|rest| rest.strip_prefix(' '));
    let last = || label.strip_suffix(verb).and_then(|rest| rest.strip_suffix(' '));
    first.or_else(|| last().filter(|_| language.order != Order::First))
}

/// Whether a text has a word that begins with this one.
fn names(text: &str, word: &str, order: Order) -> bool {
    let starts =
        |place: usize| place == 0 || text.as_bytes().get(place.wrapping_sub(1)) == Some(&b' ');
    text.match_indices(word).any(|(place, _)| order == Order::Unspaced || starts(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locale(label: &str) -> Option<&'static str> {
        stops_promotions(&normalize(label)).map(|stopped| stopped.locale)
    }

    #[test]
    fn labels_that_stop_promotions_are_known_in_their_language() {
        for (label, tag) in [
            ("Stop promotions", ""),
            ("STOP all Promos!", ""),
            ("Stop promociones", ""),
            ("No more offers", "en"),
            ("Unsubscribe from promotions", "en"),
            ("Detener promociones", "es"),
            ("Dejar de recibir ofertas", "es"),
            ("Parar promoções", ""),
            ("Interromper promoções", "pt"),
            ("Interrompi promozioni", "it"),
            ("Arrêter les promotions", "fr"),
            ("ARRETER LES OFFRES", "fr"),
            ("Werbung stoppen", "de"),
            ("Keine Angebote mehr", "de"),
            ("Promoties stoppen", ""),
            ("Zatrzymaj promocje", "pl"),
            ("Остановить рекламу", "ru"),
            ("Kampanyaları durdur", "tr"),
            ("إيقاف العروض الترويجية", "ar"),
            ("הפסק מבצעים", "he"),
            ("प्रमोशन बंद करें", "hi"),
            ("promotions band karo", "hi"),
            ("Hentikan promosi", "id"),
            ("Ngừng khuyến mãi", "vi"),
            ("停止促销信息", "zh"),
            ("プロモーションを停止", "ja"),
            ("프로모션 수신거부", "ko"),
            ("Sitisha matangazo", "sw"),
        ] {
            assert_eq!(locale(label), Some(tag), "{label}");
        }
    }

    #[test]
    fn other_labels_are_not() {
        for label in [
            "",
            "Promotions",
            "Stop",
            "See promotions",
            "Keep promotions",
            "Don't stop promotions",
            "Cancel my order",
            "Stop my order",
            "Show promotions without end",
            "Stoppromotions",
            "Detener pedido",
            "Nicht stoppen: Werbung bitte weiter",
            "Stop by our shop any day this week for new promotions",
        ] {
            assert_eq!(locale(label), None, "{label}");
        }
    }
}
