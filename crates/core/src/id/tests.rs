//! Tests of ids and keys.

use super::*;

fn key(user: &str) -> Key {
    let secret = KeySecret::new(&[7; 16]);
    secret.key(&UserId::parse(user).unwrap(), BusinessId::parse("shop").unwrap())
}

#[test]
fn notations_of_one_phone_line_have_one_key() {
    for (a, b) in [
        ("+1 (555) 012-3456", "15550123456"),
        ("1.555.012.3456", "15550123456"),
        ("whatsapp:+15550123456", "15550123456"),
        ("15550123456:3@s.whatsapp.net", "15550123456"),
        ("+44 (0)7700 900123", "447700900123"),
        ("+52 1 55 1234 5678", "+52 55 1234 5678"),
        ("+54 9 11 1234 5678", "+54 11 1234 5678"),
        ("+55 11 9 8765-4321", "+55 11 8765-4321"),
        ("+55\u{a0}11\u{a0}98765-4321", "551187654321"),
        ("+229 97 12 34 56", "2290197123456"),
        ("whatsapp:US.1349", "US.1349"),
    ] {
        assert_eq!(key(a), key(b), "{a} and {b}");
    }
}

#[test]
fn different_phone_lines_have_different_keys() {
    for (a, b) in [
        ("+55 11 9 5765-4321", "+55 11 5765-4321"), // 5…: a landline has no mobile digit
        ("+52 1 55 1234 567", "+52 55 1234 567"),   // too short to be that notation
        ("US.1349", "us.1349"),
        ("US.1349", "1349"),
        ("+54 9 11 1234 567", "+54 11 1234 567"),
        ("15550123456", "15550123457"),
    ] {
        assert_ne!(key(a), key(b), "{a} and {b}");
    }
}

#[test]
fn bad_ids_say_what_is_wrong() {
    for id in ["", "a\tb", "+()", "07700900123", "15550123456.0", "US.1349 "] {
        let violation = UserId::parse(id).unwrap_err();
        assert_eq!(violation.field, "user_id");
        let refusal = user_id::read(id).unwrap_err();
        assert_eq!(violation.description, refusal.to_string());
    }
    assert!(UserId::parse(&"x".repeat(160)).is_ok());
    assert!(UserId::parse(&"x".repeat(161)).is_err());
    assert!(BusinessId::parse(&"x".repeat(128)).is_ok());
    assert!(BusinessId::parse(&"x".repeat(129)).is_err());
    assert!(BusinessId::parse("").unwrap_err().field == "business_id");
}

#[test]
fn recorded_id_of_an_older_version_keeps_its_own_key() {
    let secret = KeySecret::new(&[7; 16]);
    for id in [" US.1349", "US.1349\u{200d}", "\u{ff35}S.1349", "cafe\u{301}"] {
        assert!(secret.parse(id, "shop").is_err(), "{id:?}");
        assert!(secret.parse("US.1349", id).is_err(), "{id:?}");
        let key = secret.read(id, "shop").unwrap();
        assert_eq!(key, secret.key_of_reading(&Reading::Opaque(id), BusinessId::new("shop")));
        assert_ne!(key, secret.read("US.1349", "shop").unwrap());
        assert!(secret.read("US.1349", id).is_ok());
    }
    // A NUL parts the user from the business.
    assert!(secret.read("a\0b", "shop").is_err());
    assert!(secret.read("a\u{200b}b", "shop").is_err(), "no version took it");
    for id in [" +1 555 012 3456 ", "US.1349", "+55\u{a0}11\u{a0}98765-4321"] {
        assert_eq!(secret.parse(id, "shop").unwrap(), secret.read(id, "shop").unwrap());
    }
}

/// The keys of versions before, in a ledger with this secret.
#[test]
fn former_keys_are_those_of_versions_before() {
    let secret = KeySecret::new(&[7; 16]);
    let shop = BusinessId::new("shop");
    let phone = |digits: &str| {
        let value: u64 = digits.parse().unwrap();
        let len = u8::try_from(digits.len()).unwrap();
        let spread = || Spread::of_number(value, digits.len());
        secret.key_of(shop.tag, spread, &[&[b'p', len], &value.to_be_bytes(), b"shop"])
    };
    for (id, digits) in [
        ("+44 (0)7700 900123", "4407700900123"),
        ("0044 7700 900123", "00447700900123"),
        ("22997123456", "22997123456"),
        ("+54 11 15 2345 6789", "54111523456789"),
    ] {
        assert_eq!(secret.read_formerly(id, "shop"), Some(phone(digits)), "{id}");
    }
    let opaque = "whatsapp:+15550123456";
    let key = secret.key_of_reading(&Reading::Opaque(opaque), shop);
    assert_eq!(secret.read_formerly(opaque, "shop"), Some(key));
    for id in ["15550123456", "+1 555 012 3456", "5215512345678", "US.1349", "customer-7"] {
        assert_eq!(secret.read_formerly(id, "shop"), None, "{id}");
    }
    // What is refused today has only the former key.
    assert_eq!(secret.read("07700900123", "shop").unwrap(), phone("07700900123"));
    assert_eq!(secret.read_formerly("07700900123", "shop"), None);
}

#[test]
fn keys_of_versions_differ_in_the_tag_of_the_business_and_the_spread_of_the_user_alone() {
    let [untagged, tagged, spread] =
        [2, 3, 4].map(|version| KeySecret::of_version(&[7; 16], version));
    let template = TemplateId::parse("order_update", "en_US").unwrap();
    for business in ["shop", "acme"].map(BusinessId::new) {
        for user in ["15550123456", "US.1349", "+44 (0)7700 900123"] {
            let user = UserId::parse(user).unwrap();
            let keys = |secret: &KeySecret| {
                let key = secret.key(&user, business);
                let former = secret.former_key(&user, business).unwrap_or(key);
                let template = secret.template_key(&template, business);
                [key, former, template, secret.account_key(business)]
            };
            for (untagged_key, tagged_key) in keys(&untagged).into_iter().zip(keys(&tagged)) {
                assert_eq!(tagged_key, untagged_key.with_tag(business.tag));
                assert_eq!(tagged_key.tag(), BusinessTag::of(business.as_str()));
                assert_ne!(tagged_key, untagged_key);
                assert_eq!(untagged.nameless(untagged_key), None);
                let nameless = untagged_key.with_tag(BusinessTag::NAMELESS);
                assert_eq!(tagged.nameless(tagged_key), Some(nameless));
            }
            for (tagged_key, spread_key) in keys(&tagged).into_iter().zip(keys(&spread)) {
                assert_eq!(spread_key, tagged_key.with_spread(spread_key.spread()));
                let nameless = spread.nameless(spread_key).unwrap();
                let expected =
                    spread_key.with_tag(BusinessTag::NAMELESS).with_spread(Spread::FIRST);
                assert_eq!((nameless, spread.nameless(nameless)), (expected, None));
            }
            let [key, _, template, account] = keys(&spread);
            assert_eq!([template, account].map(Key::spread), [Spread::FIRST; 2]);
            assert_ne!(key.spread(), Spread::FIRST, "none of these three has the first by chance");
        }
    }
    assert!(!untagged.is_same_as(&tagged) && spread.is_same_as(&KeySecret::new(&[7; 16])));
    assert!(!spread.is_same_as(&tagged));
    assert_eq!(untagged.digest(b"request"), tagged.digest(b"request"), "ids of requests stay");
}
