//! How a client is made.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Status};

use crate::address::{Address, channel};
use crate::calls::{Calls, Intercept, Intercepting};
use crate::client::{Client, Token};
use crate::coalesce::Coalescer;
use crate::error::Error;
use crate::observer::Observer;

/// The deadline of a check, unless the client or the question says otherwise. A check is answered from memory, within
/// microseconds: one that takes this long has failed.
pub const CHECK_DEADLINE: Duration = Duration::from_millis(50);

/// How often an idle connection is probed, and how long the probe may take to be answered.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));

/// Makes a [`Client`] with options: see [`Client::builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct ClientBuilder {
    address: Option<String>,
    deadline: Duration,
    coalesce: bool,
    token: Token,
    #[cfg(feature = "tls")]
    ca_file: Option<PathBuf>,
    #[cfg(feature = "tls")]
    identity: Option<(PathBuf, PathBuf)>,
    #[cfg(feature = "tls")]
    tls: bool,
    observer: Option<Arc<dyn Observer>>,
    interceptor: Option<Arc<Intercept>>,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        Self {
            address: None,
            deadline: CHECK_DEADLINE,
            coalesce: true,
            token: Token::None,
            #[cfg(feature = "tls")]
            ca_file: None,
            #[cfg(feature = "tls")]
            identity: None,
            #[cfg(feature = "tls")]
            tls: false,
            observer: None,
            interceptor: None,
        }
    }

    /// The sidecar's address: `HOST:PORT`, `unix:PATH`, or `unix:@NAME` of an abstract socket. Without this call it is
    /// that of `CONSENTD_ADDR`, or else `127.0.0.1:50051`.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// How long a check may take, unless its question says otherwise: [`CHECK_DEADLINE`] without this call.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether concurrent checks become batches, as they do without this call.
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// The bearer token of recordings, where the sidecar has a `--record-token-file`.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Token::Text(token.into());
        self
    }

    /// A file with the bearer token of recordings, in its first line that is neither empty nor begins with `#`. It is
    /// read again for each recording, so that the token can be changed.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Token::File(path.into());
        self
    }

    /// Connects by TLS, and trusts the CA certificates of the system. Unix sockets never have TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Connects by TLS, and trusts the CA certificates of this PEM file instead of the system's.
    #[cfg(feature = "tls")]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self.tls()
    }

    /// Connects by TLS with this client certificate and its key, both PEM files.
    #[cfg(feature = "tls")]
    pub fn identity_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self.tls()
    }

    /// Gets the outcome of each check, for metrics and traces.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Is called with each request before it is sent, as tonic's interceptors are, such as to add metadata that traces
    /// need. An error that it returns is the result of the call.
    pub fn interceptor(
        mut self,
        interceptor: impl Fn(Request<()>) -> Result<Request<()>, Status> + Send + Sync + 'static,
    ) -> Self {
        self.interceptor = Some(Arc::new(interceptor));
        self
    }

    /// Makes the client, which begins to connect. Whether a sidecar is there, [`Client::ready`] says.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`, if the address, a certificate, a key or the token is none, or cannot be read.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn build(self) -> Result<Client, Error> {
        let address = Address::or_default(self.address.as_deref()).map_err(invalid)?;
        #[cfg(feature = "tls")]
        let endpoint = if self.tls && !address.is_unix() {
            self.with_tls(address.endpoint(true).map_err(invalid)?)?
        } else {
            address.endpoint(false).map_err(invalid)?
        };
        #[cfg(not(feature = "tls"))]
        let endpoint = address.endpoint(false).map_err(invalid)?;
        let (interval, timeout) = KEEPALIVE;
        let endpoint = endpoint
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true);
        if let Token::Text(token) = &self.token {
            Token::header(token)?;
        }
        let calls = Calls::new(channel(&endpoint, address), Intercepting(self.interceptor));
        let coalescer = self.coalesce.then(|| Coalescer::new(calls.clone(), self.observer.clone()));
        Ok(Client::of_sidecar(calls, coalescer, self.deadline, self.token, self.observer))
    }

    #[cfg(feature = "tls")]
    fn with_tls(
        &self,
        endpoint: tonic::transport::Endpoint,
    ) -> Result<tonic::transport::Endpoint, Error> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};
        let mut config = ClientTlsConfig::new();
        config = match &self.ca_file {
            Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint.tls_config(config).map_err(invalid)
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is a secret.
        f.debug_struct("ClientBuilder").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(feature = "tls")]
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| invalid(format!("{}: {error}", path.display())))
}

fn invalid(error: impl fmt::Display) -> Error {
    Error::new(Code::InvalidArgument, error.to_string())
}
