//! What is read as one person, what is kept apart, and what is refused.

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;

use super::notation::{Sign, sign};
use super::{MAX_USER_ID_BYTES, Reading, read, read_formerly};

#[track_caller]
pub(super) fn digits(id: &str) -> String {
    match read(id) {
        Ok(Reading::Phone(number)) => {
            format!("{:0width$}", number.value(), width = number.len())
        }
        Ok(Reading::Opaque(_)) => panic!("{id:?} is opaque"),
        Err(refusal) => panic!("{id:?} is refused: {refusal}"),
    }
}

#[track_caller]
fn refused(id: &str, part: &str) {
    match read(id) {
        Err(refusal) => {
            assert!(refusal.to_string().contains(part), "{id:?}: {refusal}, not {part:?}");
        }
        Ok(reading) => panic!("{id:?} is read as {reading:?}, not refused for {part:?}"),
    }
}

#[test]
fn notations_of_one_number_are_read_as_its_digits() {
    for id in [
        "15550123456",
        "+15550123456",
        "+1 (555) 012-3456",
        "1.555.012.3456",
        "+1.5550123456",
        "1/555/0123456",
        " +1 555 012 3456\t\r\n",
        "[1] 555 {012} 3456",
        "+1\u{a0}555\u{2009}012\u{3000}3456",
        "1\u{2010}555\u{2013}012\u{2212}3456",
        "\u{202a}+1 555 012 3456\u{202c}",
        "\u{2066}+1\u{200b}555\u{ad}0123456\u{2069}\u{feff}",
        "\u{ff0b}\u{ff11}\u{ff15}\u{ff15}\u{ff15}\u{ff10}\u{ff11}\u{ff12}\u{ff13}\u{ff14}\u{ff15}\u{ff16}",
        "\u{ff08}1\u{ff09}555\u{ff0d}012\u{ff0e}3456",
        "+١٥٥٥٠١٢٣٤٥٦",
        "+१५५५०१२३४५६",
        "+۱۵۵۵۰۱۲۳۴۵۶",
        "whatsapp:+15550123456",
        "WhatsApp: +1 555 012 3456",
        "tel:+1-555-012-3456",
        "TEL:+1(555)012.3456",
        "sms:+15550123456?body=hello",
        "p:+15550123456",
        "rcs:+15550123456",
        "https://wa.me/15550123456",
        "HTTPS://WA.ME/15550123456?text=I%27d%20like%20one",
        "wa.me/+15550123456",
        "https://api.whatsapp.com/send?phone=%2B15550123456&text=hi",
        "whatsapp://send?phone=15550123456",
        "15550123456@s.whatsapp.net",
        "15550123456@c.us",
        "15550123456:12@s.whatsapp.net",
        "15550123456.0:12@s.whatsapp.net",
        "15550123456_1:2@S.WhatsApp.net",
        "whatsapp:+15550123456@c.us",
        "0015550123456",
        "00 1 555 012 3456",
        "+001 555 012 3456",
        "1 (0) 555 012 3456",
        "+1 1 555 012 3456",
    ] {
        assert_eq!(digits(id), "15550123456", "{id:?}");
    }
}

#[test]
fn trunk_prefixes_behind_a_country_code_are_dropped() {
    for (id, line) in [
        ("+44 (0)7700 900123", "447700900123"),
        ("+44 (0) 7700 900123", "447700900123"),
        ("0044 (0)7700 900123", "447700900123"),
        ("+44 07700 900123", "447700900123"),
        ("4407700900123", "447700900123"),
        ("+44\u{ff08}0\u{ff09}7700900123", "447700900123"),
        ("+49 (0)171 1234567", "491711234567"),
        ("+49 0171 1234567", "491711234567"),
        ("0049 (0) 171/1234567", "491711234567"),
        ("+36 06 20 123 4567", "36201234567"),
        ("+36 (06) 20 123 4567", "36201234567"),
        ("+7 8 912 345-67-89", "79123456789"),
        ("+7 912 345-67-89", "79123456789"),
        ("+7 812 345-67-89", "78123456789"),
        ("+81 090-1234-5678", "819012345678"),
        ("+91 098765 43210", "919876543210"),
        ("+27 082 123 4567", "27821234567"),
        ("+34 (0)612 345 678", "34612345678"),
        // Italy's own zero is a digit of the number.
        ("+39 06 1234 5678", "390612345678"),
        ("+39 347 123 4567", "393471234567"),
        ("+225 07 12 34 56 78", "2250712345678"),
        // A zero of the number itself, in brackets or not.
        ("+44 7700 (0) 90123", "447700090123"),
    ] {
        assert_eq!(digits(id), line, "{id}");
    }
    refused("+39 (0)6 1234 5678", "two lines");
}

#[test]
fn renumbered_and_mobile_notations_of_one_line_are_one() {
    for (id, line) in [
        ("+52 1 55 1234 5678", "525512345678"),
        ("+52 55 1234 5678", "525512345678"),
        ("+54 9 11 2345 6789", "541123456789"),
        ("+54 11 2345 6789", "541123456789"),
        ("+54 11 15 2345 6789", "541123456789"),
        ("+54 (0)11 15 2345 6789", "541123456789"),
        ("+54 9 11 15 2345 6789", "541123456789"),
        ("+54 221 15 456 7890", "542214567890"),
        ("+54 0221 15 456 7890", "542214567890"),
        ("+54 2202 15 45 6789", "542202456789"),
        ("+54 9 2202 45 6789", "542202456789"),
        ("+55 11 98765-4321", "551187654321"),
        ("+55 (0)11 98765-4321", "551187654321"),
        ("+55 11 8765-4321", "551187654321"),
        ("+229 97 12 34 56", "2290197123456"),
        ("+229 01 97 12 34 56", "2290197123456"),
        ("+225 07 12 34 56", "2250707123456"),
        ("+225 44 12 34 56", "2250544123456"),
        ("+225 03 12 34 56", "2250103123456"),
        ("+84 0162 123 4567", "84321234567"),
        ("+84 162 123 4567", "84321234567"),
        ("+84 199 123 4567", "84591234567"),
        ("+84 32 123 4567", "84321234567"),
        ("+241 06 03 12 34", "24166031234"),
        ("+241 066 03 12 34", "24166031234"),
        ("+241 66 03 12 34", "24166031234"),
        ("+241 07 28 01 50", "24177280150"),
        ("+230 712 3456", "23057123456"),
        ("+230 5712 3456", "23057123456"),
    ] {
        assert_eq!(digits(id), line, "{id}");
    }
}

#[test]
fn two_lines_stay_two() {
    for (a, b) in [
        ("+55 11 9 5765-4321", "+55 11 5765-4321"), // 5…: a landline has no mobile digit
        ("+52 1 55 1234 567", "+52 55 1234 567"),
        ("+54 9 11 1234 567", "+54 11 1234 567"),
        // Ten digits of one operator, which begin like the eight of another.
        ("+225 05 07 12 34 56", "+225 07 12 34 56"),
        ("+225 99 12 34 56", "+225 07 99 12 34 56"),
        ("+230 212 3456", "+230 5212 3456"),
        ("+39 06 1234 5678", "+39 6 1234 5678"),
        ("+54 11 4315 6789", "+54 11 4367 8900"),
    ] {
        assert_ne!(digits(a), digits(b), "{a} and {b}");
    }
}

#[test]
fn what_looks_like_a_number_and_is_none_is_refused_with_what_would_be_right() {
    for (id, part) in [
        ("", "required: 1 to 160"),
        ("   ", "at least one digit"),
        ("+()", "at least one digit"),
        ("1234567890123456", "at most 15 digits"),
        ("07700 900123", "country code first"),
        ("01", "country code first"),
        ("(0)7700 900123", "country code first"),
        ("00", "country code first"),
        ("000447700900123", "country code first"),
        ("+01 555", "country code first"),
        ("tel:07700900123", "country code first"),
        ("15550123456.0", "spreadsheet as a decimal"),
        ("15550123456.00 ", "spreadsheet as a decimal"),
        ("15550123456.5", "decimal fraction"),
        ("1.5550123456E+10", "scientific notation"),
        ("1,5550123456E+10", "scientific notation"),
        ("1.555e10", "scientific notation"),
        ("15,550,123,456", "comma"),
        ("'15550123456", "apostrophe"),
        ("\u{2019}+15550123456", "apostrophe"),
        ("=\"+15550123456\"", "formula"),
        ("=15550123456", "formula"),
        ("=TEXT(15550123456;0)", "formula"),
        ("\"15550123456\"", "quotation marks"),
        ("15550123456,15550123457", "several"),
        ("15550123456;15550123457", "several"),
        ("15550123456 / 15550123457", "several"),
        ("+15550123456 +15550123457", "several"),
        ("+15550123456 or 15550123457", "several"),
        ("1+555", "+ behind a digit"),
        ("+15550123456 x12", "extension"),
        ("+1 555 012 3456 ext. 12", "extension"),
        ("15550123456#12", "extension"),
        ("15550123456 Extension 5", "extension"),
        ("tel:+15550123456;ext=12", "extension"),
        ("tel:5550123;phone-context=+1", "extension or a parameter"),
        ("+1 800 FLOWERS", "holds letters"),
        ("telegram:+15550123456", "no known prefix"),
        ("Mobile: +1 555 012 3456", "no known prefix"),
        ("crm/%2B15550123456", "no known prefix"),
        ("https://wa.me/message/ABCDEF", "link"),
        ("https://wa.me/", "link"),
        ("209182374650@lid", "@lid"),
        ("209182374650:3@hosted.lid", "@lid"),
        ("1203630255@g.us", "group"),
        ("status@broadcast", "group"),
        ("alice@c.us", "gateway's address"),
        ("*15550123456*", "U+002A at byte 0"),
        ("whatsapp:*15550123456", "U+002A at byte 0"),
        ("12_34", "U+005F at byte 2"),
        ("\u{1f6d2}", "letter"),
        ("1555\t0123456", "control character"),
        ("a\tb", "control character"),
        ("US.1349 ", "U+0020 SPACE at byte 7"),
        (" US.1349", "U+0020 SPACE at byte 0"),
        ("US\u{200b}.1349", "U+200B"),
    ] {
        refused(id, part);
    }
    refused(&"x".repeat(MAX_USER_ID_BYTES + 1), "longer than 160");
    refused(&format!("US.{}", "1".repeat(129)), "128 letters and digits");
}

#[test]
fn ids_that_are_no_numbers_are_kept_as_they_are() {
    let long = format!("DE.ENT.{}", "a1".repeat(64));
    for id in [
        "US.13491208655302741918",
        "us.1349",
        "US.ENT.1349",
        &long,
        "customer-12345678",
        "crm:12345678",
        "12345678abc",
        "65f1c2a9e4b0a1d2c3e4f506",
        "1E10",
        "whatsapp:alice",
        "someone@example.com",
        "15550123456@example.com",
        "a+1555",
        "café",
        "пользователь-1",
        "2d1c9f3e-7a6b-4c5d-8e9f-0a1b2c3d4e5f",
    ] {
        assert_eq!(read(id).unwrap(), Reading::Opaque(id), "{id}");
    }
    let bare = Reading::Opaque("US.1349");
    assert_eq!(read("whatsapp:US.1349").unwrap(), bare);
    assert_eq!(read("WhatsApp:US.1349").unwrap(), bare);
}

#[test]
fn every_decimal_digit_of_unicode_is_read() {
    let categories = CodePointMapData::<GeneralCategory>::new();
    let mut scripts = 0;
    for c in ('\0'..=char::MAX).filter(|c| categories.get(*c) == GeneralCategory::DecimalNumber) {
        let Sign::Digit(digit) = sign(c) else { panic!("U+{:04X} is not read", u32::from(c)) };
        // Unicode keeps the ten of a script together, in order.
        let previous = char::from_u32(u32::from(c) - 1).map(sign);
        match digit {
            0 => scripts += 1,
            _ => assert_eq!(previous, Some(Sign::Digit(digit - 1)), "U+{:04X}", u32::from(c)),
        }
    }
    assert!(scripts >= 70, "{scripts}");
    for c in ('\0'..=char::MAX).filter(|c| matches!(sign(*c), Sign::Digit(_))) {
        assert_eq!(categories.get(c), GeneralCategory::DecimalNumber, "U+{:04X}", u32::from(c));
    }
}

#[test]
fn plain_digits_are_read_as_in_any_other_notation() {
    let mut number: u64 = 12_345_678;
    for _ in 0..200_000 {
        // A linear congruential generator, cut to each length.
        number =
            number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let text = format!("{:015}", number % 1_000_000_000_000_000);
        let text = &text[usize::try_from(number >> 60).unwrap() % 15..];
        let spaced: String = text.chars().flat_map(|digit| [digit, ' ']).collect();
        assert_eq!(read(text), read(&spaced), "{text}");
    }
    for (id, part) in [("1234567/", "NoDigit"), ("12345678:", "NotANumber")] {
        if let Err(refusal) = read(id) {
            assert!(format!("{refusal:?}").starts_with(part), "{id}: {refusal:?}");
        }
    }
}

#[test]
fn the_line_of_a_line_is_itself() {
    for id in [
        "5511987654321",
        "5491123456789",
        "541115234567890",
        "22997123456",
        "22507123456",
        "841621234567",
        "24106031234",
        "2307123456",
        "4407700900123",
        "360620123456",
    ] {
        let line = digits(id);
        assert_eq!(digits(&line), line, "{id}");
    }
}

#[test]
fn the_former_reading_is_that_of_versions_before() {
    let phone = |id: &str| match read_formerly(id) {
        Some(Reading::Phone(number)) => format!("{:0w$}", number.value(), w = number.len()),
        other => format!("{other:?}"),
    };
    assert_eq!(phone("+44 (0)7700 900123"), "4407700900123");
    assert_eq!(phone("01"), "01");
    assert_eq!(phone("+52 1 55 1234 5678"), "525512345678");
    assert_eq!(phone("+55 11 9 8765-4321"), "551187654321");
    assert_eq!(phone("+229 97 12 34 56"), "22997123456");
    let opaque = "whatsapp:+15550123456";
    assert_eq!(read_formerly(opaque), Some(Reading::Opaque(opaque)));
    for id in ["", "\u{202a}+15550123456\u{202c}", "15550123456.0", "a\tb", "1234567890123456"] {
        assert_eq!(read_formerly(id), None, "{id:?}");
    }
}
