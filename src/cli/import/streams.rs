//! The `RecordEvents` streams of one connection.

use std::pin::Pin;

use consentd_core::id::KeySecret;
use consentd_core::partition::Layout;
use futures_util::Stream;
use futures_util::stream::{self, SelectAll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::grpc::{LEDGER_ID, PARTITION_REVISIONS, PARTITION_SPREAD, REVISION, pb};

/// The number of concurrent streams: while the rows of one are synced to the disk, another's are
/// read. All rows of a pair use one stream, so that they are recorded in their order.
const STREAMS: usize = 4;

/// The ledger that rows are recorded in, as the sidecar names it.
#[derive(Clone, Debug)]
pub(super) struct LedgerName {
    pub(super) id: String,
    /// Its last revision; of several partitions, the sum of theirs.
    pub(super) revision: u64,
    /// The last revision of each of its partitions, `None` for one that cannot be read. Empty if there is one
    /// partition, or if the sidecar is of a version that does not say so.
    pub(super) partition_revisions: Vec<Option<u64>>,
    pub(super) layout: Layout,
}

impl LedgerName {
    /// The name of no ledger.
    pub(super) fn none() -> Self {
        Self::from_headers(&MetadataMap::new())
    }

    fn from_headers(headers: &MetadataMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let mut named = Self {
            id: text(LEDGER_ID).to_owned(),
            revision: text(REVISION).parse().unwrap_or(0),
            partition_revisions: Vec::new(),
            layout: Layout::SINGLE,
        };
        let revisions: Vec<_> =
            text(PARTITION_REVISIONS).split(',').map(|revision| revision.parse().ok()).collect();
        let partitions = u32::try_from(revisions.len()).ok();
        let layout = partitions.zip(text(PARTITION_SPREAD).parse().ok());
        if let Some(layout) = layout.and_then(|(all, spread)| Layout::new(all, spread).ok()) {
            (named.partition_revisions, named.layout) = (revisions, layout);
        }
        named
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<pb::RecordEventsResponse, Status>> + Send>>;

pub(super) struct Streams {
    requests: Vec<mpsc::Sender<pb::RecordEventsRequest>>,
    layout: Layout,
    /// It stays in this process, so its value does not matter.
    secret: KeySecret,
    pub(super) responses: SelectAll<Responses>,
}

impl Streams {
    /// Opens the streams. Each queues at most `capacity` requests.
    pub(super) async fn open(
        channel: Channel,
        token: Option<&MetadataValue<Ascii>>,
        capacity: usize,
    ) -> Result<(Self, LedgerName), Status> {
        let mut ledger = LedgerName::none();
        let (mut senders, mut responses) = (Vec::new(), stream::select_all([]));
        for _ in 0..STREAMS {
            let (sender, receiver) = mpsc::channel(capacity);
            let mut request = Request::new(ReceiverStream::new(receiver));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token.clone());
            }
            let wanted = MetadataValue::from_static("all");
            request.metadata_mut().insert(PARTITION_REVISIONS, wanted);
            let mut client = RecordServiceClient::new(channel.clone());
            let response = client.record_events(request).await?;
            ledger = LedgerName::from_headers(response.metadata());
            senders.push(sender);
            responses.push(Box::pin(response.into_inner()) as Responses);
        }
        let (layout, secret) = (ledger.layout, KeySecret::new(&[0; 16]));
        Ok((Self { requests: senders, layout, secret, responses }, ledger))
    }

    /// Queues a request on its pair's stream. Returns the partition of the ledger that the pair is in.
    pub(super) fn send(&self, request: pb::RecordEventsRequest) -> u32 {
        // The key normalises the notation of a phone number.
        let event = request.event.as_ref();
        let key = event.and_then(|event| self.secret.read(&event.user_id, &event.business_id).ok());
        let index = key.map_or(0, |key| usize::from(key.to_bytes()[0]) % STREAMS);
        if let Some(requests) = self.requests.get(index) {
            // The capacity suffices for all requests in flight. A closed stream reports its error
            // as a response.
            let _ = requests.try_send(request);
        }
        key.map_or(0, |key| self.layout.partition_of(key))
    }
}
