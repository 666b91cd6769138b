mod arrivals;
mod elsewhere;
mod fixtures;
mod malformed;
mod several_ids;

use std::collections::HashMap;

use super::*;
use consentd_core::event::{Method, What};
use consentd_core::id::PhoneNumberId;
use consentd_core::submission::{InboundEffect, SourcePrecision, Submission};

const NUMBER: &str = "106540352242922";

fn rules() -> Rules {
    let numbers = HashMap::from([(NUMBER.to_owned(), "acme".to_owned())]);
    Rules { takes_signup: true, ..Rules::new(numbers) }
}

fn fixture(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/whatsapp");
    std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap()
}

fn hear(body: &str) -> ParsedPayload {
    parse(body.as_bytes(), &rules()).unwrap()
}

/// At which of the business's numbers something happened: `here` is the one of [`rules`].
fn at_number(number: Option<&PhoneNumberId>) -> String {
    match number.map(PhoneNumberId::as_str) {
        None => String::new(),
        Some(NUMBER) => " here".to_owned(),
        Some(number) => format!(" at {number}"),
    }
}

/// What an event says, in a few words.
fn says(kind: &str, submission: &Submission) -> Vec<String> {
    let event = &submission.event;
    assert_eq!(submission.precision, SourcePrecision::Seconds);
    let seconds = match event.time {
        None => "arrival".to_owned(),
        Some(time) => {
            assert_eq!((time.as_millis() % 1_000, &*submission.request_id), (0, ""));
            (time.as_millis() / 1_000).to_string()
        }
    };
    let at_another = Some(&*event.business_id).filter(|business| *business != "acme");
    let mut said: Vec<_> =
        at_another.map(|business| format!("at {business}")).into_iter().collect();
    let what = match &event.what {
        What::Inbound { text, .. } => match submission.inbound_effect {
            InboundEffect::WindowAndKeywords => format!("inbound {text:?}"),
            InboundEffect::Keywords => format!("keyword {text:?}"),
            InboundEffect::OptOutKeywords => format!("opt-out {text:?}"),
        },
        What::Platform { stopped, phone_number_id } => {
            format!("stopped {stopped}{}", at_number(phone_number_id.as_ref()))
        }
        What::Failure { code, phone_number_id } => {
            format!("failure {code}{}", at_number(phone_number_id.as_ref()))
        }
        What::OptOut { scope, reference } => format!("all {scope} by {reference:?}"),
        What::OptIn { category, evidence, pending: false, .. } => {
            assert_eq!(evidence.method, Method::WhatsappSignup);
            let number = at_number(evidence.phone_number_id.as_ref());
            format!("opt-in {category} {}{number}", evidence.reference)
        }
        What::Link { other_user_id, moved } => format!("link {other_user_id} {moved}"),
        What::TemplateCategory { category, lift, .. } => {
            let lifts = if lift.is_some() { " lifting nothing" } else { "" };
            format!("{}{lifts}", category.name())
        }
        What::TemplateRestriction { restricted, until, .. } => {
            let until = until.map_or("lifted".into(), |end| (end.as_millis() / 1_000).to_string());
            format!("utility is marketing {restricted} until {until}")
        }
        other => panic!("{other:?}"),
    };
    said.push(format!("{kind} {} {seconds}: {what}", event.user_id));
    said
}

/// What a payload says in one line: its events, with those that need a link, then its links, then what
/// is passed over.
fn said(heard: &ParsedPayload) -> String {
    let mut said = Vec::new();
    for WebhookUpdate { kind, submissions, copies } in heard.updates.iter().chain(&heard.links) {
        said.extend(submissions.iter().flat_map(|submission| says(kind.name(), submission)));
        for LinkedCopy { link, submission } in copies {
            let What::Link { other_user_id, .. } = &heard.links[*link].submissions[0].event.what
            else {
                panic!("a copy needs a link")
            };
            assert_eq!(*other_user_id, submission.event.user_id);
            said.extend(says("also", submission));
        }
    }
    for ((kind, cause), count) in &heard.skipped {
        said.push(format!("{} {} {count}", kind.name(), cause.name()));
    }
    said.join("; ")
}

const USER: &str = "16505551234";
const SCOPED: &str = "US.13491208655302741918";

/// A payload of one change.
fn change(field: &str, lists: &str) -> String {
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{"field":"{field}",
        "value":{{"metadata":{{"phone_number_id":"106540352242922"}},{lists}}}}}]}}]}}"#
    )
}

fn message(fields: &str) -> String {
    change("messages", &format!(r#""messages":[{{{fields}}}]"#))
}

#[test]
fn a_time_is_a_text_of_digits_or_a_whole_number() {
    let text = r#""from":"1","type":"image","timestamp":"#;
    for (time, heard) in [
        (r#""1749416383""#, Some(1_749_416_383_000)),
        ("1749416383", Some(1_749_416_383_000)),
        (r#""1235433600""#, Some(1_235_433_600_000)),
        // Nobody wrote by WhatsApp before it was founded.
        ("1235433599", None),
        ("0", None),
        (r#""0""#, None),
        (r#""1970""#, None),
        // Milliseconds.
        (r#""1749416383000""#, None),
        ("1749416383000", None),
        ("1749416383.0", None),
        (r#""1749416383.5""#, None),
        (r#""+1749416383""#, None),
        (r#""-1""#, None),
        ("-1", None),
        (r#""""#, None),
        ("1.5", None),
        ("null", None),
        ("[1]", None),
        ("true", None),
        (r#""9223372036854775807""#, None),
        ("18446744073709551615", None),
        ("1e400", None),
    ] {
        let read = hear(&message(&format!("{text}{time}")));
        let got = read.updates.first().map(|u| u.submissions[0].event.time.unwrap().as_millis());
        assert_eq!(got, heard, "{time}");
        assert_eq!(
            read.skipped.contains_key(&(UpdateKind::Message, SkipCause::NoTime)),
            heard.is_none()
        );
    }
}

#[test]
fn a_user_is_found_by_any_id_that_is_there() {
    let at = r#""type":"image","timestamp":"1749416383""#;
    for (lists, says) in [
        (format!(r#""messages":[{{"from":"1",{at}}}]"#), "message 1 1749416383: inbound \"\""),
        (format!(r#""messages":[{{"from":7,{at}}}]"#), "message 7 1749416383: inbound \"\""),
        (
            format!(r#""messages":[{{"from_user_id":"a",{at}}}]"#),
            "message a 1749416383: inbound \"\"",
        ),
        (format!(r#""messages":[{{{at}}}]"#), "message no_user 1"),
        (format!(r#""messages":[{{"from":["1"],{at}}}]"#), "message no_user 1"),
        (
            format!(r#""contacts":[{{"user_id":"a"}}],"messages":[{{{at}}}]"#),
            "message a 1749416383: inbound \"\"",
        ),
        // Whose it is, of two, nobody can tell.
        (
            format!(r#""contacts":[{{"wa_id":"1"}},{{"wa_id":"2"}}],"messages":[{{{at}}}]"#),
            "message no_user 1",
        ),
        // The contact has what the message leaves out, and links both.
        (
            format!(
                r#""contacts":[{{"wa_id":"2"}},{{"wa_id":"1","user_id":"a"}}],
                "messages":[{{"from":"1",{at}}},{{"from_user_id":"a",{at}}}]"#
            ),
            "message 1 1749416383: inbound \"\"; also a 1749416383: inbound \"\"; \
             message 1 1749416383: inbound \"\"; also a 1749416383: inbound \"\"; \
             link 1 1749416383: link a false",
        ),
        // Another's contact is not the message's.
        (
            format!(
                r#""contacts":[{{"wa_id":"2","user_id":"b"}}],"messages":[{{"from":"1",{at}}}]"#
            ),
            "message 1 1749416383: inbound \"\"",
        ),
    ] {
        assert_eq!(said(&hear(&change("messages", &lists))), says, "{lists}");
    }
}

#[test]
fn texts_are_those_that_are_shown_and_those_behind_them() {
    let at = r#""from":"1","timestamp":"1749416383","type":"#;
    for (fields, says) in [
        (r#""text","text":{"body":"a"}"#, "1 1749416383: inbound \"a\""),
        (r#""text","text":{"body":7}"#, "no_text 1"),
        (r#""text","text":[]"#, "no_text 1"),
        (r#""text""#, "no_text 1"),
        (r#""button","button":{"payload":"a"}"#, "1 1749416383: inbound \"a\""),
        (r#""button","button":{"text":"a","payload":"a"}"#, "1 1749416383: inbound \"a\""),
        (r#""button","button":{}"#, "no_text 1"),
        (r#""interactive","interactive":{"type":"nfm_reply"}"#, "1 1749416383: inbound \"\""),
        (r#""interactive","interactive":{"type":"list_reply"}"#, "no_text 1"),
        (r#""text","text":"a""#, "1 1749416383: inbound \"a\""),
        (r#""interactive","interactive":{}"#, "bad_shape 1"),
        (
            r#""interactive","interactive":{"list_reply":{"title":"a"}}"#,
            "1 1749416383: opt-out \"a\"; message bad_shape 1",
        ),
        (
            r#""image","image":{"caption":"stop"}"#,
            "1 1749416383: inbound \"\"; message 1 1749416383: opt-out \"stop\"",
        ),
        (r#""reaction","reaction":{"emoji":"a"}"#, "opens_no_window 1"),
        (r#""tomorrow""#, "unknown_type 1"),
        ("7", "bad_shape 1"),
        (r#"7,"text":{"body":"a"}"#, "1 1749416383: opt-out \"a\"; message bad_shape 1"),
        (r#"null,"button":{"text":"a"}"#, "1 1749416383: opt-out \"a\"; message bad_shape 1"),
        (r#""TEXT","text":{"body":"a"}"#, "1 1749416383: inbound \"a\""),
        (r#""Text","Text":{"body":"a"}"#, "1 1749416383: inbound \"a\""),
        (
            r#""Interactive","interactive":{"type":"LIST_REPLY","list_reply":{"title":"a"}}"#,
            "1 1749416383: inbound \"a\"",
        ),
        // A text where its type has none.
        (r#""text","button":{"text":"a"}"#, "1 1749416383: opt-out \"a\"; message bad_shape 1"),
        (
            r#""unsupported","text":{"body":"a"}"#,
            "1 1749416383: opt-out \"a\"; message bad_shape 1",
        ),
        (
            r#""unsupported","unsupported":{"body":"a"}"#,
            "1 1749416383: opt-out \"a\"; message bad_shape 1",
        ),
        (r#""tomorrow","tomorrow":"a""#, "1 1749416383: opt-out \"a\"; message bad_shape 1"),
        (
            r#""image","image":{},"text":{"body":"a"}"#,
            "1 1749416383: opt-out \"a\"; message bad_shape 1",
        ),
        (
            r#""order","order":{"text":"a"}"#,
            "1 1749416383: inbound \"\"; message 1 1749416383: opt-out \"a\"",
        ),
        (
            r#""SYSTEM","system":{"type":"USER_CHANGED_NUMBER","wa_id":"2"}"#,
            "number_change 1 1749416383: link 2 true",
        ),
        (r#""system","system":{"type":"user_changed_number"}"#, "number_change no_user 1"),
        (r#""system","system":{"type":"else"}"#, "other unknown_type 1"),
        (r#""system""#, "other bad_shape 1"),
    ] {
        let said = said(&hear(&message(&format!("{at}{fields}"))));
        assert_eq!(said.trim_start_matches("message "), says, "{fields}");
    }
}

#[test]
fn a_message_without_a_type_is_read_for_opt_outs() {
    let heard = hear(&message(r#""from":"1","timestamp":"1749416383","text":{"body":"a"}"#));
    assert_eq!(said(&heard), "message 1 1749416383: opt-out \"a\"; message bad_shape 1");
}

#[test]
fn a_failure_that_denies_is_read_whatever_its_form() {
    let at = r#""recipient_id":"1","timestamp":"1749416383""#;
    for (fields, says) in [
        (r#""status":"FAILED","errors":[{"code":131050}]"#, "status 1 T: failure 131050 here"),
        (r#""status":"failed","errors":[{"code":"131050 "}]"#, "status 1 T: failure 131050 here"),
        (r#""status":"failed","errors":[{"code":131050.0}]"#, "status 1 T: failure 131050 here"),
        (
            r#""status":"rejected","errors":[{"code":131026},{"code":131050}]"#,
            "status 1 T: failure 131050 here; status bad_shape 1",
        ),
        (r#""status":"rejected","errors":[{"code":131026}]"#, "status not_failed 1"),
        (r#""status":"sent","errors":7"#, "status not_failed 1"),
        (r#""status":"failed","errors":7"#, "status bad_shape 1"),
        (r#""status":"failed","errors":[]"#, "status no_code 1"),
        (
            r#""status":"failed","recipient_type":"group","errors":[{"code":131050}]"#,
            "status to_group 1",
        ),
    ] {
        let body = change("messages", &format!(r#""statuses":[{{{at},{fields}}}]"#));
        assert_eq!(said(&hear(&body)), says.replace('T', "1749416383"), "{fields}");
    }
}

#[test]
fn words_are_read_whatever_their_case() {
    for (name, word) in [
        ("inbound_stop", "whatsapp_business_account"),
        ("inbound_stop", "\"messages\""),
        ("user_preferences_stop", "\"user_preferences\""),
        ("user_preferences_stop", "marketing_messages"),
        ("call_user_initiated", "USER_INITIATED"),
    ] {
        let body = fixture(name);
        // What the list is called stays: it is a key, and not a word.
        let place = body.find(word).unwrap();
        let place = if word.starts_with('"') { body.rfind(word).unwrap() } else { place };
        let (before, rest) = body.split_at(place);
        let other = word.chars().map(|c| {
            if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
        });
        let other = rest.replacen(word, &other.collect::<String>(), 1);
        assert_eq!(said(&hear(&format!("{before}{other}"))), said(&hear(&body)), "{word}");
    }
}

#[test]
fn what_opens_the_window_is_configuration() {
    let mut rules = rules();
    rules.opens_window = [GROUP, "text", "reaction", "tomorrow"].map(str::to_owned).into();
    let said = |body: &str| said(&parse(body.as_bytes(), &rules).unwrap());
    assert_eq!(
        said(&fixture("inbound_group_text")),
        "message 16505551234 1749416383: inbound \"Hello all\""
    );
    assert_eq!(said(&fixture("inbound_reaction")), "message 16505551234 1749416390: inbound \"\"");
    assert_eq!(said(&fixture("call_user_initiated")), "call opens_no_window 1");
    assert_eq!(
        said(&fixture("inbound_image")),
        "message 16505551234 1749416383: opt-out \"The red one?\""
    );
    // A STOP is read whatever opens the window.
    let button = said(&fixture("inbound_button_username_only"));
    assert_eq!(button, format!("message {SCOPED} 1749416383: keyword \"Stop promotions\""));
    let tomorrow = message(r#""from":"1","timestamp":"1749416383","type":"tomorrow""#);
    assert_eq!(said(&tomorrow), "message 1 1749416383: inbound \"\"");
}

#[test]
fn preferences_need_what_they_mean_and_a_stop_needs_the_least() {
    let at = r#""wa_id":"1","timestamp":1749416383"#;
    let known = r#""category":"marketing_messages""#;
    for (fields, says) in [
        (format!(r#"{at},"value":"stop""#), "preference 1 1749416383: stopped true here"),
        (
            format!(r#"{at},"value":"stop","category":7"#),
            "preference 1 1749416383: stopped true here",
        ),
        (format!(r#"{at},"value":"Stop ""#), "preference 1 1749416383: stopped true here"),
        (format!(r#"{at},"value":"stop","category":"else""#), "preference unknown_preference 1"),
        (format!(r#"{at},"value":"resume""#), "preference bad_shape 1"),
        (format!(r#"{at},{known},"value":"signup""#), "preference no_signup_id 1"),
        (
            format!(r#"{at},{known},"value":"signup","signup_id":7"#),
            "preference 1 1749416383: opt-in marketing 7 here; \
             preference 1 1749416383: stopped false",
        ),
        (format!("{at},{known}"), "preference bad_shape 1"),
        (
            format!(r#""user_id":"a","timestamp":1749416383,{known},"value":"stop""#),
            "preference a 1749416383: stopped true here",
        ),
    ] {
        let body = change("user_preferences", &format!(r#""user_preferences":[{{{fields}}}]"#));
        assert_eq!(said(&hear(&body)), says, "{fields}");
    }
    // A sign-up is an opt-in only if the configuration says so.
    let rules = Rules { takes_signup: false, ..rules() };
    let signup = parse(fixture("user_preferences_signup").as_bytes(), &rules).unwrap();
    assert_eq!(said(&signup), "preference unknown_preference 1");
}

#[test]
fn what_is_nobodys_or_unknown_costs_itself_alone() {
    for (body, says) in [
        ("{}", "other bad_shape 1"),
        (r#"{"object":"page","entry":[]}"#, "other unknown_object 1"),
        (r#"{"entry":7}"#, "other bad_shape 1"),
        (
            r#"{"entry":[7,{},{"changes":{}},{"changes":[7,{"field":"x","value":{}}]}]}"#,
            "other unknown_field 1; other bad_shape 4",
        ),
    ] {
        assert_eq!(said(&hear(body)), says, "{body}");
    }
    let bodies = [
        (fixture("inbound_text").replace("106540352242922", "7"), "message unknown_number 1"),
        (
            fixture("inbound_reaction").replace(r#""106540352242922""#, "{}"),
            "message opens_no_window 1",
        ),
        (fixture("call_user_initiated").replace(r#""106540352242922""#, "{}"), "call no_number 1"),
        (
            change("messages", r#""messages":{},"statuses":[7]"#),
            "message bad_shape 1; status bad_shape 1",
        ),
        (change("calls", r#""statuses":[{"status":"RINGING"}]"#), "call not_a_call_by_user 1"),
    ];
    for (body, says) in bodies {
        assert_eq!(said(&hear(&body)), says, "{body}");
    }
    assert_eq!(
        hear(&fixture("inbound_text").replace("106540352242922", "7")).unknown_number.unwrap(),
        "7"
    );
}

#[test]
fn denials_without_a_readable_time_count_as_of_their_arrival() {
    for (field, lists, says) in [
        (
            "messages",
            r#""messages":[{"from":"1","id":"wamid.1","type":"text","text":{"body":"STOP"}}]"#,
            "message 1 arrival: opt-out \"STOP\"; message no_time 1",
        ),
        (
            "messages",
            r#""statuses":[{"recipient_id":"1","status":"failed","timestamp":null,
                "errors":[{"code":131026},{"code":131050},{"code":131047}]}]"#,
            "status 1 arrival: failure 131050 here; status 1 arrival: failure 131047; status no_time 1",
        ),
        (
            "messages",
            r#""statuses":[{"recipient_id":"1","timestamp":"1749416383","errors":{"code":131050}}]"#,
            "status 1 1749416383: failure 131050 here; status bad_shape 1",
        ),
        (
            "messages",
            r#""statuses":[{"recipient_id":"1","status":"failed","errors":[{"code":131026}]}]"#,
            "status no_time 1",
        ),
        (
            "user_preferences",
            r#""user_preferences":[{"wa_id":"1","value":"stop","timestamp":"soon"},
                {"wa_id":"1","value":"resume","category":"marketing_messages"}]"#,
            "preference 1 arrival: stopped true here; preference no_time 2",
        ),
        (
            "messages",
            r#""messages":[{"from":"1","type":"system",
                "system":{"type":"user_changed_number","wa_id":"2"}}]"#,
            "number_change 1 arrival: link 2 true; number_change no_time 1",
        ),
        (
            "messages",
            r#""contacts":{"wa_id":"1","user_id":"a"},"messages":{"from":"1","type":"image"}"#,
            "link 1 arrival: link a false; message no_time 1",
        ),
        (
            "calls",
            r#""calls":[{"from":"1","event":"connect","direction":"USER_INITIATED"}]"#,
            "call no_time 1",
        ),
    ] {
        assert_eq!(said(&hear(&change(field, lists))), says, "{lists}");
    }
    // A message's text is known again by the message's id.
    let heard = hear(&message(r#""from":"1","id":"w","type":"text","text":{"body":"STOP"}"#));
    assert!(!heard.updates[0].submissions[0].request_id.is_empty());
}

#[test]
fn what_cannot_be_told_to_be_of_one_business_denies_at_all_of_them() {
    let mut rules = rules();
    for (number, business) in [("1", "acme"), ("2", "bakery")] {
        rules.numbers.insert(number.to_owned(), business.to_owned());
    }
    let said = |body: &str| said(&parse(body.as_bytes(), &rules).unwrap());
    let stop = fixture("inbound_stop");
    for broken in [
        stop.replace(r#""106540352242922""#, "null"),
        stop.replace("phone_number_id", "phone"),
        stop.replace(r#""metadata""#, r#""meta""#),
    ] {
        assert_eq!(
            said(&broken),
            "message 16505551234 1749416400: opt-out \"Stop.\"; at bakery; \
             message 16505551234 1749416400: opt-out \"Stop.\"; message no_number 1"
        );
    }
    // What it is about cannot be read; what its list is called can.
    let field = stop.replace(r#""field": "messages""#, r#""field": 7"#);
    let field = field.replace(r#""field":"messages""#, r#""field":7"#);
    assert_eq!(
        said(&field),
        "message 16505551234 1749416400: opt-out \"Stop.\"; message bad_shape 1"
    );
}

#[test]
fn the_metrics_know_every_kind_and_cause() {
    assert_eq!(crate::metrics::UPDATE_KINDS, UpdateKind::ALL.map(UpdateKind::name));
    assert_eq!(crate::metrics::SKIP_CAUSES, SkipCause::ALL.map(SkipCause::name));
}
