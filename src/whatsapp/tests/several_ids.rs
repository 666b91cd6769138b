//! Updates of a user with several ids.

use super::*;

const AT: &str = r#""timestamp":"1749416383""#;

fn link(other: &str) -> String {
    format!("link 1 1749416383: link {other} false")
}

#[test]
fn ids_of_one_update_are_linked_once_whatever_their_fields() {
    for (lists, says) in [
        (
            format!(r#""messages":[{{"from_parent_user_id":"US.ENT.p",{AT},"type":"image"}}]"#),
            "message US.ENT.p 1749416383: inbound \"\"".to_owned(),
        ),
        (
            format!(
                r#""contacts":[{{"wa_id":"1","parent_user_id":"US.ENT.p"}}],
                "messages":[{{"from_parent_user_id":"US.ENT.p",{AT},"type":"image"}}]"#
            ),
            format!(
                "message 1 1749416383: inbound \"\"; also US.ENT.p 1749416383: inbound \"\"; {}",
                link("US.ENT.p")
            ),
        ),
        // One id in two fields is one id.
        (
            format!(r#""messages":[{{"from":"US.a","from_user_id":"US.a",{AT},"type":"image"}}]"#),
            "message US.a 1749416383: inbound \"\"".to_owned(),
        ),
        (
            format!(
                r#""statuses":[{{"recipient_id":"1","recipient_user_id":"US.a",{AT},
                "status":"failed","errors":[{{"code":131047}},{{"code":131026}}]}}]"#
            ),
            format!(
                "status 1 1749416383: failure 131047; status 1 1749416383: failure 131026; \
                 status US.a 1749416383: failure 131047; {}",
                link("US.a")
            ),
        ),
        // In a group the recipient is the group.
        (
            format!(
                r#""statuses":[{{"recipient_id":"1","recipient_user_id":"US.a",{AT},
                "recipient_type":"group","status":"failed","errors":[{{"code":131047}}]}}]"#
            ),
            "status to_group 1".to_owned(),
        ),
    ] {
        assert_eq!(said(&hear(&change("messages", &lists))), says, "{lists}");
    }
    let stop = r#""user_preferences":[{"wa_id":"1","user_id":"US.a","value":"stop",
        "category":"marketing_messages","timestamp":1749416383}]"#;
    let says = format!(
        "preference 1 1749416383: stopped true here; preference US.a 1749416383: stopped true here; {}",
        link("US.a")
    );
    assert_eq!(said(&hear(&change("user_preferences", stop))), says);
}

#[test]
fn a_call_links_the_user_and_never_the_business() {
    for (call, says) in [
        (
            r#""from":"15550783881","to":"1","to_user_id":"US.a","event":"connect",
            "direction":"BUSINESS_INITIATED""#,
            format!("{}; call not_a_call_by_user 1", link("US.a")),
        ),
        (
            r#""from":"1","from_user_id":"US.a","event":"terminate","direction":"USER_INITIATED""#,
            format!("{}; call not_a_call_by_user 1", link("US.a")),
        ),
    ] {
        let body = change("calls", &format!(r#""calls":[{{{call},{AT}}}]"#));
        assert_eq!(said(&hear(&body)), says, "{call}");
    }
    let accepted = format!(
        r#""statuses":[{{"type":"call","status":"ACCEPTED","recipient_id":"1",
        "recipient_user_id":"US.a",{AT}}}]"#
    );
    let says = format!(
        "call 1 1749416383: inbound \"\"; also US.a 1749416383: inbound \"\"; {}",
        link("US.a")
    );
    assert_eq!(said(&hear(&change("calls", &accepted))), says);
}

#[test]
fn a_malformed_update_allows_under_no_id() {
    let fields =
        r#""from":"1","from_user_id":"US.a","id":"w","type":"text","text":{"body":"STOP"}"#;
    let says = "message 1 arrival: opt-out \"STOP\"; message US.a arrival: opt-out \"STOP\"; \
                link 1 arrival: link US.a false; message no_time 1";
    assert_eq!(said(&hear(&message(fields))), says);
}

#[test]
fn changed_ids_are_linked_whatever_names_them() {
    let number = "user_changed_number";
    let id = "user_changed_user_id";
    let change = |old: &str, new: &str| format!("number_change {old} 1749416383: link {new} true");
    for (kind, fields, system, says) in [
        (number, r#""from":"1","#, r#""wa_id":"2""#, vec![change("1", "2")]),
        (number, r#""from":"1","#, r#""new_wa_id":2"#, vec![change("1", "2")]),
        (
            number,
            r#""from":"1","#,
            r#""wa_id":"2","user_id":"US.b","previous_user_id":"US.a""#,
            vec![change("1", "2"), change("1", "US.b"), change("US.a", "US.b")],
        ),
        // Only the new number is named, and only the old id.
        (number, "", r#""wa_id":"2","previous_user_id":"US.a""#, vec![change("US.a", "2")]),
        (
            id,
            "",
            r#""user_id":"US.b","previous_parent_user_id":"US.ENT.a""#,
            vec![change("US.ENT.a", "US.b")],
        ),
        // What is the same before and after is not old.
        (
            id,
            r#""from":"1","from_user_id":"US.b","#,
            r#""wa_id":"1","user_id":"US.b","previous_user_id":"US.a""#,
            vec![change("US.a", "1"), change("US.a", "US.b")],
        ),
        // The body alone names the old one, behind a name that the user has chosen.
        (
            id,
            "",
            r#""user_id":"US.b","body":"User changed from 7 to 8 changed from US.a to US.b""#,
            vec![change("US.a", "US.b")],
        ),
        (
            number,
            "",
            r#""wa_id":"2","body":"User A changed from 15550001111 to 2""#,
            vec![change("15550001111", "2")],
        ),
    ] {
        let fields = format!(
            r#"{fields}"timestamp":"1749416383","type":"system","system":{{"type":"{kind}",{system}}}"#
        );
        assert_eq!(said(&hear(&message(&fields))), says.join("; "), "{fields}");
    }
    for system in [
        r#""user_id":"US.b","body":"User changed from nobody to US.b""#,
        r#""user_id":"US.b","previous_user_id":"US.b""#,
        r#""previous_user_id":"US.a""#,
        r#""user_id":7.5,"previous_user_id":[]"#,
    ] {
        let fields = format!(
            r#""timestamp":"1749416383","type":"system","system":{{"type":"{id}",{system}}}"#
        );
        assert_eq!(said(&hear(&message(&fields))), "number_change no_user 1", "{system}");
    }
}

#[test]
fn a_number_is_linked_if_the_user_shared_it_because_it_was_asked_for() {
    let shared = |origins: (&str, &str), phones: &str| {
        let (of_message, of_contact) = origins;
        let fields = format!(
            r#""from_user_id":"US.a","timestamp":"1749416383","type":"contacts"{of_message},
            "contacts":[{{"phones":{phones}{of_contact}}}]"#
        );
        let heard = said(&hear(&message(&fields)));
        let own = "message US.a 1749416383: inbound \"\"";
        heard.strip_prefix(own).expect("it is a message").trim_start_matches("; ").to_owned()
    };
    let (asked, other) = (r#","origin":"contact_request""#, r#","origin":"other""#);
    let linked = "link US.a 1749416383: link 1 false";
    let phones = r#"[{"phone":"+9 1","wa_id":"1"}]"#;
    assert_eq!(shared((asked, ""), phones), linked);
    assert_eq!(shared(("", asked), phones), linked);
    assert_eq!(shared((asked, ""), r#"[{"phone":"1"}]"#), linked);
    for origins in [("", ""), (other, ""), ("", other), (asked, other)] {
        assert_eq!(shared(origins, phones), "", "{origins:?}");
    }
    for phones in ["7", "[]", "[7]", r#"[{"phone":"call me"}]"#] {
        assert_eq!(shared((asked, ""), phones), "", "{phones}");
    }
}

/// Comparing each update with each contact would take minutes.
#[test]
fn many_updates_are_each_of_the_contact_that_has_their_id() {
    const COUNT: usize = 30_000;
    let contacts: Vec<_> = (0..COUNT)
        .map(|place| format!(r#"{{"wa_id":"1555{place:07}","user_id":"US.{place}"}}"#))
        .collect();
    let messages: Vec<_> = (0..COUNT)
        .rev()
        .map(|place| format!(r#"{{"from_user_id":"US.{place}",{AT},"type":"image"}}"#))
        .collect();
    let (contacts, messages) = (contacts.join(","), messages.join(","));
    let heard =
        hear(&change("messages", &format!(r#""contacts":[{contacts}],"messages":[{messages}]"#)));
    assert_eq!(heard.updates.len(), COUNT);
    for (update, place) in heard.updates.iter().zip((0..COUNT).rev()) {
        assert_eq!(update.submissions[0].event.user_id, format!("1555{place:07}"));
    }
}

#[test]
fn a_contact_is_found_by_any_of_its_ids_and_the_first_one_counts() {
    for (contacts, ids, says) in [
        (r#"{"wa_id":"1"}"#, "", "1"),
        (r#"{"wa_id":"1"},{"wa_id":"2"}"#, "", ""),
        (r#"{"wa_id":"1","user_id":"US.a"},{"wa_id":"2","user_id":"US.a"}"#, "US.a", "1"),
        (r#"{"wa_id":"2"},{"wa_id":"1","user_id":"US.a"}"#, "US.a", "1"),
        // One id in a field of another kind is not the same.
        (r#"{"wa_id":"US.a","user_id":"US.b"}"#, "US.a", "US.a"),
    ] {
        let from = Some(ids).filter(|ids| !ids.is_empty());
        let from = from.map_or(String::new(), |id| format!(r#""from_user_id":"{id}","#));
        let heard = hear(&change(
            "messages",
            &format!(r#""contacts":[{contacts}],"messages":[{{{from}{AT},"type":"image"}}]"#),
        ));
        let user =
            heard.updates.first().map_or("", |update| update.submissions[0].event.user_id.as_str());
        assert_eq!(user, says, "{contacts} {ids}");
    }
}
