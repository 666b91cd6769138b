//! Addresses of sidecars, and how they are connected to.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::{Channel, Endpoint, Uri};

/// The variable of the environment that names the sidecar.
const VARIABLE: &str = "CONSENTD_ADDR";
/// Where a sidecar is if nothing says otherwise.
const DEFAULT: &str = "127.0.0.1:50051";
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause between two attempts to connect, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Where a sidecar listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Address {
    Tcp(String),
    Unix(PathBuf),
    Abstract(String),
}

/// Text that is not a valid address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct InvalidAddress(String);

impl fmt::Display for InvalidAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(f, "{text:?} is not a valid address: it must be HOST:PORT, unix:PATH or unix:@NAME")
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            return match path.strip_prefix('@') {
                Some("") => Err(invalid()),
                Some(name) => Ok(Self::Abstract(name.to_owned())),
                None if path.is_empty() => Err(invalid()),
                None => Ok(Self::Unix(path.into())),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let is_host = !host.is_empty() && format!("http://{text}").parse::<Uri>().is_ok();
        if !is_host || text.contains('/') || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl Address {
    /// The address given, or that of the environment, or the default.
    pub(crate) fn or_default(given: Option<&str>) -> Result<Self, InvalidAddress> {
        if let Some(given) = given {
            return given.parse();
        }
        #[allow(clippy::disallowed_methods, reason = "this is where the environment is read")]
        let variable = std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        variable.as_deref().unwrap_or(DEFAULT).parse()
    }

    /// The address as gRPC's authority and scheme. No path of a Unix socket makes an authority.
    pub(crate) fn endpoint(&self, is_tls: bool) -> Result<Endpoint, tonic::transport::Error> {
        let authority = match self {
            Self::Tcp(address) => address,
            Self::Unix(_) | Self::Abstract(_) => "localhost",
        };
        let scheme = if is_tls { "https" } else { "http" };
        Endpoint::from_shared(format!("{scheme}://{authority}"))
    }

    #[cfg(feature = "tls")]
    pub(crate) fn is_unix(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

/// A socket of any kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

async fn connect(address: &Address) -> io::Result<Box<dyn Socket>> {
    Ok(match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            // Questions are small: one must not wait for the acknowledgement of the one before.
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        // The name of an abstract socket begins with a zero byte.
        Address::Abstract(name) => Box::new(UnixStream::connect(format!("\0{name}")).await?),
    })
}

/// A channel that connects, when it is first used and after each loss, no more often than [`PAUSES`] say. tonic by
/// itself connects again for each call, so that a sidecar that starts would be flooded. Between two attempts a call fails
/// at once, as the attempt before did: whoever made it knows how long it may be repeated.
pub(crate) fn channel(endpoint: &Endpoint, address: Address) -> Channel {
    let pacing = Arc::new(Mutex::new(Pacing {
        earliest: None,
        failure: None,
        failures: Backoff::new(PAUSES),
    }));
    let address = Arc::new(address);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (pacing, address) = (Arc::clone(&pacing), Arc::clone(&address));
        async move {
            let lock = || pacing.lock().unwrap_or_else(PoisonError::into_inner);
            let (earliest, failure) = lock().wait(Instant::now());
            if let Some(failure) = failure {
                return Err(failure);
            }
            if let Some(earliest) = earliest {
                sleep_until(earliest).await;
            }
            let connected = timeout(CONNECT_TIMEOUT, connect(&address)).await;
            let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            lock().tried(connected.as_ref().err(), Instant::now());
            connected.map(TokioIo::new)
        }
    }))
}

/// When the next attempt to connect may begin.
struct Pacing {
    earliest: Option<Instant>,
    /// What the last attempt failed with, if it failed.
    failure: Option<(io::ErrorKind, String)>,
    failures: Backoff,
}

impl Pacing {
    /// When an attempt may begin, and the error of a call that comes before that.
    fn wait(&self, now: Instant) -> (Option<Instant>, Option<io::Error>) {
        let is_early = self.earliest.is_some_and(|earliest| now < earliest);
        let failure = self.failure.as_ref().filter(|_| is_early);
        (self.earliest, failure.map(|(kind, text)| io::Error::new(*kind, text.clone())))
    }

    fn tried(&mut self, error: Option<&io::Error>, now: Instant) {
        self.failure = error.map(|error| (error.kind(), error.to_string()));
        let pause = if error.is_some() {
            self.failures.next()
        } else {
            // A connection that ends as soon as it is made is not made again at once either.
            self.failures = Backoff::new(PAUSES);
            PAUSES.0
        };
        self.earliest = Some(now + pause);
    }
}

/// Pauses that double, each varied by a fifth either way, so that many clients do not come at once.
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { next: first, longest }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        let percent = 80 + u32::try_from(random() % 41).unwrap_or_default();
        pause * percent / 100
    }
}

/// A random number. The keys of each [`RandomState`] are another ones, made from the system's randomness.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_sidecar() {
        for (text, address) in [
            ("127.0.0.1:50051", Address::Tcp("127.0.0.1:50051".into())),
            ("[::1]:1", Address::Tcp("[::1]:1".into())),
            ("unix:/run/a.sock", Address::Unix("/run/a.sock".into())),
            ("unix:///run/a.sock", Address::Unix("/run/a.sock".into())),
            ("unix:@name", Address::Abstract("name".into())),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in
            ["", "50051", "a b:1", ":1", "host:", "host:99999", "unix:", "unix:@", "http://a:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn calls_between_two_attempts_fail_as_the_attempt_before() {
        let mut pacing = Pacing { earliest: None, failure: None, failures: Backoff::new(PAUSES) };
        let now = Instant::now();
        assert!(pacing.wait(now).1.is_none());
        for pause in [20, 40, 80] {
            let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
            pacing.tried(Some(&refused), now);
            let (earliest, failure) = pacing.wait(now);
            assert!(earliest.unwrap() >= now + Duration::from_millis(pause * 4 / 5));
            assert_eq!(failure.unwrap().to_string(), "refused");
            assert!(pacing.wait(now + Duration::from_secs(2)).1.is_none());
        }
        pacing.tried(None, now);
        assert!(pacing.wait(now).1.is_none());
        assert_eq!(pacing.wait(now).0, Some(now + PAUSES.0));
        assert_eq!(pacing.failures.next, PAUSES.0, "the next failure is the first");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(PAUSES);
        let mut expected = 20;
        for _ in 0..9 {
            let pause = backoff.next().as_millis();
            assert!((expected * 4 / 5..=expected * 6 / 5).contains(&pause), "{expected}: {pause}");
            expected = (expected * 2).min(1_000);
        }
        assert_eq!(backoff.next, Duration::from_secs(1));
    }
}
