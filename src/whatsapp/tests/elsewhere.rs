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
fn a_form_with_more_answers_than_are_read_opts_out_of_everything() {
    let heard = |ids: &str, answers: &mut dyn Iterator<Item = String>| {
        let answers = answers.map(|answer| format!(r#"\"{answer}\""#)).collect::<Vec<_>>();
        let answers = answers.join(",");
        said(&hear(&message(&format!(
            r#"{ids},"type":"interactive",
            "interactive":{{"type":"nfm_reply","nfm_reply":{{"response_json":"[{answers}]"}}}}"#
        ))))
    };
    let timed = r#""from":"1","id":"w","timestamp":"1749416383""#;
    // Equal answers are one.
    let equal = heard(timed, &mut (0..100_000).map(|_| "stop".to_owned()));
    let one = "message 1 1749416383: inbound \"\"; message 1 1749416383: opt-out \"stop\"";
    assert_eq!(equal, one);
    let different = |count: usize| (0..count).map(|place| format!("answer {place}"));
    let read = heard(timed, &mut different(256));
    assert_eq!(read.matches("; ").count(), 256);
    assert!(read.ends_with("opt-out \"answer 255\""), "{read}");
    let of_all = "all * by \"more answers than are read in message w\"";
    for more in [257, 100_000] {
        let more = heard(timed, &mut different(more));
        assert_eq!(more, format!("{read}; message 1 1749416383: {of_all}"));
    }
    // It is denied under each id, and without a time as of its arrival.
    let both = heard(&format!(r#"{timed},"from_user_id":"US.a""#), &mut different(257));
    assert!(both.contains(&format!("message US.a 1749416383: {of_all}")), "{both}");
    let untimed = heard(r#""from":"1","id":"w""#, &mut different(257));
    assert!(untimed.contains(&format!("message 1 arrival: {of_all}")), "{untimed}");
    // The reference has the whole id, or none.
    let long = "w".repeat(2_040);
    for id in [&*long, ""] {
        let heard = heard(&format!(r#""from":"1","id":"{id}""#), &mut different(257));
        assert!(heard.contains(&format!("message 1 arrival: all * by {id:?}")), "{heard}");
    }
}

#[test]
fn read_what_a_user_writes_with_an_order_and_the_description_of_a_row() {
    let at = r#""from":"1","timestamp":"1749416383","type":"#;
    let window = |text: &str| format!("message 1 1749416383: inbound {text:?}");
    for (fields, says) in [
        (
            r#""order","order":{"catalog_id":"7","text":"stop","product_items":[]}"#,
            format!("{}; message 1 1749416383: opt-out \"stop\"", window("")),
        ),
        (r#""order","order":{"text":7}"#, window("")),
        (r#""order","order":"stop""#, window("")),
        (
            r#""interactive","interactive":{"type":"list_reply",
            "list_reply":{"id":"7","title":"Less","description":"Stop promotions"}}"#,
            format!(
                "{}; message 1 1749416383: keyword \"7\"; \
                 message 1 1749416383: opt-out \"Stop promotions\"",
                window("Less")
            ),
        ),
    ] {
        assert_eq!(said(&hear(&message(&format!("{at}{fields}")))), says, "{fields}");
    }
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
    let says = |user: &&str| format!("message {user} 1739230970: opt-out \"stop\"");
    let own = r#""from":"15550783881""#;
    for (thread, ids, users) in [
        (r#""id":"1""#, r#""from":"1""#, &["1"][..]),
        (r#""id":"1""#, own, &[]),
        (r#""id":"1""#, r#""from":"2""#, &[]),
        (r#""id":"US.a""#, r#""from_user_id":"US.a""#, &["US.a"]),
        (r#""id":"1","user_id":"US.a""#, r#""from_user_id":"US.a""#, &["1", "US.a"]),
        // A business has no such id.
        (r#""id":"1""#, r#""from_user_id":"US.a""#, &["1", "US.a"]),
        (r#""id":"1""#, r#""from_user_id":"US.a","to":"1""#, &[]),
        // The thread has an id of another kind.
        (r#""id":"US.a""#, r#""from":"1""#, &["1", "US.a"]),
        (r#""id":"7","user_id":"US.a""#, r#""from":"1""#, &[]),
        (r#""id":"US.a""#, own, &[]),
        (r#""id":"US.a""#, r#""from":"+1 (555) 078-3881""#, &[]),
        (r#""id":"US.a""#, r#""from":"1","to":"2""#, &[]),
        (r#""id":"US.a""#, r#""from":"15550783881","from_user_id":"US.b""#, &[]),
        // Notations of one number.
        (r#""id":"5215512345678""#, r#""from":"525512345678""#, &["525512345678"]),
        (r#""id":"525512345678""#, r#""from":"5215512345678""#, &["5215512345678"]),
        (r#""id":"541123456789""#, r#""from":"5491123456789""#, &["5491123456789"]),
        (r#""id":"551187654321""#, r#""from":"5511987654321""#, &["5511987654321"]),
        (r#""id":"5511987654321""#, r#""from":"551187654321""#, &["551187654321"]),
        // The thread's user is unreadable.
        (r#""id":[]"#, r#""from":"1""#, &["1"]),
        (r#""id":[]"#, own, &[]),
        (r#""id":[]"#, r#""from":"1","to":"2""#, &[]),
    ] {
        let heard = said(&hear(&threads(thread, &stop(ids))));
        let mut expected: Vec<_> = users.iter().map(says).collect();
        if users.is_empty() {
            expected.push("message not_by_user 1".to_owned());
        }
        assert_eq!(heard, expected.join("; "), "{thread} {ids}");
    }
    // The business's number is unknown, and may be the one of the message.
    let unknown = threads(r#""id":"US.a""#, &stop(own)).replace("+1 555-078-3881", "");
    assert_eq!(said(&hear(&unknown)), "message not_by_user 1");
    // The business's number may be written in another notation, too.
    for (own, from) in
        [("+52 1 55 1234 5678", "525512345678"), ("+54 11 2345-6789", "5491123456789")]
    {
        let body = threads(r#""id":"US.a""#, &stop(&format!(r#""from":"{from}""#)));
        let body = body.replace("+1 555-078-3881", own);
        assert_eq!(said(&hear(&body)), "message not_by_user 1", "{own}");
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
