//! Every example number of every region of libphonenumber, in every notation: the same person, or
//! refused. The examples, and what the library itself reads, are a generated fixture.

use std::collections::BTreeMap;

use super::{Reading, Region, read, read_formerly};

/// A number of the fixture.
struct Example<'a> {
    region: &'a str,
    code: &'a str,
    number: &'a str,
    /// The trunk prefix of the region, if it has one.
    trunk: &'a str,
    /// What the library reads where the trunk prefix is behind the country code.
    read_with_trunk: &'a str,
    international: &'a str,
    rfc3966: &'a str,
    national: &'a str,
}

fn examples() -> impl Iterator<Item = Example<'static>> {
    let lines = include_str!("example_numbers.tsv").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let [region, _kind, code, number, trunk, read_with_trunk, international, rfc3966, national] =
            fields[..]
        else {
            panic!("not a line of the fixture: {line}")
        };
        Example {
            region, code, number, trunk, read_with_trunk, international, rfc3966, national,
        }
    })
}

/// Digits of another script, whose zero is this.
fn in_script(text: &str, zero: char) -> String {
    let digit = |c: char| c.to_digit(10).and_then(|d| char::from_u32(u32::from(zero) + d));
    text.chars().map(|c| digit(c).unwrap_or(c)).collect()
}

/// Each notation by its name.
fn notations(example: &Example<'_>) -> Vec<(&'static str, String)> {
    let Example { code, number, trunk, international, rfc3966, national, .. } = example;
    let digits = format!("{code}{number}");
    let groups = |by: &str| {
        let (start, end) = number.split_at(number.len() / 2);
        format!("+{code}{by}{start}{by}{end}")
    };
    let mut all = vec![
        ("digits", digits.clone()),
        ("plus", format!("+{digits}")),
        ("international", (*international).to_owned()),
        ("rfc3966", (*rfc3966).to_owned()),
        ("00", format!("00{digits}")),
        ("00 spaced", format!("00 {code} {number}")),
        ("hyphens", groups("-")),
        ("dots", groups(".")),
        ("slashes", groups("/")),
        ("no-break spaces", groups("\u{a0}")),
        ("en dashes", groups("\u{2013}")),
        ("brackets", format!("+{code} ({}) {}", &number[..2], &number[2..])),
        ("(0)", format!("+{code} (0){number}")),
        ("(0) without plus", format!("{code}(0){number}")),
        ("00 and (0)", format!("00{code} (0) {number}")),
        ("isolates", format!("\u{2066}+{digits}\u{2069}")),
        ("embedding", format!("\u{202a}+{code} {number}\u{202c}")),
        ("zero-width", format!("\u{feff}{code}\u{200b}{number}\u{ad}")),
        ("full-width", in_script(&format!("\u{ff0b}{code}\u{3000}{number}"), '\u{ff10}')),
        ("arabic-indic", in_script(&format!("+{digits}"), '\u{660}')),
        ("persian", in_script(&format!("+{digits}"), '\u{6f0}')),
        ("devanagari", in_script(&digits, '\u{966}')),
        ("bengali", in_script(&digits, '\u{9e6}')),
        ("whatsapp:", format!("whatsapp:+{digits}")),
        ("WHATSAPP:", format!("WHATSAPP:+{digits}")),
        ("sms:", format!("sms:+{digits}")),
        ("p:", format!("p:+{digits}")),
        ("wa.me", format!("https://wa.me/{digits}?text=hello")),
        ("s.whatsapp.net", format!("{digits}@s.whatsapp.net")),
        ("device", format!("{digits}:7@s.whatsapp.net")),
        ("agent and device", format!("{digits}.0:7@s.whatsapp.net")),
        ("c.us", format!("{digits}@c.us")),
        ("spreadsheet", format!("{digits}.0")),
        ("apostrophe", format!("'{digits}")),
        ("extension", format!("+{digits} ext. 5")),
        ("unknown scheme", format!("signal:+{digits}")),
        ("twice", format!("+{digits}, +{digits}")),
        ("formula", format!("=\"{digits}\"")),
        ("thin spaces", groups("\u{2009}")),
        ("figure spaces", groups("\u{2007}")),
        ("ideographic spaces", groups("\u{3000}")),
        ("figure dashes", groups("\u{2012}")),
        ("minus signs", groups("\u{2212}")),
        ("square brackets", format!("+{code} [{}] {}", &number[..2], &number[2..])),
        ("full-width brackets", format!("+{code}\u{ff08}{}\u{ff09}{}", &number[..2], &number[2..])),
        ("marks", format!("\u{200e}+{code}\u{200f}{number}\u{200e}")),
        ("word joiners", format!("\u{2060}+{code}\u{2060}{number}\u{2060}")),
        ("tel:", format!("tel:+{digits}")),
        ("TEL: spaced", format!("TEL: +{code} {number}")),
        ("smsto:", format!("smsto:{digits}")),
        ("rcs:", format!("rcs:+{digits}")),
        ("whatsapp: digits", format!("whatsapp:{digits}")),
        ("http wa.me", format!("http://wa.me/{digits}")),
        ("api.whatsapp.com", format!("https://api.whatsapp.com/send?phone=%2B{digits}&text=a")),
        ("C.US", format!("{digits}@C.US")),
        ("device at c.us", format!("{digits}:12@c.us")),
        ("grouping commas", format!("+{code},{number}")),
        ("parameter", format!("tel:+{digits};ext=5")),
        ("x extension", format!("+{digits}x5")),
        ("several", format!("+{digits} / +{digits}")),
        ("lid", format!("{digits}@lid")),
        ("group", format!("{digits}@g.us")),
        ("in quotes", format!("\"{digits}\"")),
        ("hash", format!("#{digits}")),
        ("scientific", format!("{}.{}E+{}", &digits[..1], &digits[1..], digits.len() - 1)),
    ];
    // Shorter ones are digits in groups, or an id of the operator's own.
    if digits.len() >= 7 {
        all.push(("decimal", format!("{digits}.5")));
        all.push(("several by or", format!("{digits} or {digits}")));
    }
    if !trunk.is_empty() {
        all.push(("trunk", format!("+{code} {trunk}{number}")));
        all.push(("trunk in digits", format!("{code}{trunk}{number}")));
        all.push(("trunk in brackets", format!("+{code} ({trunk}) {number}")));
    }
    if national.starts_with('0') || national.starts_with("(0") {
        all.push(("national", (*national).to_owned()));
    }
    all
}

#[test]
fn every_example_number_is_the_same_person_in_every_notation_or_refused() {
    let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let (mut numbers, mut wrong) = (0, Vec::new());
    for example in examples() {
        let digits = format!("{}{}", example.code, example.number);
        if digits.len() > 15 || example.number.len() < 3 {
            continue;
        }
        numbers += 1;
        let person = read(&digits);
        assert!(matches!(person, Ok(Reading::Phone(_))), "{}: {person:?}", example.region);
        for (name, notation) in notations(&example) {
            let [read_as, refused] = counts.entry(name).or_default();
            match read(&notation) {
                Err(_) => *refused += 1,
                same if same == person => *read_as += 1,
                other => wrong.push(format!("{} {name}: {notation} {other:?}", example.region)),
            }
        }
    }
    println!("{numbers} numbers; notation: read as the same person, refused");
    let (mut read_as, mut refused) = (0, 0);
    for (name, [same, not]) in &counts {
        println!("  {name}: {same}, {not}");
        (read_as, refused) = (read_as + same, refused + not);
    }
    println!("{read_as} read, {refused} refused, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}: {:#?}", wrong.len(), &wrong[..wrong.len().min(40)]);
    assert!(numbers > 1_000);
    // What must be read, and not merely not misread.
    for name in ["digits", "plus", "international", "00", "wa.me", "device", "trunk", "full-width"]
    {
        let [read_as, refused] = counts[name];
        assert!(refused * 20 < read_as, "{name}: {read_as} read, {refused} refused");
    }
}

/// The pair of a version before gets the key of one of its notations.
#[test]
fn notations_that_were_one_person_before_are_one_person_or_refused() {
    let mut people: BTreeMap<(u64, usize), Reading<'static>> = BTreeMap::new();
    let mut notations_of = 0;
    for example in examples().filter(|example| example.number.len() >= 3) {
        for (name, notation) in notations(&example) {
            let Some(Reading::Phone(former)) = read_formerly(&notation) else { continue };
            let Ok(Reading::Phone(today)) = read(&notation) else { continue };
            notations_of += 1;
            let today = Reading::Phone(today);
            let other = people.insert((former.value(), former.len()), today);
            assert!(other.is_none_or(|other| other == today), "{name}: {notation}");
        }
    }
    assert!(notations_of > 10_000, "{notations_of}");
}

#[test]
fn two_example_numbers_are_never_one_person() {
    let mut people: BTreeMap<(u64, usize), String> = BTreeMap::new();
    for example in examples() {
        let digits = format!("{}{}", example.code, example.number);
        let Ok(Reading::Phone(number)) = read(&digits) else { continue };
        let other = people.insert((number.value(), number.len()), digits.clone());
        // Argentina's landlines and mobiles share one plan: with and without the 9 is one line.
        if let Some(other) = other.filter(|other| *other != digits) {
            assert_eq!(example.region, "AR", "{other} and {digits}");
        }
    }
}

#[test]
fn trunk_prefixes_are_dropped_where_libphonenumber_drops_them() {
    let (mut same, mut not) = (0, Vec::new());
    for example in examples().filter(|example| !example.read_with_trunk.is_empty()) {
        let ours = format!("+{} {}{}", example.code, example.trunk, example.number);
        if read(&ours) == read(example.read_with_trunk) {
            same += 1;
        } else {
            not.push(format!("{} +{} {}", example.region, example.code, example.number));
        }
    }
    println!("{same} as libphonenumber reads them, {} otherwise: {not:?}", not.len());
    // Colombia's 03 is read as a carrier's code, and Canada's 310 numbers have seven digits: both
    // only while a trunk prefix is before them.
    assert!(not.len() <= 2, "{not:#?}");
}

#[test]
fn numbers_as_dialled_in_their_region_are_the_same_person_or_refused() {
    let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for example in examples().filter(|example| example.region != "001") {
        let Example { region, code, number, trunk, national, international, .. } = example;
        if code.len() + number.len() > 15 || number.len() < 4 {
            continue;
        }
        let plan = Region::from_code(region).expect("each region has a plan");
        let person = read(international);
        for (name, notation) in [
            ("national", national.to_owned()),
            ("with its trunk prefix", format!("{trunk}{number}")),
            ("without its trunk prefix", number.to_owned()),
            ("without its plus sign", format!("{code}{number}")),
            ("international", international.to_owned()),
        ] {
            let [read_as, refused] = counts.entry(name).or_default();
            match plan.international(&notation) {
                Err(_) => *refused += 1,
                Ok(completed) if read(&completed) == person => *read_as += 1,
                Ok(_) => wrong.push(format!("{region} {name}: {notation}")),
            }
        }
    }
    println!("{counts:?}");
    assert!(wrong.is_empty(), "{}: {wrong:#?}", wrong.len());
    for (name, [read_as, refused]) in counts {
        assert!(read_as > 1_000 && refused * 20 < read_as, "{name}: {read_as}, {refused} refused");
    }
}
