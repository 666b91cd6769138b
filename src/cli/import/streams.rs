//! The `RecordEvents` streams of one connection.

use std::pin::Pin;

use consentd_core::id::KeySecret;
use futures_util::Stream;
use futures_util::stream::{self, SelectAll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::grpc::{LEDGER_ID, REVISION, pb};

/// The number of concurrent streams: while the rows of one are synced to the disk, another's are
/// read. All rows of a pair use one stream, so that they are recorded in their order.
const STREAMS: usize = 4;

/// The ledger that rows are recorded in, as the sidecar names it.
#[derive(Clone, Debug)]
pub(super) struct LedgerName {
    pub(super) id: String,
    pub(super) revision: u64,
}

impl LedgerName {
    fn from_headers(headers: &MetadataMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        Self { id: text(LEDGER_ID).to_owned(), revision: text(REVISION).parse().unwrap_or(0) }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<pb::RecordEventsResponse, Status>> + Send>>;

pub(super) struct Streams {
    requests: Vec<mpsc::Sender<pb::RecordEventsRequest>>,
    pub(super) responses: SelectAll<Responses>,
}

impl Streams {
    /// Opens the streams. Each queues at most `capacity` requests.
    pub(super) async fn open(
        channel: Channel,
        token: Option<&MetadataValue<Ascii>>,
        capacity: usize,
    ) -> Result<(Self, LedgerName), Status> {
        let mut streams = Self { requests: Vec::new(), responses: stream::select_all([]) };
        let mut ledger = LedgerName { id: String::new(), revision: 0 };
        for _ in 0..STREAMS {
            let (sender, receiver) = mpsc::channel(capacity);
            let mut request = Request::new(ReceiverStream::new(receiver));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token.clone());
            }
            let mut client = RecordServiceClient::new(channel.clone());
            let response = client.record_events(request).await?;
            ledger = LedgerName::from_headers(response.metadata());
            streams.requests.push(sender);
            streams.responses.push(Box::pin(response.into_inner()));
        }
        Ok((streams, ledger))
    }

    /// Queues a request on its pair's stream.
    pub(super) fn send(&self, request: pb::RecordEventsRequest) {
        // The key normalises the notation of a phone number. It stays in this process, so its
        // secret does not matter.
        let event = request.event.as_ref();
        let key = event.and_then(|event| {
            KeySecret::new(&[0; 16]).read(&event.user_id, &event.business_id).ok()
        });
        let index = key.map_or(0, |key| usize::from(key.to_bytes()[0]) % STREAMS);
        if let Some(requests) = self.requests.get(index) {
            // The capacity suffices for all requests in flight. A closed stream reports its error
            // as a response.
            let _ = requests.try_send(request);
        }
    }
}
