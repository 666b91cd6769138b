//! Subscriptions to real servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, Weak};

use super::*;
use futures_util::future::BoxFuture;
use tokio_util::task::AbortOnDropHandle;

use crate::redis::conn::subscription::{Sink, SubscriptionEvent, Subscriptions};

pub(super) type Events = Arc<Mutex<Vec<SubscriptionEvent>>>;

/// Subscribes in the background and collects the events.
fn listening(url: &str, options: TargetOptions) -> (Events, AbortOnDropHandle<()>) {
    listening_on(locator(Target::new(url, options).unwrap()))
}

/// Collects events.
struct Collector(Events);

impl Sink for Collector {
    fn take(&self, event: SubscriptionEvent) -> BoxFuture<'_, bool> {
        self.0.lock().unwrap().push(event);
        Box::pin(std::future::ready(true))
    }
}

pub(super) fn listening_on(primary: PrimaryLocator) -> (Events, AbortOnDropHandle<()>) {
    let events = Events::default();
    let subscriptions = Subscriptions::new(Arc::clone(primary.servers()), Timeouts::default());
    subscriptions.add("{consent:0}:ch", primary, Arc::new(Collector(Arc::clone(&events))));
    let task = tokio::spawn(async move { match Arc::new(subscriptions).run().await {} });
    (events, AbortOnDropHandle::new(task))
}

fn count(events: &Events, of: impl Fn(&SubscriptionEvent) -> bool) -> usize {
    events.lock().unwrap().iter().filter(|event| of(event)).count()
}

pub(super) async fn until(
    what: &str,
    events: &Events,
    least: usize,
    of: impl Fn(&SubscriptionEvent) -> bool,
) {
    in_time(what, async || (count(events, &of) >= least).then_some(())).await;
}

pub(super) fn is_gap(event: &SubscriptionEvent) -> bool {
    matches!(event, SubscriptionEvent::Gap)
}

pub(super) fn is_message(event: &SubscriptionEvent) -> bool {
    matches!(event, SubscriptionEvent::Message(_))
}

#[tokio::test]
async fn subscription_delivers_messages_and_reports_each_resubscription_as_a_gap() {
    let server = Server::start(&[]).await;
    let (events, _task) = listening(&server.url(), TargetOptions::default());
    until("the subscription", &events, 1, is_gap).await;
    for body in ["one", "two"] {
        assert_eq!(server.tell(&["PUBLISH", "{consent:0}:ch", body]), "1");
    }
    server.tell(&["PUBLISH", "another", "three"]);
    until("the messages", &events, 2, is_message).await;
    assert_eq!(server.tell(&["CLIENT", "KILL", "TYPE", "pubsub"]), "1");
    until("another subscription", &events, 2, is_gap).await;
    assert_eq!(server.tell(&["PUBLISH", "{consent:0}:ch", "four"]), "1");
    until("the next message", &events, 3, is_message).await;
    let events = events.lock().unwrap();
    let words: Vec<_> = events
        .iter()
        .map(|event| match event {
            SubscriptionEvent::Message(body) => String::from_utf8_lossy(body).into_owned(),
            SubscriptionEvent::Gap => "gap".to_owned(),
            SubscriptionEvent::Lost(_) => "lost".to_owned(),
            SubscriptionEvent::Refused(_) => "refused".to_owned(),
        })
        .collect();
    assert_eq!(words, ["gap", "one", "two", "lost", "gap", "four"]);
}

#[tokio::test]
async fn rejected_subscription_is_reported_and_retried() {
    let user = ["--user", "sidecar", "on", "nopass", "~*", "resetchannels", "+@all"];
    let server = Server::start(&user).await;
    let options = TargetOptions { user: Some("sidecar".to_owned()), ..TargetOptions::default() };
    let (events, _task) = listening(&server.url(), options);
    let is_refused = |event: &SubscriptionEvent| matches!(event, SubscriptionEvent::Refused(error) if error.to_string().contains("NOPERM"));
    until("refusals", &events, 2, is_refused).await;
    assert_eq!(count(&events, is_gap), 0);
    server.tell(&["ACL", "SETUSER", "sidecar", "&{consent:0}:ch"]);
    until("the subscription", &events, 1, is_gap).await;
    // If the permission is revoked, the server closes the connection.
    server.tell(&["ACL", "SETUSER", "sidecar", "resetchannels"]);
    until("its loss", &events, 1, |event| matches!(event, SubscriptionEvent::Lost(_))).await;
}

#[tokio::test]
async fn subscription_at_a_busy_server_is_lost_for_a_while_and_not_refused() {
    let server = Server::start(&["--busy-reply-threshold", "1"]).await;
    let port = server.port().to_string();
    let busy = std::thread::spawn(move || {
        let mut endless = std::process::Command::new("redis-cli");
        endless.args(["-p", &port, "EVAL", "while true do end", "0"]).output().unwrap()
    });
    in_time("a busy server", async || server.tell(&["PING"]).contains("BUSY").then_some(())).await;
    let (events, _task) = listening(&server.url(), TargetOptions::default());
    let is_busy = |event: &SubscriptionEvent| matches!(event, SubscriptionEvent::Lost(error) if error.to_string().contains("BUSY"));
    until("its reply", &events, 1, is_busy).await;
    server.tell(&["SCRIPT", "KILL"]);
    until("the subscription", &events, 1, is_gap).await;
    assert_eq!(count(&events, |event| matches!(event, SubscriptionEvent::Refused(_))), 0);
    busy.join().unwrap();
}

#[tokio::test]
async fn silent_server_loses_the_subscription() {
    let server = Server::start(&[]).await;
    let (events, _task) = listening(&server.url(), TargetOptions::default());
    until("the subscription", &events, 1, is_gap).await;
    server.signal(rustix::process::Signal::STOP);
    let is_late = |event: &SubscriptionEvent| matches!(event, SubscriptionEvent::Lost(error) if error.to_string().contains("no answer"));
    until("the end of patience", &events, 1, is_late).await;
    server.signal(rustix::process::Signal::CONT);
    until("another subscription", &events, 2, is_gap).await;
}

/// Adds its channel anew with another sink, as a follower does that begins just then, and wants no more itself.
struct Leaving {
    primary: PrimaryLocator,
    subscriptions: Arc<OnceLock<Weak<Subscriptions>>>,
    next: Arc<Collector>,
}

impl Sink for Leaving {
    fn take(&self, event: SubscriptionEvent) -> BoxFuture<'_, bool> {
        let is_message = is_message(&event);
        if is_message {
            let subscriptions = self.subscriptions.get().unwrap().upgrade().unwrap();
            let next = Arc::<Collector>::clone(&self.next);
            subscriptions.add("c", self.primary.clone(), next);
        }
        Box::pin(std::future::ready(!is_message))
    }
}

#[tokio::test]
async fn channel_that_was_added_anew_while_its_former_sink_left_stays_subscribed() {
    let server = Server::start(&[]).await;
    let primary = locator(server.url().parse().unwrap());
    let servers = Arc::clone(primary.servers());
    let events = Events::default();
    let handle = Arc::new(OnceLock::new());
    let next = Arc::new(Collector(Arc::clone(&events)));
    let leaving = Leaving { primary: primary.clone(), subscriptions: Arc::clone(&handle), next };
    let subscriptions = Arc::new(Subscriptions::new(servers, Timeouts::default()));
    handle.set(Arc::downgrade(&subscriptions)).unwrap();
    subscriptions.add("c", primary, Arc::new(leaving));
    let _task = AbortOnDropHandle::new(tokio::spawn({
        let subscriptions = Arc::clone(&subscriptions);
        async move { match subscriptions.run().await {} }
    }));
    in_time("a message to the other sink", async || {
        server.tell(&["PUBLISH", "c", "hello"]);
        (count(&events, is_message) > 0).then_some(())
    })
    .await;
}

/// Blocks at each message until the gate is opened for good, and counts gaps.
struct Blocking {
    gate: Mutex<std::sync::mpsc::Receiver<()>>,
    gaps: Arc<AtomicU64>,
}

impl Sink for Blocking {
    fn take(&self, event: SubscriptionEvent) -> BoxFuture<'_, bool> {
        match event {
            SubscriptionEvent::Message(_) => drop(self.gate.lock().unwrap().recv()),
            SubscriptionEvent::Gap => drop(self.gaps.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        Box::pin(std::future::ready(true))
    }
}

#[tokio::test]
async fn slow_subscriber_gets_a_gap_and_holds_no_queue() {
    let limit = "pubsub 1mb 1mb 1";
    let server = Server::start(&["--client-output-buffer-limit", limit]).await;
    let gaps = Arc::new(AtomicU64::new(0));
    // The sink blocks on this channel until the sender is dropped.
    let (held, gate) = std::sync::mpsc::channel::<()>();
    let sink = Blocking { gate: Mutex::new(gate), gaps: Arc::clone(&gaps) };
    let (url, inner_gaps) = (server.url(), Arc::clone(&gaps));
    // On a thread of its own, because its sink blocks.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let primary = locator(url.parse().unwrap());
            let servers = Arc::clone(primary.servers());
            let subscriptions = Subscriptions::new(servers, Timeouts::default());
            subscriptions.add("c", primary, Arc::new(sink));
            let done = async {
                in_time("the gaps", async || {
                    (inner_gaps.load(Ordering::Relaxed) >= 2).then_some(())
                })
                .await;
            };
            tokio::select! { _ = Arc::new(subscriptions).run() => {}, () = done => {} }
        });
    });
    let gaps = &gaps;
    let seen = |least| async move {
        in_time("a gap", async || (gaps.load(Ordering::Relaxed) >= least).then_some(())).await;
    };
    seen(1).await;
    // Publishes more than the kernel and the server buffer, until the server closes the connection. The
    // messages are shorter than 16 KiB, because Valkey does not count longer ones against the limit.
    let publish = "local body, receivers = string.rep('x', 15000), 0
        for _ = 1, 100 do receivers = redis.call('PUBLISH', 'c', body) end
        return receivers";
    in_time("its end", async || (server.tell(&["EVAL", publish, "0"]) == "0").then_some(())).await;
    drop(held);
    seen(2).await;
    thread.join().unwrap();
}
