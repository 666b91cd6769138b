//! What every fixture says.

use super::*;

const PARENT: &str = "US.ENT.11815799212886844830";
const SECOND: &str = "106540352242923";
const NEW: &str = "16505559999";
const NEW_SCOPED: &str = "US.20071455931182640035";
const NEW_PARENT: &str = "US.ENT.20944180066153327741";

#[test]
#[allow(clippy::too_many_lines, reason = "it is a list")]
fn every_fixture_says_what_it_should() {
    let expected = [
        (
            "account_restriction",
            "account template:* 1760000300: utility is marketing true until 4102444800",
        ),
        ("account_restriction_other", "account not_a_restriction 1"),
        ("account_terms_signed", "account not_a_restriction 1"),
        ("template_category_announced", "template announced 1"),
        (
            "template_category_marketing",
            "template template:order_update:en_US 1760000100: marketing",
        ),
        ("template_category_utility", "template template:order_update:en_US 1760000200: utility"),
        ("call_accepted", "call USER 1752583200: inbound \"\""),
        ("call_business_initiated", "call not_a_call_by_user 1"),
        ("call_permission_accept", "message opens_no_window 1"),
        ("call_permission_reject_automatic", "message opens_no_window 1"),
        ("call_rejected", "call not_a_call_by_user 1"),
        (
            "call_scoped_only",
            "call SCOPED 1752583203: inbound \"\"; also PARENT 1752583203: inbound \"\"; \
             link SCOPED 1752583203: link PARENT false",
        ),
        ("call_sip", "call USER 1752583202: inbound \"\""),
        ("call_user_initiated", "call USER 1752583107: inbound \"\""),
        (
            "inbound_button_configured",
            "message USER 1749416399: inbound \"No, thanks\"; \
             message USER 1749416399: keyword \"promo:no\"",
        ),
        (
            "inbound_button_promotions_es",
            "message USER 1749416397: inbound \"Detener promociones\"",
        ),
        (
            "inbound_button_promotions_fr",
            "message USER 1749416398: inbound \"Arrêter les promotions\"; \
             message USER 1749416398: keyword \"promo-7\"",
        ),
        ("inbound_button_username_only", "message SCOPED 1749416383: inbound \"Stop promotions\""),
        ("history_caption_stop", "message USER 1739230990: opt-out \"Unsubscribe\""),
        ("history_declined", "other unknown_field 1"),
        (
            "history_stop",
            "message USER 1739230970: opt-out \"Stop\"; message unknown_type 1; \
             message not_by_user 2",
        ),
        ("inbound_contact_card", "message SCOPED 1749416401: inbound \"\""),
        (
            "inbound_contact_request",
            "message SCOPED 1749416400: inbound \"\"; link SCOPED 1749416400: link USER false",
        ),
        ("inbound_edit", "message USER 1749416383: opt-out \"Hello\""),
        ("inbound_edit_caption_stop", "message USER 1749416391: opt-out \"Unsubscribe\""),
        ("inbound_edit_stop", "message USER 1749416390: opt-out \"Stop\""),
        ("inbound_edit_unsupported_stop", "message USER 1749416392: opt-out \"STOP\""),
        (
            "inbound_flow_stop",
            "message USER 1749416394: inbound \"\"; message USER 1749416394: opt-out \"Stop\"; \
             message USER 1749416394: opt-out \"0_Other\"; message USER 1749416394: opt-out \"4\"",
        ),
        (
            "inbound_image_caption_stop",
            "message USER 1749416393: inbound \"\"; message USER 1749416393: opt-out \"Stop!\"",
        ),
        ("standby_failed_131050", "status USER 1749502800: failure 131050 here"),
        ("standby_stop", "message USER 1749416395: opt-out \"STOP\""),
        ("standby_text", "message USER 1749416396: opt-out \"When do you open?\""),
        ("inbound_group_stop", "message USER 1749416383: opt-out \"Stop\""),
        ("inbound_group_text", "message USER 1749416383: opt-out \"Hello all\""),
        (
            "inbound_order_stop",
            "message USER 1749416402: inbound \"\"; message USER 1749416402: opt-out \"Unsubscribe\"",
        ),
        (
            "inbound_image",
            "message USER 1749416383: inbound \"\"; \
             message USER 1749416383: opt-out \"The red one?\"",
        ),
        (
            "inbound_interactive_button_reply",
            "message USER 1749416383: inbound \"Cancel\"; \
             message USER 1749416383: keyword \"cancel-button\"",
        ),
        (
            "inbound_interactive_list_reply",
            "message USER 1749416383: inbound \"No more messages\"; \
             message USER 1749416383: keyword \"stop\"; \
             message USER 1749416383: opt-out \"You will not hear from us again\"",
        ),
        (
            "inbound_number_and_id",
            "message USER 1749416383: inbound \"Hi\"; message SCOPED 1749416383: opt-out \"Hi\"; \
             also SCOPED 1749416383: inbound \"\"; link USER 1749416383: link SCOPED false",
        ),
        (
            "inbound_longest_ids",
            "message LONGEST 1749416405: inbound \"Hi\"; message ABOVE 1749416405: opt-out \"Hi\"; \
             also ABOVE 1749416405: inbound \"\"; link LONGEST 1749416405: link ABOVE false",
        ),
        ("inbound_reaction", "message opens_no_window 1"),
        ("inbound_referral", "message USER 1749416404: inbound \"Is it still available?\""),
        ("inbound_revoke", "message opens_no_window 1"),
        ("inbound_stop", "message USER 1749416400: inbound \"Stop.\""),
        ("inbound_text", "message USER 1749416383: inbound \"Does it come in another color?\""),
        (
            "inbound_three_ids",
            "message USER 1749416383: inbound \"Hi\"; message SCOPED 1749416383: opt-out \"Hi\"; \
             message PARENT 1749416383: opt-out \"Hi\"; also SCOPED 1749416383: inbound \"\"; \
             also PARENT 1749416383: inbound \"\"; link USER 1749416383: link SCOPED false; \
             link USER 1749416383: link PARENT false",
        ),
        ("inbound_unsupported", "message opens_no_window 1"),
        ("inbound_unsupported_131060", "message opens_no_window 1"),
        ("message_echoes", "other unknown_field 1"),
        ("phone_number_quality_update", "other unknown_field 1"),
        ("smb_app_state_sync", "other unknown_field 1"),
        ("user_actions", "other unknown_field 1"),
        ("user_id_update", "other unknown_field 1"),
        ("value_errors", "other unknown_field 1"),
        (
            "several",
            "message USER 1749416383: inbound \"Hi\"; message USER 1749416384: inbound \"STOP\"; \
             message USER arrival: opt-out \"Hi\"; status USER 1749502800: failure 131047; \
             message unknown_type 1; message no_time 1",
        ),
        ("status_delivered", "status not_failed 1"),
        (
            "status_delivered_and_failed",
            "status USER 1749502811: failure 131050 here; status not_failed 1",
        ),
        ("status_failed_130403", "status USER 1749502800: failure 130403"),
        ("status_failed_130472", "status USER 1749502800: failure 130472"),
        ("status_failed_130497", "status USER 1749502800: failure 130497"),
        ("status_failed_131026", "status USER 1749502800: failure 131026"),
        ("status_failed_131047", "status USER 1749502800: failure 131047"),
        ("status_failed_131049", "status USER 1749502800: failure 131049"),
        ("status_failed_131050", "status USER 1749502800: failure 131050 here"),
        ("status_failed_131050_second_number", "status unknown_number 1"),
        ("status_failed_group", "status to_group 1"),
        (
            "status_failed_scoped_only",
            "status SCOPED 1749502820: failure 131050 here; status PARENT 1749502820: failure \
             131050 here; link SCOPED 1749502820: link PARENT false",
        ),
        (
            "status_failed_account",
            "status USER 1749502801: failure 131026; status USER 1749502802: failure 131042; \
             status USER 1749502803: failure 131048; status USER 1749502804: failure 131056; \
             status USER 1749502805: failure 131062; status USER 1749502806: failure 131063; \
             status USER 1749502807: failure 131064",
        ),
        ("system_user_changed_number", "number_change USER 1753851315: link NEW true"),
        (
            "system_user_changed_number_ids",
            "number_change USER 1786000000: link NEW true; \
             number_change USER 1786000000: link LATER true; \
             number_change USER 1786000000: link MOTHER true; \
             number_change SCOPED 1786000000: link LATER true; \
             number_change PARENT 1786000000: link MOTHER true",
        ),
        ("system_user_changed_number_no_from", "number_change SCOPED 1786000000: link LATER true"),
        (
            "system_user_changed_user_id",
            "number_change SCOPED 1786000000: link LATER true; \
             number_change SCOPED 1786000000: link MOTHER true; \
             number_change PARENT 1786000000: link MOTHER true",
        ),
        (
            "system_user_changed_user_id_older",
            "number_change USER 1776000000: link NEW true; \
             number_change USER 1776000000: link LATER true",
        ),
        (
            "system_user_changed_user_id_older_no_from",
            "number_change SCOPED 1776000001: link LATER true",
        ),
        (
            "user_preferences_resume",
            "preference USER 1731705800: stopped false here; \
             preference USER 1731705800: stopped false",
        ),
        ("user_preferences_resume_second_number", "preference unknown_number 1"),
        (
            "user_preferences_resume_three_ids",
            "preference USER 1731705800: stopped false here; \
             preference USER 1731705800: stopped false; \
             also SCOPED 1731705800: stopped false here; \
             also SCOPED 1731705800: stopped false; \
             also PARENT 1731705800: stopped false here; \
             also PARENT 1731705800: stopped false; link USER 1731705800: link SCOPED false; \
             link USER 1731705800: link PARENT false",
        ),
        (
            "user_preferences_signup",
            "preference USER 1731705900: opt-in marketing 13176843987434774 here; \
             preference USER 1731705900: stopped false",
        ),
        (
            "user_preferences_signup_two_ids",
            "preference USER 1731705900: opt-in marketing 13176843987434774 here; \
             preference USER 1731705900: stopped false; \
             also SCOPED 1731705900: opt-in marketing 13176843987434774 here; \
             also SCOPED 1731705900: stopped false; \
             link USER 1731705900: link SCOPED false",
        ),
        ("user_preferences_stop", "preference USER 1731705721: stopped true here"),
        ("user_preferences_stop_second_number", "preference unknown_number 1"),
        ("user_preferences_unknown", "preference unknown_preference 1"),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/whatsapp");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), expected.len());
    // As long as the platform's ids may be: 131 bytes, and 135 of the parent's.
    let longest = format!("US.{}", "A1b2C3d4".repeat(16));
    let above = format!("US.ENT.{}", "Z9y8X7w6".repeat(16));
    for (name, says) in expected {
        let says = says.replace("USER", USER).replace("SCOPED", SCOPED).replace("PARENT", PARENT);
        let says = says.replace("NEW", NEW).replace("LATER", NEW_SCOPED);
        let says = says.replace("MOTHER", NEW_PARENT);
        let says = says.replace("LONGEST", &longest).replace("ABOVE", &above);
        assert_eq!(said(&hear(&fixture(name))), says, "{name}");
    }
}

#[test]
fn stops_and_resumes_of_two_numbers_are_apart() {
    let mut two = rules();
    two.numbers.insert(SECOND.to_owned(), "acme".to_owned());
    for (name, says) in [
        ("user_preferences_stop", "preference USER 1731705721: stopped true here"),
        (
            "user_preferences_stop_second_number",
            "preference USER 1731705750: stopped true at SECOND",
        ),
        // Which of the two a stop without a number was at is unknown.
        ("user_preferences_resume", "preference USER 1731705800: stopped false here"),
        (
            "user_preferences_resume_second_number",
            "preference USER 1731705850: stopped false at SECOND",
        ),
        ("status_failed_131050_second_number", "status USER 1749502900: failure 131050 at SECOND"),
        (
            "user_preferences_signup",
            "preference USER 1731705900: opt-in marketing 13176843987434774 here",
        ),
    ] {
        let says = says.replace("USER", USER).replace("SECOND", SECOND);
        assert_eq!(said(&parse(fixture(name).as_bytes(), &two).unwrap()), says, "{name}");
    }
    // A number of another business does not make it two.
    let mut other = rules();
    other.numbers.insert(SECOND.to_owned(), "other".to_owned());
    let resume = parse(fixture("user_preferences_resume").as_bytes(), &other).unwrap();
    let says = "preference USER 1731705800: stopped false here; \
                preference USER 1731705800: stopped false";
    assert_eq!(said(&resume), says.replace("USER", USER));
}
