//! Partitions on servers whose clocks differ: what allows by a fast clock never outlives what was denied after it.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::record_events_response::Result as RecordedAs;
use consentd_core::partition::Layout;

use super::cluster::{Cluster, id, wait_until};
use super::load::BUSINESS;
use super::partition_stage::{KEEPING, PATIENT, reason, users_in};
use super::proxy::Proxy;
use super::stage::{init, live_within, serve};
use crate::sidecar::{PATIENCE, Sidecar, event, opt_in, opt_out};

/// How far the clock of one node is ahead.
const AHEAD_SECONDS: i64 = 30;

/// A Cluster with a ledger of several partitions, one node of which has a clock that is ahead.
struct Skewed {
    _cluster: Cluster,
    _net: Proxy,
    sidecar: Sidecar,
    layout: Layout,
    /// A partition at the node whose clock is ahead, and one at another node.
    fast: u32,
    slow: u32,
}

impl Skewed {
    async fn start() -> Self {
        let mut cluster = Cluster::start(&KEEPING);
        init(&cluster.url(2), &["--partitions", "8", "--spread", "8", "--buckets", "8"]);
        let layout = Layout::new(8, 8).unwrap();
        let slots = cluster.partitions();
        let at = |place: usize| {
            let mut found = slots.iter().filter(|(_, slot)| cluster.owner_of(**slot) == place);
            *found.next().expect("each node has a partition").0
        };
        let (slow, fast) = (at(0), at(1));
        // Its replica would follow it through the proxy, which reads answers to clients alone.
        let replica = cluster.replica_of(1).expect("it has a replica");
        cluster.nodes[replica].kill();
        let net = Proxy::before(&cluster.nodes[1].address()).await;
        net.shift_clock(AHEAD_SECONDS);
        let (_, port) =
            net.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
        cluster.nodes[1].command(&["CONFIG", "SET", "cluster-announce-port", &port]);
        let name = id(&cluster.nodes[1]);
        wait_until("all know the node by the address of its proxy", || {
            [0, 1, 2].iter().all(|place| {
                let nodes = cluster.nodes[*place].command(&["CLUSTER", "NODES"]).text();
                let line = nodes.lines().find(|line| line.starts_with(&name)).unwrap_or_default();
                line.contains(&format!(":{port}@"))
            })
        });
        let flags = [&PATIENT[..], &["--record", "127.0.0.1:0"]].concat();
        let sidecar = serve(&cluster.url(1), &flags, &[]);
        live_within(&sidecar, PATIENCE).await;
        Self { _cluster: cluster, _net: net, sidecar, layout, fast, slow }
    }

    /// A person's id by the slow clock, and one by the fast clock.
    fn ids(&self, name: &str) -> [String; 2] {
        [self.slow, self.fast].map(|partition| users_in(self.layout, partition, name, 1).remove(0))
    }

    async fn record(&self, user: &str, what: What) {
        self.sidecar.records().await.record_event(request(user, what)).await.expect("recorded");
    }
}

fn request(user: &str, what: What) -> pb::RecordEventRequest {
    let kind: String = format!("{what:?}").chars().take_while(|c| c.is_alphabetic()).collect();
    let mut request = event(user, BUSINESS, what);
    request.request_id = format!("{user} {kind}");
    request
}

fn link(other: &str) -> What {
    What::Link(pb::Link { other_user_id: other.to_owned(), moved: false })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_under_one_id_is_no_earlier_than_an_opt_in_of_its_call_under_a_linked_id_by_a_fast_clock()
 {
    let scene = Skewed::start().await;
    let [slow, fast] = scene.ids("call");
    scene.record(&slow, link(&fast)).await;
    let requests = [request(&fast, opt_in("marketing")), request(&slow, opt_out("*"))];
    let requests = requests.map(|request| pb::RecordEventsRequest {
        event: request.event,
        request_id: request.request_id,
        ..Default::default()
    });
    let mut records = scene.sidecar.records().await;
    let recorded = records.record_events(tokio_stream::iter(requests)).await;
    let mut recorded = recorded.unwrap().into_inner();
    while let Some(answer) = recorded.message().await.unwrap() {
        assert!(matches!(answer.result, Some(RecordedAs::Response(_))), "{answer:?}");
    }
    for user in [&slow, &fast] {
        assert_eq!(reason(&scene.sidecar, user).await, Reason::OptedOutAll, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_holds_under_an_id_by_a_fast_clock_that_is_linked_only_later() {
    let scene = Skewed::start().await;
    let [slow, fast] = scene.ids("later");
    scene.record(&fast, opt_in("marketing")).await;
    scene.record(&slow, opt_out("*")).await;
    scene.record(&slow, link(&fast)).await;
    for user in [&slow, &fast] {
        assert_eq!(reason(&scene.sidecar, user).await, Reason::OptedOutAll, "{user}");
    }
}
