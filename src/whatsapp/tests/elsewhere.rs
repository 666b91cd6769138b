//! Opt-outs in other places than a message's text: edits, captions, forms, standby, history.

use super::*;

#[test]
fn read_form_answers_of_any_shape_as_opt_outs_alone() {
    for (response, texts) in [
        (r#""{\"a\":\"stop\",\"flow_token\":\"STOP\"}""#, &["stop"][..]),
        (r#""{\"a\":{\"b\":[1,true,null,\"x\",[\"stop\"]]}}""#, &["x", "stop"]),
        // A lone surrogate in one answer costs that answer alone.
        (r#""{\"a\":\"\\ud83d\",\"b\":\"stop\"}""#, &["\u{fffd}", "stop"]),
        (r#"{"a":"stop"}"#, &["stop"]),
        (r#"["stop"]"#, &["stop"]),
        (r#""stop""#, &["stop"]),
        (r#""{\"a\":""#, &["{\"a\":"]),
        ("7", &[]),
        (r#""""#, &[]),
    ] {
        let fields = format!(
            r#""from":"1","timestamp":"1749416383","type":"interactive",
            "interactive":{{"type":"nfm_reply","nfm_reply":{{"body":"Sent","response_json":{response}}}}}"#
        );
        let mut expected = vec!["message 1 1749416383: inbound \"\"".to_owned()];
        expected.extend(texts.iter().map(|text| format!("message 1 1749416383: opt-out {text:?}")));
        assert_eq!(said(&hear(&message(&fields))), expected.join("; "), "{response}");
    }
}

#[test]
fn read_a_very_long_form_up_to_its_bound() {
    let answers = vec!["\\\"stop\\\""; 1_000].join(",");
    let heard = hear(&message(&format!(
        r#""from":"1","timestamp":"1749416383","type":"interactive",
        "interactive":{{"type":"nfm_reply","nfm_reply":{{"response_json":"[{answers}]"}}}}"#
    )));
    assert_eq!(heard.updates[0].submissions.len(), 1 + 256);
}

#[test]
fn read_an_edit_whatever_its_form() {
    let at = r#""from":"1","timestamp":"1749416383","type":"#;
    let stop = "message 1 1749416383: opt-out \"stop\"";
    for fields in [
        r#""edit","edit":{"message":{"type":"text","text":{"body":"stop"}}}"#,
        r#""EDIT","Edit":{"message":{"text":{"body":"stop"}}}"#,
        r#""edit","edit":{"message":{"type":7,"video":{"caption":"stop"}}}"#,
        r#""edit","edit":{"text":{"body":"stop"}}"#,
        r#""unsupported","unsupported":{"type":"edit","message":{"text":{"body":"stop"}}}"#,
    ] {
        assert_eq!(said(&hear(&message(&format!("{at}{fields}")))), stop, "{fields}");
    }
    for fields in [r#""edit","edit":7"#, r#""edit","edit":{"message":[]}"#, r#""edit""#] {
        let none = said(&hear(&message(&format!("{at}{fields}"))));
        assert_eq!(none, "message opens_no_window 1", "{fields}");
    }
}

#[test]
fn read_standby_for_opt_outs_unless_it_opens_the_window() {
    let mut rules = rules();
    rules.opens_window.insert(STANDBY.to_owned());
    let text = said(&parse(fixture("standby_text").as_bytes(), &rules).unwrap());
    assert_eq!(text, format!("message {USER} 1749416396: inbound \"When do you open?\""));
    let at = r#""from":"1","timestamp":"1749416383""#;
    let stop = format!(r#"{{{at},"type":"text","text":{{"body":"stop"}}}}"#);
    let says = "message 1 1749416383: opt-out \"stop\"";
    for lists in [
        format!(r#""standby":{{"messages":[{stop}]}}"#),
        format!(r#""standby":[{{"messages":{stop}}}]"#),
        format!(r#""standby":{{}},"messages":[{stop}]"#),
    ] {
        assert_eq!(said(&hear(&change("standby", &lists))), says, "{lists}");
    }
    // The field cannot be read.
    let lists = format!(r#""standby":{{"messages":[{stop}]}}"#);
    let unknown = change("standby", &lists).replace(r#""standby","#, "7,");
    assert_eq!(said(&hear(&unknown)), format!("{says}; message bad_shape 1"));
    let broken = said(&hear(&change("standby", r#""standby":7,"messages":{}"#)));
    assert_eq!(broken, "message bad_shape 1; other bad_shape 1");
    let echoes =
        said(&hear(&change("standby", &format!(r#""standby":{{"message_echoes":[{stop}]}}"#))));
    assert_eq!(echoes, "other unknown_field 1");
    // Ids are linked, and failures counted, as in a conversation with this receiver.
    let both = r#""from":"1","from_user_id":"US.a","timestamp":"1749416383","type":"image""#;
    let linked =
        said(&hear(&change("standby", &format!(r#""standby":{{"messages":[{{{both}}}]}}"#))));
    assert_eq!(linked, "link 1 1749416383: link US.a false; message opens_no_window 1");
}

#[test]
fn read_of_the_history_only_what_the_user_wrote() {
    let stop = |ids: &str| {
        format!(r#"{{{ids},"timestamp":"1739230970","type":"text","text":{{"body":"stop"}}}}"#)
    };
    let threads = |thread: &str, message: &str| {
        change(
            "history",
            &format!(r#""history":[{{"threads":[{{{thread},"messages":[{message}]}}]}}]"#),
        )
        .replace(
            r#""phone_number_id":"#,
            r#""display_phone_number":"+1 555-078-3881","phone_number_id":"#,
        )
    };
    let says = |user: &str| format!("message {user} 1739230970: opt-out \"stop\"");
    for (thread, ids, user) in [
        (r#""id":"1""#, r#""from":"1""#, Some("1")),
        (r#""id":"1""#, r#""from":"15550783881""#, None),
        (r#""id":"1""#, r#""from":"2""#, None),
        (r#""id":"US.a""#, r#""from_user_id":"US.a""#, Some("US.a")),
        (r#""id":"1","user_id":"US.a""#, r#""from_user_id":"US.a""#, Some("US.a")),
        // A business has no such id.
        (r#""id":"1""#, r#""from_user_id":"US.a""#, Some("US.a")),
        (r#""id":"1""#, r#""from_user_id":"US.a","to":"1""#, None),
        // The thread's user is unreadable.
        (r#""id":[]"#, r#""from":"1""#, Some("1")),
        (r#""id":[]"#, r#""from":"15550783881""#, None),
        (r#""id":[]"#, r#""from":"1","to":"2""#, None),
    ] {
        let heard = said(&hear(&threads(thread, &stop(ids))));
        let expected = user.map_or("message not_by_user 1".to_owned(), says);
        assert_eq!(heard, expected, "{thread} {ids}");
    }
    // Nothing else of it counts: no link, no window, no yes, no new number.
    let both = r#"{"from":"1","from_user_id":"US.a","timestamp":"1739230970","type":"image"}"#;
    assert_eq!(said(&hear(&threads(r#""id":"1""#, both))), "message opens_no_window 1");
    let moved = r#"{"from":"1","timestamp":"1739230970","type":"system",
        "system":{"type":"user_changed_number","wa_id":"2"}}"#;
    assert_eq!(said(&hear(&threads(r#""id":"1""#, moved))), "message not_by_user 1");
    for (lists, says) in [
        (r#""history":7"#, "other bad_shape 1; other unknown_field 1"),
        (
            r#""history":[7,{"threads":7},{"threads":[{"id":"1"}]}]"#,
            "other bad_shape 1; other unknown_field 1",
        ),
    ] {
        let mut heard: Vec<_> =
            said(&hear(&change("history", lists))).split("; ").map(str::to_owned).collect();
        heard.sort();
        assert_eq!(heard.join("; "), says, "{lists}");
    }
}
