//! Real Redis servers and Sentinels, and what can befall them.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::resp::{Client, Value};
use super::servers::{NOT_INSTALLED, ServerKind, next_port};

/// How long a server may take to start, and for what is waited for of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a server that is there may take to answer one command.
const ANSWER: Duration = Duration::from_secs(5);

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How many ports are tried, others being taken.
const MAX_TRIES: usize = 50;

/// The name by which Sentinels know the primary.
pub const MASTER: &str = "consent";

/// How many Sentinels watch it.
const SENTINELS: usize = 3;

/// A process that speaks RESP on a port of its own; killed when dropped.
pub struct Server {
    port: u16,
    /// The program and what it is given, its port left out.
    arguments: Vec<String>,
    child: Child,
}

impl Server {
    /// Starts one on a port that is free, and waits until it answers.
    fn start(arguments: impl Fn(u16) -> Vec<String>, log: &Path) -> Self {
        let mut said = String::new();
        for _ in 0..MAX_TRIES {
            let port = next_port();
            let arguments = arguments(port);
            let child = spawn(&arguments, port);
            let mut server = Self { port, arguments, child };
            match server.wait_until_there() {
                Ok(()) => return server,
                Err(error) => said = error.to_string(),
            }
        }
        let log = std::fs::read_to_string(log).unwrap_or_default();
        panic!("no redis-server starts: {said}; the last one's log: {log}")
    }

    /// Waits until it answers; an error where it has ended instead, such as for its port.
    fn wait_until_there(&mut self) -> io::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            // Another's server may have the port, while ours has not found out yet.
            let ours = format!("process_id:{}\r", self.child.id());
            let info = Client::connect(self.port, ANSWER)
                .and_then(|mut client| client.command(&["INFO", "everything"]));
            match info {
                Ok(info) if info.text().contains(&ours) && !info.text().contains("loading:1") => {
                    return Ok(());
                }
                _ if started.elapsed() > PATIENCE => {
                    return Err(io::Error::other("it does not answer"));
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// The port that it listens on, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends one command; an error of the server's is a value too.
    pub fn try_command<A: AsRef<[u8]>>(&self, words: &[A]) -> io::Result<Value> {
        Client::connect(self.port, ANSWER)?.command(words)
    }

    /// Sends one command, which must be answered well.
    pub fn command<A: AsRef<[u8]> + std::fmt::Debug>(&self, words: &[A]) -> Value {
        match self.try_command(words) {
            Ok(Value::Error(error)) => panic!("{words:?}: {error}"),
            Ok(value) => value,
            Err(error) => panic!("{words:?} to port {}: {error}", self.port),
        }
    }

    /// A field of `INFO`.
    pub fn info(&self, field: &str) -> String {
        let said = self.command(&["INFO", "everything"]).text();
        let prefix = format!("{field}:");
        let line = said.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_default().to_owned()
    }

    /// Waits until a field of `INFO` is so.
    pub fn wait_for_info(&self, field: &str, is_so: impl Fn(&str) -> bool) {
        wait_until(field, || is_so(&self.info(field)));
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it with SIGSTOP: its sockets stay open, and nobody answers.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &process]).status();
        assert!(status.expect("kill is part of every system").success(), "kill -{name}");
    }

    /// Starts it again after a kill, on the same port and with the same arguments.
    pub fn start_again(&mut self) {
        let started = Instant::now();
        loop {
            self.child = spawn(&self.arguments, self.port);
            match self.wait_until_there() {
                Ok(()) => return,
                // The port may be taken for a moment by what dies beside it.
                Err(_) if started.elapsed() < PATIENCE => self.kill(),
                Err(error) => panic!("it does not start again: {error}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(arguments: &[String], port: u16) -> Child {
    let (program, arguments) = arguments.split_first().expect("a program");
    Command::new(program)
        .args(arguments)
        .args(["--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: {NOT_INSTALLED}"))
}

fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, is_so);
}

/// Waits until something is so, no longer than this.
pub fn wait_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < patience, "waited in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A `redis-server` with a folder of its own.
pub struct Redis {
    server: Server,
    folder: TempDir,
}

impl std::ops::Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl std::ops::DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// The users that docs/redis.md tells operators to make, as `users.acl` has them: every server has
/// them, and the sidecars of the tests are these.
fn users() -> impl Iterator<Item = &'static str> {
    let page = include_str!("../../../docs/redis.md");
    page.lines().filter(|line| line.starts_with("user ") && line.contains(" on >"))
}

/// The password of both.
pub const PASSWORD: &str = "PASSWORD";

impl Redis {
    /// Starts one that saves nothing by itself, with more options, such as `--appendonly yes`.
    pub fn start(options: &[&str]) -> Self {
        Self::start_kind(ServerKind::chosen(), options)
    }

    /// Starts one of this kind, for a test of what that kind does.
    pub fn start_kind(kind: ServerKind, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name).display().to_string();
        let (dir, log, socket) = (inside(""), inside("log"), inside("redis.sock"));
        let ours = [
            ["--bind", "127.0.0.1"],
            ["--save", ""],
            ["--appendonly", "no"],
            ["--repl-diskless-sync-delay", "0"],
            ["--dir", &dir],
            ["--logfile", &log],
            ["--unixsocket", &socket],
        ];
        let program = kind.program().display().to_string();
        let words = [program.as_str()];
        let words = words.iter().chain(ours.iter().flatten()).chain(options);
        let mut arguments: Vec<String> = words.map(|word| (*word).to_owned()).collect();
        for rules in users() {
            arguments.push("--user".to_owned());
            arguments.extend(rules.split_whitespace().skip(1).map(str::to_owned));
        }
        let server = Server::start(|_| arguments.clone(), Path::new(&log));
        Self { server, folder }
    }

    /// Starts one that follows this one, and waits until it has caught up.
    pub fn start_replica_of(primary: &Self, options: &[&str]) -> Self {
        let replica = Self::start(options);
        replica.follow(primary);
        replica
    }

    /// What it listens on beside its port.
    pub fn socket(&self) -> String {
        self.folder.path().join("redis.sock").display().to_string()
    }

    /// Makes it a replica, and waits until it has caught up.
    pub fn follow(&self, primary: &Self) {
        self.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
        self.wait_for_info("master_link_status", |status| status == "up");
        self.catch_up_with(primary);
    }

    /// Waits until it has all that the primary has at this moment.
    pub fn catch_up_with(&self, primary: &Self) {
        let offset = |info: String| info.parse::<u64>().unwrap_or(0);
        let primary = offset(primary.info("master_repl_offset"));
        self.wait_for_info("slave_repl_offset", |ours| offset(ours.to_owned()) >= primary);
    }

    /// Makes it a replica of nobody: it stays as it is and, being a replica, refuses writes.
    pub fn lag(&self) {
        self.command(&["REPLICAOF", "127.0.0.1", "1"]);
    }

    /// Makes it a primary.
    pub fn promote(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]);
        self.wait_for_info("role", |role| role == "master");
    }

    /// Sets one of its options.
    pub fn set(&self, option: &str, value: &str) {
        self.command(&["CONFIG", "SET", option, value]);
    }

    /// Saves it, and gives the file.
    pub fn dump(&self) -> Vec<u8> {
        self.command(&["SAVE"]);
        std::fs::read(self.folder.path().join("dump.rdb")).unwrap()
    }

    /// Removes one of its files, such as `nodes.conf`.
    #[allow(dead_code, reason = "each test crate uses a part of it")]
    pub fn remove_file(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// Kills it and starts it again without anything that it had saved.
    pub fn restart_empty(&mut self) {
        self.restart_from(None);
    }

    /// Kills it and starts it again from this file, or from none.
    pub fn restart_from(&mut self, dump: Option<&[u8]>) {
        self.kill();
        let file = self.folder.path().join("dump.rdb");
        // Neither needs to be there.
        let _ = std::fs::remove_file(&file);
        let _ = std::fs::remove_dir_all(self.folder.path().join("appendonlydir"));
        if let Some(dump) = dump {
            std::fs::write(file, dump).unwrap();
        }
        self.start_again();
    }

    /// Copies its append-only files aside, as a backup of what it has now.
    #[allow(dead_code, reason = "each test crate uses a part of it")]
    pub fn back_up(&self) {
        copy(&self.folder.path().join("appendonlydir"), &self.folder.path().join("backup"));
    }

    /// Puts the backup in place of its append-only files, while it is not running.
    #[allow(dead_code, reason = "each test crate uses a part of it")]
    pub fn restore(&self) {
        let files = self.folder.path().join("appendonlydir");
        std::fs::remove_dir_all(&files).unwrap();
        copy(&self.folder.path().join("backup"), &files);
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Makes a user of these rules, beside the default one, which may do anything.
    pub fn allow(&self, user: &str, rules: &[&str]) {
        self.command(&[&["ACL", "SETUSER", user, "reset", "on"], rules].concat());
    }
}

/// Copies the files of a folder into a new one.
#[allow(dead_code, reason = "each test crate uses a part of it")]
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Three Sentinels that watch one primary; killed when dropped.
pub struct Sentinels {
    /// Each of them.
    pub servers: Vec<Server>,
    _folder: TempDir,
}

impl Sentinels {
    /// Starts them, and waits until they know each other and so many replicas.
    pub fn watch(primary: &Redis, replicas: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |number: usize| {
            let log = folder.path().join(format!("log-{number}"));
            let arguments = |port: u16| {
                let file = folder.path().join(format!("sentinel-{number}-{port}.conf"));
                let config = format!(
                    "bind 127.0.0.1\nport {port}\ndir {}\nlogfile {}\n\
                     sentinel monitor {MASTER} 127.0.0.1 {} 2\n\
                     sentinel down-after-milliseconds {MASTER} 700\n\
                     sentinel failover-timeout {MASTER} 2500\n",
                    folder.path().display(),
                    log.display(),
                    primary.port(),
                );
                std::fs::write(&file, config).unwrap();
                let program = ServerKind::chosen().program();
                vec![
                    program.display().to_string(),
                    file.display().to_string(),
                    "--sentinel".to_owned(),
                ]
            };
            Server::start(arguments, &log)
        };
        let sentinels = Self { servers: (0..SENTINELS).map(start).collect(), _folder: folder };
        let knows = |server: &Server| {
            let of = |field: &str| field_of_master(server, field).parse::<usize>().unwrap_or(0);
            of("num-other-sentinels") == SENTINELS - 1 && of("num-slaves") == replicas
        };
        wait_until("Sentinels find each other", || sentinels.servers.iter().all(knows));
        sentinels
    }

    /// `HOST:PORT` of each, comma-separated.
    pub fn addresses(&self) -> String {
        self.servers.iter().map(Server::address).collect::<Vec<_>>().join(",")
    }

    /// Whether all of them name another primary than this one, and are through with its failover:
    /// those that are killed in the middle of one leave it to be done anew.
    pub fn have_left(&self, port: u16) -> bool {
        let has_left = |server: &Server| {
            let of = |field: &str| field_of_master(server, field);
            of("port") != port.to_string() && of("flags") == "master"
        };
        self.servers.iter().all(has_left)
    }

    /// The port of the primary that most of them name.
    pub fn primary(&self) -> Option<u16> {
        let named = |server: &Server| {
            let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
            server.try_command(&words).ok()?.parts().get(1)?.text().parse::<u16>().ok()
        };
        let named: Vec<u16> = self.servers.iter().filter_map(named).collect();
        let votes = |port: u16| named.iter().filter(|named| **named == port).count();
        named.iter().copied().find(|port| 2 * votes(*port) > SENTINELS)
    }
}

fn field_of_master(server: &Server, field: &str) -> String {
    let said = server.command(&["SENTINEL", "MASTER", MASTER]).parts();
    let at = said.iter().position(|part| part.text() == field);
    at.and_then(|at| said.get(at + 1)).map(Value::text).unwrap_or_default()
}

#[test]
fn a_server_can_be_killed_stopped_and_started_again_with_what_it_had() {
    let mut redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    redis.command(&["SET", "a", "1"]);
    redis.kill();
    redis.try_command(&["PING"]).expect_err("it is gone");
    redis.start_again();
    assert_eq!(redis.command(&["GET", "a"]).text(), "1");
    redis.restart_empty();
    assert_eq!(redis.command(&["GET", "a"]), Value::Nil);

    let mut redis = Redis::start(&[]);
    redis.command(&["SET", "a", "old"]);
    let old = redis.dump();
    redis.command(&["SET", "a", "new"]);
    redis.restart_from(Some(&old));
    assert_eq!(redis.command(&["GET", "a"]).text(), "old");
}

#[test]
fn a_replica_lags_and_is_promoted() {
    let primary = Redis::start(&[]);
    primary.command(&["SET", "a", "old"]);
    let replica = Redis::start_replica_of(&primary, &[]);
    replica.lag();
    primary.command(&["SET", "a", "new"]);
    replica.promote();
    assert_eq!(replica.command(&["GET", "a"]).text(), "old");
    replica.follow(&primary);
    assert_eq!(replica.command(&["GET", "a"]).text(), "new");
}

#[test]
fn sentinels_name_another_primary_once_the_first_is_gone() {
    let mut primary = Redis::start(&[]);
    let replica = Redis::start_replica_of(&primary, &[]);
    let sentinels = Sentinels::watch(&primary, 1);
    assert_eq!(sentinels.primary(), Some(primary.port()));
    primary.kill();
    wait_until("the replica is primary", || sentinels.primary() == Some(replica.port()));
    replica.wait_for_info("role", |role| role == "master");
}
