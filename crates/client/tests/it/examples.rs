//! The examples and the recipe do what they say.

use std::process::Command;

use crate::fixture::sidecar;

/// Runs an example; Cargo has built it with these tests, unless they were built alone.
fn run(example: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "consentd-client", "--all-features", "--example"])
        .args([&[example, "--"], arguments].concat())
        .output()
        .expect("Cargo runs the tests");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{example}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test]
async fn the_conversation_is_as_written() {
    let sidecar = sidecar(&[]).await;
    let address = sidecar.address().to_owned();
    let said = tokio::task::spawn_blocking(move || run("conversation", &[&address])).await.unwrap();
    let newsletter = "category: unknown class \"newsletter\", did you mean marketing? It is one of marketing, utility, \
                      authentication or service, perhaps with a topic: utility.order_updates";
    let expected = format!(
        "opt-in recorded\n\
         marketing: send: OPTED_IN\n\
         STOP recorded: opted out of *\n\
         marketing: do not send: OPTED_OUT_ALL\n\
         marketing: do not send: OPTED_OUT_ALL\n\
         newsletter: do not send: {newsletter}\n\
         utility.order_updates: do not send: OPTED_OUT_ALL\n\
         opt-in refused: INVALID_ARGUMENT\n  \
           event.opt_in.{newsletter}\n  \
           event.opt_in.evidence.statement: must say that the messages come through WhatsApp, by that name\n  \
           event.opt_in.evidence.statement: must contain the business_name given beside it\n\
         no sidecar: do not send: no answer (UNAVAILABLE)\n"
    );
    // On a busy machine the deadline of 50 ms may be over before the connection is refused.
    assert_eq!(said.replace("(DEADLINE_EXCEEDED)", "(UNAVAILABLE)"), expected);
}

#[test]
fn the_tower_layer_sends_what_is_allowed_alone() {
    assert_eq!(run("tower_layer", &[]), "sent 20 bytes\ndo not send: NO_CONSENT\n");
}
