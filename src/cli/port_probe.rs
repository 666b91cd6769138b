//! Probes a TCP port that does not answer as a sidecar, to explain why a connection failed.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long to wait for a connection, and for each read.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How much of the response is read.
const MAX_RESPONSE_BYTES: usize = 1_024;

/// What listens at a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Service {
    /// Nothing: the connection failed.
    Nothing,
    /// A sidecar's admin port.
    Admin,
    /// Another HTTP/1 server.
    Http,
    /// A Redis server.
    Redis,
    /// A server that expects TLS.
    Tls,
    /// An HTTP/2 server, as gRPC servers are.
    Http2,
    /// A server whose response is not recognised.
    Unknown,
}

/// Probes `HOST:PORT` with a request that most servers answer and that changes nothing. Blocks for
/// a few seconds at most.
pub(super) fn probe(address: &str) -> Service {
    let resolved = address.to_socket_addrs().ok().and_then(|mut found| found.next());
    let stream = resolved.and_then(|at| TcpStream::connect_timeout(&at, TIMEOUT).ok());
    let Some(stream) = stream else { return Service::Nothing };
    recognise(&response(stream).unwrap_or_default())
}

fn response(mut stream: TcpStream) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // Redis closes a connection that sends a Host header, because it suspects an attack.
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n")?;
    let mut response = Vec::new();
    let mut part = [0; MAX_RESPONSE_BYTES];
    while response.len() < MAX_RESPONSE_BYTES {
        match stream.read(&mut part) {
            Ok(read) if read > 0 => {
                response.extend_from_slice(part.get(..read).unwrap_or_default());
            }
            // On a timeout or an error, the bytes read so far are the response.
            _ => break,
        }
    }
    Ok(response)
}

/// Recognises a server by the first bytes of its response.
fn recognise(response: &[u8]) -> Service {
    /// The type of the first frame of an HTTP/2 server.
    const SETTINGS: u8 = 4;
    match response {
        [b'H', b'T', b'T', b'P', b'/', ..] if response.ends_with(b"\r\n\r\nok\n") => Service::Admin,
        [b'H', b'T', b'T', b'P', b'/', ..] => Service::Http,
        [b'-', b'E' | b'N' | b'W' | b'D', ..] => Service::Redis,
        [0x15, 3, ..] => Service::Tls,
        [0, _, _, SETTINGS, ..] => Service::Http2,
        _ => Service::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_recognised_by_their_first_bytes() {
        for (response, found) in [
            (&b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n"[..], Service::Admin),
            (b"HTTP/1.0 404 Not Found\r\n\r\n", Service::Http),
            (b"-ERR wrong number of arguments for 'get' command\r\n", Service::Redis),
            (b"-NOAUTH Authentication required.\r\n", Service::Redis),
            (b"\x15\x03\x01\x00\x02\x02\x46", Service::Tls),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", Service::Http2),
            (b"220 mail.example ESMTP\r\n", Service::Unknown),
            (b"", Service::Unknown),
        ] {
            assert_eq!(recognise(response), found, "{}", String::from_utf8_lossy(response));
        }
    }
}
