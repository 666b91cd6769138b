//! Questions about several slots to the nodes of a Cluster that disagree, or are slow. The nodes are made up, because
//! real ones agree as soon as they can.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// How late the slow node answers.
const LATE: Duration = Duration::from_millis(300);

/// A made-up node: its place, and which node it names as the owner of the second slot.
#[derive(Clone, Copy)]
struct Voter {
    place: usize,
    owner: usize,
    is_slow: bool,
}

/// The slots that are asked about: all agree on the first one.
const SLOTS: [u16; 2] = [10, 20];

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// The reply to CLUSTER NODES.
fn nodes(voter: Voter, ports: &[u16]) -> String {
    let lines = ports.iter().enumerate().map(|(place, port)| {
        let flags = if place == voter.place { "myself,master" } else { "master" };
        let first = if place == 0 { " 10" } else { "" };
        let second = if place == voter.owner { " 20" } else { "" };
        format!("id{place} 127.0.0.1:{port}@1 {flags} - 0 0 {place} connected{first}{second}\n")
    });
    bulk(&lines.collect::<String>())
}

async fn answer(mut stream: TcpStream, voter: Voter, ports: Vec<u16>) {
    let mut read = [0; 1_024];
    while let Ok(count @ 1..) = stream.read(&mut read).await {
        let asked = String::from_utf8_lossy(&read[..count]).into_owned();
        let reply = if asked.contains("HELLO") {
            let pairs = [("mode", "cluster"), ("role", "master")];
            let pairs = pairs.map(|(name, value)| bulk(name) + &bulk(value)).concat();
            format!("*4\r\n{pairs}")
        } else {
            if voter.is_slow {
                tokio::time::sleep(LATE).await;
            }
            // Several questions may arrive at once.
            nodes(voter, &ports).repeat(asked.matches("NODES").count())
        };
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn slot_that_nodes_disagree_about_has_the_time_it_needs_and_takes_none_from_others() {
    let mut listeners = Vec::new();
    for _ in 0..4 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let ports: Vec<u16> = listeners.iter().map(|one| one.local_addr().unwrap().port()).collect();
    // Of four, three must agree: on the second slot only together with the slow one.
    for (place, listener) in listeners.into_iter().enumerate() {
        let voter = Voter { place, owner: usize::from(place == 2), is_slow: place == 3 };
        let ports = ports.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, voter, ports.clone()));
            }
        });
    }
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+cluster://{}", hosts.join(","));
    let servers = Servers::new(url.parse().unwrap());
    let [agreed, disputed] = SLOTS.map(|slot| PrimaryLocator::new(Arc::clone(&servers), slot));
    let within = Duration::from_secs(2);
    let owner = agreed.locate(within).await.unwrap();
    let asking = async {
        in_time("a majority about the other slot", async || disputed.locate(within).await.ok())
            .await
    };
    let mut asking = std::pin::pin!(asking);
    let mut rounds = 0;
    let found = loop {
        let begun = Instant::now();
        tokio::select! {
            biased;
            found = &mut asking => break found,
            same = agreed.locate(within) => {
                assert_eq!(same.unwrap(), owner);
                assert!(begun.elapsed() < LATE / 2, "{:?}", begun.elapsed());
                rounds += 1;
            }
        }
    };
    assert_eq!(found.address, owner.address);
    assert!(rounds > 5, "the slow node holds up the rounds about the other slot: {rounds}");
}
