//! Connecting to a sidecar, and saying why that failed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt as _;
use tower::service_fn;

use crate::grpc::listen::{Address, connect_unix};

/// Which sidecar to ask, and how to print its answer.
#[derive(Args, Clone, Debug)]
pub(super) struct ClientArgs {
    /// The sidecar: HOST:PORT, unix:PATH or unix:@NAME
    #[arg(long, env = "CONSENTD_ADDR", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    addr: Address,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the answer as proto3 JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The bearer token of those who may record.
#[derive(Args, Clone, Debug)]
pub(super) struct TokenArgs {
    /// A file whose first line is the bearer token, where the server wants one; the server's own
    /// file will do
    #[arg(long, env = "CONSENTD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ClientArgs {
    /// Connects.
    pub(super) async fn connect(&self) -> anyhow::Result<Channel> {
        let connected = match &self.addr {
            Address::Tcp(address) => {
                let uri = format!("http://{address}");
                let endpoint = Endpoint::from_shared(uri)
                    .with_context(|| format!("{address} is not an address"))?;
                endpoint.connect_timeout(self.timeout).timeout(self.timeout).connect().await
            }
            unix => {
                let unix = unix.clone();
                Endpoint::from_static("http://localhost")
                    .timeout(self.timeout)
                    .connect_with_connector(service_fn(move |_: Uri| {
                        let unix = unix.clone();
                        async move { connect_unix(&unix).await.map(TokioIo::new) }
                    }))
                    .await
            }
        };
        connected.map_err(|error| {
            anyhow!(
                "cannot reach consentd at {}: {}\n  start one with `consentd serve`, or say where \
                 it is with --addr or CONSENTD_ADDR",
                self.addr,
                innermost(&error)
            )
        })
    }

    /// A request that tells the sidecar how long its answer is waited for.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // More than the header could hold is as good as for ever.
        request.set_timeout(self.timeout.min(Duration::from_hours(24 * 365)));
        request
    }

    /// Explains an error that the sidecar answered, field by field where it names fields.
    pub(super) fn explain(&self, status: &tonic::Status) -> anyhow::Error {
        let details = status.get_error_details();
        if let Some(bad) = details.bad_request().filter(|bad| !bad.field_violations.is_empty()) {
            let lines = bad
                .field_violations
                .iter()
                .map(|violation| format!("\n  {}: {}", violation.field, violation.description));
            return anyhow!("the request is not valid:{}", lines.collect::<String>());
        }
        let code = status.code();
        match code {
            tonic::Code::Unavailable if status.message().is_empty() => {
                anyhow!("consentd at {} went away", self.addr)
            }
            // What our own side of the connection says of its own clock.
            tonic::Code::Cancelled if status.message() == "Timeout expired" => {
                let timeout = humantime::format_duration(self.timeout);
                anyhow!("consentd at {} did not answer within {timeout}", self.addr)
            }
            _ if status.message().is_empty() => anyhow!("{} ({code:?})", code.description()),
            _ => anyhow!("{} ({code:?})", status.message()),
        }
    }
}

impl TokenArgs {
    /// The value of the `authorization` header, where a token was given.
    pub(super) fn header(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token file {}", path.display()))?;
        // As the server reads it, so that one file serves both.
        let is_token = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let Some(token) = text.lines().map(str::trim).find(is_token) else {
            bail!("the token file {} is empty", path.display());
        };
        let header = MetadataValue::try_from(format!("Bearer {token}"));
        Ok(Some(header.map_err(|_| {
            anyhow!("the token in {} has characters that a header cannot hold", path.display())
        })?))
    }
}

/// The cause at the bottom, which is what the system said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
