//! Sentinels: three of them, a primary and a replica.

use rustix::process::Signal;

use super::subscriptions::{is_gap, is_message, listening_on, until};
use super::*;

struct Fleet {
    primary: Server,
    replica: Server,
    sentinels: Vec<Server>,
}

async fn sentinel(primary: u16, more: &str) -> Server {
    let port = servers::free_port();
    let text = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds mymaster 1000\n\
         sentinel failover-timeout mymaster 5000\n{more}\n"
    );
    Server::launch(port, &["--sentinel"], Some(&text)).await
}

impl Fleet {
    /// Starts a fleet, and waits until its members know each other.
    async fn start() -> Self {
        let primary = Server::start(&[]).await;
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = Server::start(&["--replicaof", &of]).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(sentinel(primary.port(), "").await);
        }
        let fleet = Self { primary, replica, sentinels };
        in_time("the Sentinels' acquaintance", async || {
            let knows = |sentinel: &Server| {
                let said = sentinel.tell(&["SENTINEL", "MASTER", "mymaster"]);
                let lines: Vec<_> = said.lines().collect();
                let of = |name| {
                    let at = lines.iter().position(|line| *line == name)?;
                    lines.get(at + 1).copied()
                };
                (of("num-other-sentinels"), of("num-slaves")) == (Some("2"), Some("1"))
            };
            fleet.sentinels.iter().all(knows).then_some(())
        })
        .await;
        fleet
    }

    /// A URL with this number of the Sentinels.
    fn url(&self, given: usize) -> String {
        let hosts = self.sentinels.iter().take(given);
        let hosts: Vec<_> = hosts.map(|one| format!("127.0.0.1:{}", one.port())).collect();
        format!("redis+sentinel://{}/mymaster", hosts.join(","))
    }
}

#[tokio::test]
async fn majority_decides_and_failover_is_followed() {
    let fleet = Fleet::start().await;
    let (old, new) = (fleet.primary.port(), fleet.replica.port());
    // The URL has one Sentinel, which names the others.
    let primary = locator(fleet.url(1).parse().unwrap());
    let timeouts = Timeouts::default();
    let connections = ConnectionManager::to(primary.clone(), Purpose::Reading, timeouts);
    let connection = connections.connection().await.unwrap();
    let (events, _task) = listening_on(primary);
    until("the subscription", &events, 1, is_gap).await;
    assert_eq!(connection.primary.address.to_string(), format!("127.0.0.1:{old}"));
    connections.confirm_primary(&connection).await.unwrap();
    // A single answer of three Sentinels is not a majority.
    for silent in &fleet.sentinels[1..] {
        silent.signal(Signal::STOP);
    }
    let said = connections.confirm_primary(&connection).await.unwrap_err().to_string();
    assert!(said.contains("no majority of the 3 Sentinels"), "{said}");
    assert!(said.contains("1 answered, 1 agree"), "{said}");
    let said = refusal(&connections).await;
    assert!(said.contains("no majority of the 3 Sentinels"), "{said}");
    fleet.sentinels[1].signal(Signal::CONT);
    let connection = connected(&connections).await;
    // Two of three are a majority, and the silent third delays nothing.
    let begun = Instant::now();
    connections.confirm_primary(&connection).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    fleet.sentinels[2].signal(Signal::CONT);
    // Sentinels fail over from a primary that hangs. The connection to it is still open, and proves nothing.
    let patient = Timeouts { response: Duration::from_mins(1), ..Timeouts::default() };
    let appends = ConnectionManager::to(connections.primary.clone(), Purpose::Writing, patient);
    let mut appending = appends.connection().await.unwrap().redis;
    fleet.primary.signal(Signal::STOP);
    let waiting = tokio::spawn(async move {
        redis::cmd("SET").arg("a").arg(2).query_async::<()>(&mut appending).await
    });
    let moved =
        in_time("the failover", async || connections.confirm_primary(&connection).await.err());
    let said = moved.await.to_string();
    let expected = format!("127.0.0.1:{old} is no longer the primary");
    assert!(said.contains(&expected) && said.contains(&format!(":{new}")), "{said}");
    // A pending command on another manager's connection fails at once, and that manager moves as well.
    let dropped = tokio::time::timeout(Duration::from_secs(5), waiting).await;
    dropped.expect("it does not wait for the old primary").unwrap().unwrap_err();
    assert_eq!(connected(&appends).await.primary.address.to_string(), format!("127.0.0.1:{new}"));
    let connection = connected(&connections).await;
    assert_eq!(connection.primary.address.to_string(), format!("127.0.0.1:{new}"));
    connections.confirm_primary(&connection).await.unwrap();
    let mut redis = connection.redis.clone();
    let () = redis::cmd("SET").arg("a").arg(1).query_async(&mut redis).await.unwrap();
    // The subscription has moved too, although the old primary never closed it.
    in_time("a message of the new primary's", async || {
        (fleet.replica.tell(&["PUBLISH", "{consent:0}:ch", "here"]) == "1").then_some(())
    })
    .await;
    until("the message", &events, 1, is_message).await;
    fleet.primary.signal(Signal::CONT);
}

#[tokio::test]
async fn replica_named_as_primary_is_rejected() {
    let primary = Server::start(&[]).await;
    let of = format!("127.0.0.1 {}", primary.port());
    let replica = Server::start(&["--replicaof", &of]).await;
    // The Sentinel finds the primary once it has queried the replica; until then it names the replica.
    let sentinel = sentinel(replica.port(), "").await;
    sentinel.signal(Signal::STOP);
    sentinel.signal(Signal::CONT);
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port());
    let attempt = link(&url, TargetOptions::default()).connection().await;
    let said =
        attempt.map(|connection| connection.primary.address.to_string()).unwrap_err().to_string();
    assert!(said.contains("no primary, though the Sentinels name it"), "{said}");
}

#[tokio::test]
async fn sentinels_have_credentials_of_their_own() {
    let primary = Server::start(&["--requirepass", "swordfish"]).await;
    let more = "sentinel auth-pass mymaster swordfish\nrequirepass hunter2";
    let sentinel = sentinel(primary.port(), more).await;
    let url = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
    let by_name = |name: &str| format!("{}/{name}", url("redis+sentinel", sentinel.port()));
    let with = |password: Option<&str>| TargetOptions {
        password: Some("swordfish".to_owned()),
        sentinel_password: password.map(str::to_owned),
        ..TargetOptions::default()
    };
    let connection = link(&by_name("mymaster"), with(Some("hunter2"))).connection().await.unwrap();
    assert_eq!(connection.primary.address.to_string(), format!("127.0.0.1:{}", primary.port()));
    let said = refusal(&link(&by_name("mymaster"), with(None))).await;
    assert!(said.contains("--ledger-sentinel-password-file"), "{said}");
    let said = refusal(&link(&by_name("mymaster"), with(Some("other")))).await;
    assert!(said.contains("WRONGPASS"), "{said}");
    let said = refusal(&link(&by_name("yours"), with(Some("hunter2")))).await;
    assert!(said.contains("no primary named yours"), "{said}");
    // A Sentinel in place of a Redis, and the other way round.
    let options = TargetOptions { password: Some("hunter2".into()), ..TargetOptions::default() };
    let said = refusal(&link(&url("redis", sentinel.port()), options)).await;
    assert!(said.contains("is a Sentinel: give redis+sentinel://"), "{said}");
    let redis = format!("{}/mymaster", url("redis+sentinel", primary.port()));
    let said = refusal(&link(&redis, with(Some("swordfish")))).await;
    assert!(said.contains("is a Redis and no Sentinel"), "{said}");
}
