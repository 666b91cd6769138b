//! Connections to real servers.

#[path = "../../../../../../tests/servers/mod.rs"]
mod kinds;
mod sentinels;
mod servers;
mod subscriptions;
mod tls;
mod voters;

use std::time::Duration;

use self::servers::{Server, in_time};
use super::*;
use crate::redis::conn::primary::Servers;
use crate::redis::conn::url::{Target, TargetOptions};
use crate::redis::server_info::{self, Fsync, Persistence, Topology, UnsupportedServer, Warning};

/// The slot of the first partition.
const SLOT: u16 = 4_659;

fn locator(target: Target) -> PrimaryLocator {
    PrimaryLocator::new(Servers::new(target), SLOT)
}

fn link(url: &str, options: TargetOptions) -> ConnectionManager {
    let target = Target::new(url, options).unwrap();
    ConnectionManager::to(locator(target), Purpose::Reading, Timeouts::default())
}

/// The error of a manager that cannot connect.
async fn refusal(connections: &ConnectionManager) -> String {
    connections
        .connection()
        .await
        .map(|connection| connection.primary.address.to_string())
        .unwrap_err()
        .to_string()
}

async fn whoami(connection: &Connection) -> String {
    let mut redis = connection.redis.clone();
    redis::cmd("ACL").arg("WHOAMI").query_async(&mut redis).await.unwrap()
}

/// Waits until the backoff after a failure is over, and the manager connects.
async fn connected(connections: &ConnectionManager) -> Connection {
    in_time("a connection", async || connections.connection().await.ok()).await
}

#[tokio::test]
async fn socket_and_port_reach_the_same_server() {
    let server = Server::start(&["--databases", "4"]).await;
    let by_socket = link(&server.socket_url(), TargetOptions::default());
    let connection = connected(&by_socket).await;
    assert_eq!(connection.primary.address.to_string(), server.socket().display().to_string());
    let mut redis = connection.redis.clone();
    let () = redis::cmd("SELECT").arg(3).query_async(&mut redis).await.unwrap();
    let () = redis::cmd("SET").arg("here").arg("yes").query_async(&mut redis).await.unwrap();
    let by_port = link(&format!("{}/3", server.url()), TargetOptions::default());
    let mut redis = by_port.connection().await.unwrap().redis;
    let found: String = redis::cmd("GET").arg("here").query_async(&mut redis).await.unwrap();
    assert_eq!(found, "yes");
    let said = refusal(&link(&format!("{}/9", server.url()), TargetOptions::default())).await;
    assert!(said.contains("SELECT") && said.contains("out of range"), "{said}");
}

#[tokio::test]
async fn passwords_and_users_are_accepted_or_rejected_without_being_shown() {
    let password = ["--requirepass", "swordfish"];
    let user = ["--user", "sidecar", "on", ">hunter2", "~*", "&*", "+@all"];
    let server = Server::start(&[&password[..], &user].concat()).await;
    let url = server.url();
    let said = refusal(&link(&url, TargetOptions::default())).await;
    assert!(said.contains("wants a password: give --ledger-password-file"), "{said}");
    let with = |user: Option<&str>, password: &str| TargetOptions {
        user: user.map(str::to_owned),
        password: Some(password.to_owned()),
        ..TargetOptions::default()
    };
    let default = link(&url, with(None, "swordfish")).connection().await.unwrap();
    assert_eq!(whoami(&default).await, "default");
    let sidecar = link(&url, with(Some("sidecar"), "hunter2")).connection().await.unwrap();
    assert_eq!(whoami(&sidecar).await, "sidecar");
    for wrong in [with(None, "hunter2"), with(Some("sidecar"), "swordfish")] {
        let said = refusal(&link(&url, wrong)).await;
        assert!(said.contains("WRONGPASS"), "{said}");
        assert!(!said.contains("hunter2") && !said.contains("swordfish"), "{said}");
    }
}

#[tokio::test]
async fn error_of_a_server_that_quotes_the_password_is_not_shown() {
    let server = Server::start(&["--rename-command", "AUTH", ""]).await;
    let options =
        TargetOptions { password: Some("hunter2".to_owned()), ..TargetOptions::default() };
    let said = refusal(&link(&server.url(), options)).await;
    assert!(said.contains("no AUTH") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn rotated_password_file_is_read_again() {
    let server = Server::start(&["--requirepass", "first"]).await;
    let file = server.folder().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let options = TargetOptions { password_file: Some(file.clone()), ..TargetOptions::default() };
    let connections = link(&server.url(), options);
    let connection = connections.connection().await.unwrap();
    let mut redis = connection.redis.clone();
    let mut set = redis::cmd("CONFIG");
    let () = set.arg("SET").arg("requirepass").arg("second").query_async(&mut redis).await.unwrap();
    std::fs::write(&file, "second\n").unwrap();
    connections.discard(&connection);
    let again = connections.connection().await.unwrap();
    assert_eq!(whoami(&again).await, "default");
    std::fs::remove_file(&file).unwrap();
    connections.discard(&again);
    let said = refusal(&connections).await;
    assert!(said.contains(&*file.to_string_lossy()) && said.contains("No such file"), "{said}");
    std::fs::write(&file, "\n").unwrap();
    let said = in_time("another attempt", async || {
        Some(refusal(&connections).await).filter(|said| !said.contains("No such file"))
    });
    assert!(said.await.contains("must hold the password"));
    // It recovers by itself once the file is valid.
    std::fs::write(&file, "second").unwrap();
    connected(&connections).await;
}

#[tokio::test]
async fn manager_fails_fast_while_nothing_listens_and_recovers() {
    let server = Server::start(&[]).await;
    let (url, port) = (server.url(), server.port());
    let connections = Arc::new(link(&url, TargetOptions::default()));
    let connection = connections.connection().await.unwrap();
    drop(server);
    let mut redis = connection.redis.clone();
    redis::cmd("GET").arg("a").query_async::<()>(&mut redis).await.unwrap_err();
    connections.discard(&connection);
    let said = refusal(&connections).await;
    assert!(said.contains("nothing listens at 127.0.0.1"), "{said}");
    // A thousand callers fail at once, and share few attempts.
    let begun = Instant::now();
    for _ in 0..1_000 {
        refusal(&connections).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let failures = connections.state().failures;
    assert!((1..20).contains(&failures), "{failures}");
    let server = Server::start_at(port, &[]).await;
    connected(&connections).await;
    assert_eq!(connections.state().failures, 0);
    drop(server);
}

#[tokio::test]
async fn callers_share_one_attempt_and_a_stalled_server_delays_none_beyond_the_timeout() {
    // A server that accepts connections and never replies.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let timeouts = Timeouts { connect: Duration::from_millis(200), ..Timeouts::default() };
    let target: Target = url.parse().unwrap();
    let connections = ConnectionManager::to(locator(target), Purpose::Reading, timeouts);
    let begun = Instant::now();
    let callers = futures_util::future::join_all((0..50).map(|_| refusal(&connections)));
    for said in callers.await {
        assert!(said.contains("no answer from") && said.contains("200ms"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(connections.state().failures, 1);
    // The next caller continues the attempt of a cancelled one.
    in_time("the next attempt", async || {
        let connecting = tokio::time::timeout(Duration::from_millis(1), connections.connection());
        connecting.await.is_err().then_some(())
    })
    .await;
    assert_eq!(connections.state().failures, 1);
    refusal(&connections).await;
    assert_eq!(connections.state().failures, 2);
}

#[tokio::test]
async fn server_that_is_not_redis_is_identified() {
    use tokio::io::AsyncWriteExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let http = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let link_to_http = link(&url, TargetOptions::default());
    let (_stream, said) = tokio::join!(http, refusal(&link_to_http));
    assert!(said.contains("an HTTP server"), "{said}");
    let said = refusal(&link("redis://no-such-host.invalid", TargetOptions::default())).await;
    assert!(said.contains("host name of no-such-host.invalid:6379 cannot be resolved"), "{said}");
    let said = refusal(&link("redis+unix:/no/such/socket", TargetOptions::default())).await;
    assert!(said.contains("/no/such/socket") && said.contains("there is no folder"), "{said}");
}

async fn fitness_of(server: &Server, user: Option<&str>) -> server_info::ServerInfo {
    let options = TargetOptions { user: user.map(str::to_owned), ..TargetOptions::default() };
    let connection = link(&server.url(), options).connection().await.unwrap();
    server_info::inspect(&mut connection.redis.clone()).await.unwrap()
}

#[tokio::test]
async fn real_servers_are_classified_by_their_configuration() {
    let memory = Server::start(&["--save", ""]).await;
    let fitness = fitness_of(&memory, None).await;
    assert_eq!(fitness.durability, Persistence::Memory);
    assert_eq!(fitness.verdict(Topology::Single, false), Ok(vec![Warning::MemoryAlone]));
    // A sidecar's user may not read the configuration.
    let user = ["--user", "sidecar", "on", "nopass", "~*", "&*", "+@all", "-config"];
    let saving = Server::start(&[&["--save", "60 1"], &user[..]].concat()).await;
    assert_eq!(fitness_of(&saving, None).await.durability, Persistence::Snapshots);
    assert_eq!(fitness_of(&saving, Some("sidecar")).await.durability, Persistence::Unstated);
    let file = ["--appendonly", "yes", "--appendfsync", "always"];
    let arguments = [&file[..], &["--min-replicas-to-write", "1"]].concat();
    let durable = Server::start(&arguments).await;
    let fitness = fitness_of(&durable, None).await;
    assert_eq!(fitness.durability, Persistence::AppendOnly(Fsync::Always));
    assert!(fitness.is_fenced && fitness.can_save && fitness.version >= (7, 0, 0));
    assert_eq!(fitness.verdict(Topology::Sentinels, false), Ok(vec![]));
    let evicting = Server::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let unfit = fitness_of(&evicting, None).await.verdict(Topology::Single, false);
    assert_eq!(unfit, Err(UnsupportedServer::Evicting("allkeys-lru".to_owned())));
    let (host, port) = ("127.0.0.1", memory.port().to_string());
    let replica = Server::start(&["--replicaof", &format!("{host} {port}")]).await;
    assert_eq!(
        fitness_of(&replica, None).await.verdict(Topology::Single, false),
        Err(UnsupportedServer::Replica)
    );
    let followed = in_time("the replica", async || {
        Some(fitness_of(&memory, None).await).filter(|fitness| fitness.replicas == 1)
    });
    let warnings = followed.await.verdict(Topology::Single, false).unwrap();
    assert_eq!(warnings, [Warning::MemoryAlone, Warning::Unfenced]);
    // The port of its bus would otherwise be one of those that the system gives to any connection.
    let bus = servers::free_port().to_string();
    let cluster = Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]).await;
    let said = refusal(&link(&cluster.url(), TargetOptions::default())).await;
    assert!(said.contains("is a node of a Cluster: give redis+cluster://"), "{said}");
    let url = format!("redis+cluster://127.0.0.1:{}", cluster.port());
    let said = refusal(&link(&url, TargetOptions::default())).await;
    assert!(said.contains("no node of the Cluster serves slot 4659"), "{said}");
}
