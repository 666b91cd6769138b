//! A bare tonic server of `CanSend`'s messages: what the wire costs where nothing is decided.
//!
//! As tonic generates it: its own server, its own prost codec, the boxed futures of its services;
//! with our limits, on our kind of runtime. It answers everything with the same message.

use std::convert::Infallible;
use std::future::Ready;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use consentd::grpc::pb;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What an answer says of the ledger.
const REVISION: u64 = 10_000;

/// Answers everything with the same message.
#[derive(Clone, Copy)]
struct Echo;

type Boxed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl UnaryService<pb::CanSendRequest> for Echo {
    type Response = pb::CanSendResponse;
    type Future = Boxed<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<pb::CanSendRequest>) -> Self::Future {
        let asked = request.into_inner();
        Box::pin(async move {
            Ok(Response::new(pb::CanSendResponse {
                allowed: !asked.user_id.is_empty(),
                reason: pb::Reason::OptedIn.into(),
                free_form_allowed: true,
                template_allowed: true,
                window_expire_time: Some(prost_types::Timestamp {
                    seconds: 1_750_000_000,
                    nanos: 1,
                }),
                retry_time: None,
                revision: REVISION,
                staleness: Some(prost_types::Duration { seconds: 1, nanos: 123_456_789 }),
                category_used: String::new(),
            }))
        })
    }
}

/// Load generators ask who is there.
impl UnaryService<pb::GetStatusRequest> for Echo {
    type Response = pb::GetStatusResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<pb::GetStatusRequest>) -> Self::Future {
        let status = pb::GetStatusResponse {
            pairs: u64::from(u32::MAX),
            version: "echo".to_owned(),
            ..Default::default()
        };
        std::future::ready(Ok(Response::new(status)))
    }
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path() {
            "/consent.v1.ConsentService/CanSend" => Box::pin(async {
                Ok(Grpc::new(ProstCodec::<pb::CanSendResponse, pb::CanSendRequest>::default())
                    .apply_max_message_size_config(Some(1024 * 1024), None)
                    .unary(Echo, request)
                    .await)
            }),
            "/consent.v1.ConsentService/GetStatus" => Box::pin(async {
                Ok(Grpc::new(ProstCodec::<pb::GetStatusResponse, pb::GetStatusRequest>::default())
                    .unary(Echo, request)
                    .await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "consent.v1.ConsentService";
}

/// Serves for ever, on a port of its own, which it prints, and on a Unix socket.
pub async fn serve(path: &Path) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unix = UnixListener::bind(path).unwrap();
    println!("{}", tcp.local_addr().unwrap());
    // Nagle's algorithm is off for both servers.
    let tcp = tokio_stream::StreamExt::map(TcpListenerStream::new(tcp), |stream| {
        stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    // As in `grpc/connection.rs`.
    let server = || {
        Server::builder()
            .max_concurrent_streams(1_024)
            .http2_max_local_error_reset_streams(Some(1_024))
            .http2_max_pending_accept_reset_streams(Some(20))
            .http2_max_header_list_size(8 * 1024)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_service(Echo)
    };
    let (tcp, unix) = tokio::join!(
        server().serve_with_incoming(tcp),
        server().serve_with_incoming(UnixListenerStream::new(unix)),
    );
    tcp.and(unix).unwrap();
}
