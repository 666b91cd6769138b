//! Where gRPC is served.

use super::{ConfigError, address, optional, wrong};
use crate::net::socket::Address;

/// Where to serve gRPC: nowhere, where webhooks are received and nothing else is wanted.
pub(super) fn listen(
    tcp: Option<&str>,
    unix: Option<&str>,
    webhook: bool,
) -> Result<Vec<Address>, ConfigError> {
    let tcp = optional(tcp.unwrap_or("127.0.0.1:50051"));
    let tcp = tcp.map(|text| address("--listen", text)).transpose()?;
    if matches!(unix, Some("" | "@" | "unix:" | "unix:@")) {
        return Err(wrong("--unix", "must be a path such as /run/consentd.sock, or @ and a name"));
    }
    // As the commands' --addr has it, for those who take one from the other.
    let path = unix.map(|path| {
        path.strip_prefix("unix://").or_else(|| path.strip_prefix("unix:")).unwrap_or(path)
    });
    let listen: Vec<_> = tcp.into_iter().chain(path.map(Address::unix)).collect();
    if listen.is_empty() && !webhook {
        return Err(wrong("--listen", "none is left to listen on: give --unix, or an address"));
    }
    Ok(listen)
}
