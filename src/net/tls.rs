//! TLS on accepted connections, and to servers.
//!
//! A server makes the handshake when the connection is first read, so that a client that does not make it is
//! bounded as one that sends nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use consentd_os::clock;
use consentd_tls::{ClientFiles, HandshakeError, Protocol, ServerIdentity, failure};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor, client};
use tracing::warn;

use super::log_throttle::LogThrottle;
use crate::metrics::Metrics;

/// The shortest time between two warnings of failed handshakes.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The server's certificate and key, which may be replaced. Clones share them.
#[derive(Clone)]
pub(crate) struct ServerTls(Arc<Shared>);

struct Shared {
    identity: ArcSwap<ServerIdentity>,
    metrics: Arc<Metrics>,
    failures: LogThrottle,
}

impl ServerTls {
    /// Makes handshakes with this certificate and key.
    #[must_use]
    pub(crate) fn new(identity: ServerIdentity, metrics: Arc<Metrics>) -> Self {
        metrics.tls.expires(identity.expires());
        if identity.expires() <= clock::wall() {
            warn!(
                "the listeners' certificate has expired: clients refuse it; replace --tls-cert-file"
            );
        }
        let (identity, failures) =
            (ArcSwap::from_pointee(identity), LogThrottle::new(LOG_INTERVAL));
        Self(Arc::new(Shared { identity, metrics, failures }))
    }

    /// Replaces certificate and key for new connections, and returns whether they changed. Open
    /// connections go on with those that they began with.
    pub(crate) fn replace(&self, identity: ServerIdentity) -> bool {
        self.0.metrics.tls.unusable(false);
        let changed = **self.0.identity.load() != identity;
        if changed {
            self.0.metrics.tls.expires(identity.expires());
            self.0.identity.store(Arc::new(identity));
            self.0.metrics.tls.reloaded("done");
        }
        changed
    }

    /// Counts files that could not be used when they were read again.
    pub(crate) fn reload_failed(&self) {
        self.0.metrics.tls.unusable(true);
        self.0.metrics.tls.reloaded("failed");
    }

    /// The connection over TLS. `listener` names the listener in the log. `identified` gets the client's
    /// certificate once it is verified, if it has one.
    pub(crate) fn accept(
        &self,
        stream: TcpStream,
        protocol: Protocol,
        listener: &'static str,
        identified: impl Fn(&CertificateDer<'_>) + Send + 'static,
    ) -> TlsConnection {
        let acceptor = TlsAcceptor::from(self.0.identity.load().config(protocol));
        TlsConnection(State::Handshake(Box::new(Handshake {
            accept: acceptor.accept(stream),
            tls: self.clone(),
            listener,
            identified: Box::new(identified),
        })))
    }

    /// Counts a failed handshake, and logs some.
    fn failed(&self, listener: &'static str, error: &io::Error) {
        self.0.metrics.refused("tls");
        if let Some(failed) = self.0.failures.record(1) {
            let cause = failure(error);
            warn!(listener, cause, failed, "a TLS handshake failed");
        }
    }
}

/// Connects to `HOST:PORT` by TLS, to speak HTTP/2.
pub(crate) async fn connect(
    files: &ClientFiles,
    address: &str,
) -> io::Result<client::TlsStream<TcpStream>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    files.connect(stream, host, Some(Protocol::Http2)).await.map_err(|error| match error {
        HandshakeError::Files(error) => io::Error::other(error),
        HandshakeError::Failed(error) => error,
        HandshakeError::InvalidName => io::Error::other(error),
    })
}

/// A connection over TLS, which begins with the handshake.
pub(crate) struct TlsConnection(State);

enum State {
    Handshake(Box<Handshake>),
    Open(Box<TlsStream<TcpStream>>),
    Failed,
}

struct Handshake {
    accept: Accept<TcpStream>,
    tls: ServerTls,
    listener: &'static str,
    identified: Box<dyn Fn(&CertificateDer<'_>) + Send>,
}

impl TlsConnection {
    /// The stream, once the handshake is done.
    fn poll_open(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<&mut TlsStream<TcpStream>>> {
        if let State::Handshake(handshake) = &mut self.0 {
            match ready!(Pin::new(&mut handshake.accept).poll(context)) {
                Ok(stream) => {
                    let certificates = stream.get_ref().1.peer_certificates();
                    if let Some(own) = certificates.and_then(<[_]>::first) {
                        (handshake.identified)(own);
                    }
                    self.0 = State::Open(Box::new(stream));
                }
                Err(error) => {
                    handshake.tls.failed(handshake.listener, &error);
                    self.0 = State::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.0 {
            State::Open(stream) => Ok(stream),
            State::Handshake(_) | State::Failed => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_open(context))?;
        Pin::new(stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.poll_open(context))?;
        Pin::new(stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.poll_open(context))?;
        Pin::new(stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            State::Open(stream) => Pin::new(stream).poll_flush(context),
            // Nothing was written yet, but for what the handshake flushes itself.
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            State::Open(stream) => Pin::new(stream).poll_shutdown(context),
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}
