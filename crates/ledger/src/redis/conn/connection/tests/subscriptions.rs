//! Subscriptions to real servers.

use std::sync::Mutex;

use super::*;
use crate::redis::conn::subscription::{SubscriptionEvent, subscribe};

pub(super) type Told = Arc<Mutex<Vec<SubscriptionEvent>>>;

/// Listens in the background; what it tells is collected.
fn listening(url: &str, options: TargetOptions) -> (Told, AbortOnDropHandle<()>) {
    listening_on(Arc::new(PrimaryLocator::new(Arc::new(Target::new(url, options).unwrap()))))
}

pub(super) fn listening_on(primary: Arc<PrimaryLocator>) -> (Told, AbortOnDropHandle<()>) {
    let told = Told::default();
    let into = Arc::clone(&told);
    let task = tokio::spawn(async move {
        let sink = move |pushed| {
            into.lock().unwrap().push(pushed);
            std::future::ready(())
        };
        subscribe(primary, "{consent:0}:ch".to_owned(), Timeouts::default(), sink).await;
    });
    (told, AbortOnDropHandle::new(task))
}

fn count(told: &Told, of: impl Fn(&SubscriptionEvent) -> bool) -> usize {
    told.lock().unwrap().iter().filter(|pushed| of(pushed)).count()
}

pub(super) async fn until(
    what: &str,
    told: &Told,
    least: usize,
    of: impl Fn(&SubscriptionEvent) -> bool,
) {
    in_time(what, async || (count(told, &of) >= least).then_some(())).await;
}

pub(super) fn is_gap(pushed: &SubscriptionEvent) -> bool {
    matches!(pushed, SubscriptionEvent::Gap)
}

pub(super) fn is_message(pushed: &SubscriptionEvent) -> bool {
    matches!(pushed, SubscriptionEvent::Message(_))
}

#[tokio::test]
async fn what_is_published_is_delivered_and_every_new_subscription_is_a_gap() {
    let server = Server::start(&[]).await;
    let (told, _task) = listening(&server.url(), TargetOptions::default());
    until("the subscription", &told, 1, is_gap).await;
    for body in ["one", "two"] {
        assert_eq!(server.tell(&["PUBLISH", "{consent:0}:ch", body]), "1");
    }
    server.tell(&["PUBLISH", "another", "three"]);
    until("the messages", &told, 2, is_message).await;
    assert_eq!(server.tell(&["CLIENT", "KILL", "TYPE", "pubsub"]), "1");
    until("another subscription", &told, 2, is_gap).await;
    assert_eq!(server.tell(&["PUBLISH", "{consent:0}:ch", "four"]), "1");
    until("the next message", &told, 3, is_message).await;
    let told = told.lock().unwrap();
    let words: Vec<_> = told
        .iter()
        .map(|pushed| match pushed {
            SubscriptionEvent::Message(body) => String::from_utf8_lossy(body).into_owned(),
            SubscriptionEvent::Gap => "gap".to_owned(),
            SubscriptionEvent::Lost(_) => "lost".to_owned(),
            SubscriptionEvent::Refused(_) => "refused".to_owned(),
        })
        .collect();
    assert_eq!(words, ["gap", "one", "two", "lost", "gap", "four"]);
}

#[tokio::test]
async fn a_refused_subscription_is_told_and_tried_again() {
    let user = ["--user", "sidecar", "on", "nopass", "~*", "resetchannels", "+@all"];
    let server = Server::start(&user).await;
    let options = TargetOptions { user: Some("sidecar".to_owned()), ..TargetOptions::default() };
    let (told, _task) = listening(&server.url(), options);
    let is_refused = |pushed: &SubscriptionEvent| matches!(pushed, SubscriptionEvent::Refused(error) if error.to_string().contains("NOPERM"));
    until("refusals", &told, 2, is_refused).await;
    assert_eq!(count(&told, is_gap), 0);
    server.tell(&["ACL", "SETUSER", "sidecar", "&{consent:0}:ch"]);
    until("the subscription", &told, 1, is_gap).await;
    // What is taken away again is noticed: the server ends the connection.
    server.tell(&["ACL", "SETUSER", "sidecar", "resetchannels"]);
    until("its loss", &told, 1, |pushed| matches!(pushed, SubscriptionEvent::Lost(_))).await;
}

#[tokio::test]
async fn a_server_that_went_silent_is_left() {
    let server = Server::start(&[]).await;
    let (told, _task) = listening(&server.url(), TargetOptions::default());
    until("the subscription", &told, 1, is_gap).await;
    server.signal(rustix::process::Signal::STOP);
    let is_late = |pushed: &SubscriptionEvent| matches!(pushed, SubscriptionEvent::Lost(error) if error.to_string().contains("no answer"));
    until("the end of patience", &told, 1, is_late).await;
    server.signal(rustix::process::Signal::CONT);
    until("another subscription", &told, 2, is_gap).await;
}

#[tokio::test]
async fn a_listener_that_is_too_slow_is_told_of_a_gap_and_holds_no_queue() {
    let limit = "pubsub 1mb 1mb 1";
    let server = Server::start(&["--client-output-buffer-limit", limit]).await;
    let primary = Arc::new(PrimaryLocator::new(Arc::new(server.url().parse().unwrap())));
    let gaps = Arc::new(AtomicU64::new(0));
    let inner_gaps = Arc::clone(&gaps);
    // Nothing comes through it; the sink stands still until the other end is dropped.
    let (held, gate) = std::sync::mpsc::channel::<()>();
    // On a thread of its own, since its sink stands still.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listening = subscribe(primary, "c".to_owned(), Timeouts::default(), |pushed| {
                match pushed {
                    SubscriptionEvent::Message(_) => drop(gate.recv()),
                    SubscriptionEvent::Gap => drop(inner_gaps.fetch_add(1, Ordering::Relaxed)),
                    _ => {}
                }
                std::future::ready(())
            });
            let done = async {
                in_time("the gaps", async || {
                    (inner_gaps.load(Ordering::Relaxed) >= 2).then_some(())
                })
                .await;
            };
            tokio::select! { _ = listening => {}, () = done => {} }
        });
    });
    let gaps = &gaps;
    let seen = |least| async move {
        in_time("a gap", async || (gaps.load(Ordering::Relaxed) >= least).then_some(())).await;
    };
    seen(1).await;
    // More than the kernel and the server hold for it, until it is closed. The messages are shorter
    // than 16 KiB, since Valkey counts no longer ones against the limit.
    let publish = "local body, told = string.rep('x', 15000), 0
        for _ = 1, 100 do told = redis.call('PUBLISH', 'c', body) end
        return told";
    in_time("its end", async || (server.tell(&["EVAL", publish, "0"]) == "0").then_some(())).await;
    drop(held);
    seen(2).await;
    thread.join().unwrap();
}
