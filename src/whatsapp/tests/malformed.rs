//! Ids and payloads that are not as they should be.

use super::*;

#[test]
fn ids_are_read_without_what_nobody_sees() {
    let stop = fixture("inbound_stop");
    let heard = hear(&stop);
    for hidden in ["16505551234\u{200b}", "\u{ff11}6505551234", " 16505551234 ", "16505551234.0"] {
        let from = format!("\"{hidden}\"");
        let from = if hidden.ends_with(".0") { hidden } else { &from };
        let other = stop.replace("\"16505551234\"", from);
        assert_ne!(other, stop);
        assert_eq!(said(&hear(&other)), said(&heard), "{hidden:?}");
    }
    let number = stop.replace("106540352242922", "106540352242922\u{feff}");
    assert_eq!(said(&hear(&number)), said(&heard));
}

#[test]
fn what_is_no_json_object_is_no_payload() {
    for body in ["", "[]", "7", "{", "{\"a\":", "\u{feff}{}", "{\"a\":\"\\x\"}"] {
        assert!(parse(body.as_bytes(), &rules()).is_err(), "{body}");
    }
    assert!(parse("[".repeat(3_000_000).as_bytes(), &rules()).is_err());
}

#[test]
fn a_value_that_cannot_be_parsed_costs_itself_alone() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let stop = fixture("inbound_stop");
    let expected = said(&hear(&stop));
    let values = [br#""\ud83d""#.to_vec(), b"\"\xff\"".to_vec(), b"1e400".to_vec(), deep(200)];
    for value in values.into_iter().chain([127, 128, 100_000].map(deep)) {
        let (before, after) = stop.split_at(1);
        let body = [before.as_bytes(), b"\"a\":", &value, b",", after.as_bytes()].concat();
        assert_eq!(said(&parse(&body, &rules()).unwrap()), expected);
    }
}
