//! The proxy does to a real server's bytes what it is told.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::proxy::{Faults, Flow, Proxy, Pushes};
use super::redis::Redis;

/// How long nothing must come for it to count as held; nothing that is waited for takes as long.
const SILENCE: Duration = Duration::from_millis(150);

struct Line(TcpStream);

impl Line {
    async fn to(proxy: &Proxy) -> Self {
        Self(TcpStream::connect(proxy.address()).await.unwrap())
    }

    async fn send(&mut self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.extend(["$", &word.len().to_string(), "\r\n", word, "\r\n"]);
        }
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// What comes until it holds so many of these.
    async fn read(&mut self, mark: &str, count: usize) -> String {
        let (mut text, mut chunk) = (String::new(), [0; 1_024]);
        while text.matches(mark).count() < count {
            let read = tokio::time::timeout(Duration::from_secs(10), self.0.read(&mut chunk)).await;
            let read = read.unwrap_or_else(|_| panic!("nothing comes after {text:?}")).unwrap();
            assert!(read > 0, "it ended after {text:?}");
            text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
        }
        text
    }

    async fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        tokio::time::timeout(SILENCE, self.0.peek(&mut byte)).await.is_err()
    }

    async fn is_reset(&mut self) -> bool {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(10), self.0.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn ping(&mut self) {
        self.send("PING").await;
        assert_eq!(self.read("\r\n", 1).await, "+PONG\r\n");
    }
}

async fn parts() -> (Redis, Proxy) {
    let redis = Redis::start(&[]);
    let proxy = Proxy::before(&redis.address()).await;
    (redis, proxy)
}

#[tokio::test]
async fn it_passes_holds_delays_drips_swallows_resets_and_refuses() {
    let (_redis, proxy) = parts().await;
    let mut line = Line::to(&proxy).await;
    line.ping().await;
    let counted = proxy.counted();
    assert_eq!((counted.commands, counted.bytes_up, counted.bytes_down), (1, 14, 7));

    for faults in [Faults { up: Flow::Hold, ..Faults::default() }, Faults::both(Flow::Hold)] {
        proxy.commands(faults);
        line.send("PING").await;
        assert!(line.is_silent().await);
        proxy.heal();
        assert_eq!(line.read("\r\n", 1).await, "+PONG\r\n", "nothing is lost");
    }

    let slow = Duration::from_millis(60);
    for flow in [Flow::Delay(slow), Flow::Drip(3, slow / 3)] {
        proxy.commands(Faults { down: flow, ..Faults::default() });
        let started = Instant::now();
        line.ping().await;
        assert!(started.elapsed() >= slow, "{flow:?}");
    }

    proxy.commands(Faults { down: Flow::Swallow, ..Faults::default() });
    line.send("PING").await;
    assert!(line.is_silent().await);
    proxy.heal();
    line.send("PING").await;
    assert!(line.is_silent().await, "what is half-open stays so");
    let mut another = Line::to(&proxy).await;
    another.ping().await;

    proxy.reset();
    assert!(line.is_reset().await && another.is_reset().await);
    Line::to(&proxy).await.ping().await;
    proxy.refuse(true);
    assert!(Line::to(&proxy).await.is_reset().await);
    proxy.heal();
    Line::to(&proxy).await.ping().await;
}

#[tokio::test]
async fn subscriptions_are_told_from_commands() {
    let (redis, proxy) = parts().await;
    let (mut commands, mut listener) = (Line::to(&proxy).await, Line::to(&proxy).await);
    listener.send("SUBSCRIBE ch").await;
    listener.read("subscribe", 1).await;
    proxy.subscriptions(Faults::both(Flow::Hold));
    redis.command(&["PUBLISH", "ch", "1"]);
    commands.ping().await;
    proxy.heal();
    listener.read("message", 1).await;
    proxy.commands(Faults::both(Flow::Hold));
    redis.command(&["PUBLISH", "ch", "2"]);
    listener.read("message", 1).await;
    commands.send("PING").await;
    assert!(commands.is_silent().await);

    proxy.heal();
    proxy.refuse_subscriptions(true);
    let mut refused = Line::to(&proxy).await;
    refused.ping().await;
    refused.send("SUBSCRIBE ch").await;
    assert!(refused.is_reset().await);
}

#[tokio::test]
async fn pushes_are_dropped_doubled_and_swapped_whole() {
    let (redis, proxy) = parts().await;
    let mut line = Line::to(&proxy).await;
    line.send("SUBSCRIBE ch").await;
    line.read("ch\r\n:1\r\n", 1).await;
    let publish = |from: u32, to: u32| {
        for number in from..=to {
            // Longer than a chunk of the network's, and with what could be taken for an end.
            let body = format!("<{number}\r\n*{}\r\n>", "x".repeat(5_000));
            redis.command(&["PUBLISH", "ch", &body]);
        }
    };
    let numbers = |text: String| -> Vec<u32> {
        let parts = text.split('<').skip(1);
        parts.map(|part| part.split('\r').next().unwrap().parse().unwrap()).collect()
    };
    proxy.pushes(Pushes::DropNext(1));
    publish(1, 3);
    assert_eq!(numbers(line.read(">", 2).await), [2, 3]);
    proxy.pushes(Pushes::Duplicate);
    publish(4, 5);
    assert_eq!(numbers(line.read(">", 4).await), [4, 4, 5, 5]);
    proxy.pushes(Pushes::Swap);
    publish(6, 9);
    assert_eq!(numbers(line.read(">", 4).await), [7, 6, 9, 8]);
    proxy.pushes(Pushes::DropEvery(2));
    // The last one passes: once it has been read, all before it have been counted.
    publish(10, 14);
    assert_eq!(numbers(line.read(">", 3).await), [10, 12, 14]);
    assert_eq!((proxy.counted().pushes, proxy.counted().dropped), (14, 3));
}

#[tokio::test]
async fn it_leads_elsewhere() {
    let (first, proxy) = parts().await;
    let second = Redis::start(&[]);
    first.command(&["SET", "name", "first"]);
    second.command(&["SET", "name", "second"]);
    let mut line = Line::to(&proxy).await;
    line.send("GET name").await;
    line.read("first", 1).await;
    proxy.lead_to(&second.address());
    assert!(line.is_reset().await);
    let mut line = Line::to(&proxy).await;
    line.send("GET name").await;
    line.read("second", 1).await;
}

#[tokio::test]
async fn the_server_s_clock_is_shifted() {
    let (_redis, proxy) = parts().await;
    proxy.shift_clock(-3_600);
    let mut line = Line::to(&proxy).await;
    line.send("TIME").await;
    let told = line.read("\r\n", 5).await;
    let seconds: i64 = told.split("\r\n").nth(2).unwrap().parse().unwrap();
    let now = crate::faults::history::wall() / 1_000;
    assert!((now - seconds - 3_600).abs() < 10, "{told} at {now}");
    line.ping().await;
}
