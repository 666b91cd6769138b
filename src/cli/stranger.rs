//! What listens where no sidecar answers as one should.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long it may take to show what it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much of its answer is looked at.
const LOOK: usize = 1_024;

/// What was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stranger {
    /// Nobody.
    Nobody,
    /// A sidecar's own admin listener.
    Admin,
    /// Another server of HTTP.
    Http,
    /// A Redis.
    Redis,
    /// One that expects TLS.
    Tls,
    /// It speaks HTTP/2, as gRPC does.
    Http2,
    /// It accepts connections, and says nothing that we know.
    Unknown,
}

/// Asks what listens at `HOST:PORT`, in a way that most servers answer, and that harms none.
pub(super) fn at(address: &str) -> Stranger {
    let resolved = address.to_socket_addrs().ok().and_then(|mut found| found.next());
    let stream = resolved.and_then(|at| TcpStream::connect_timeout(&at, PATIENCE).ok());
    let Some(stream) = stream else { return Stranger::Nobody };
    of(&answer(stream).unwrap_or_default())
}

fn answer(mut stream: TcpStream) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Without a Host header, which a Redis would take for an attack.
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n")?;
    let mut said = Vec::new();
    let mut part = [0; LOOK];
    while said.len() < LOOK {
        match stream.read(&mut part) {
            Ok(read) if read > 0 => said.extend_from_slice(part.get(..read).unwrap_or_default()),
            // What it said until then is as much as it will say.
            _ => break,
        }
    }
    Ok(said)
}

/// By how its answer begins.
fn of(said: &[u8]) -> Stranger {
    /// The type of the frame with which a server of HTTP/2 begins.
    const SETTINGS: u8 = 4;
    match said {
        [b'H', b'T', b'T', b'P', b'/', ..] if said.ends_with(b"\r\n\r\nok\n") => Stranger::Admin,
        [b'H', b'T', b'T', b'P', b'/', ..] => Stranger::Http,
        [b'-', b'E' | b'N' | b'W' | b'D', ..] => Stranger::Redis,
        [0x15, 3, ..] => Stranger::Tls,
        [0, _, _, SETTINGS, ..] => Stranger::Http2,
        _ => Stranger::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_known_by_how_they_begin() {
        for (said, found) in [
            (&b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n"[..], Stranger::Admin),
            (b"HTTP/1.0 404 Not Found\r\n\r\n", Stranger::Http),
            (b"-ERR wrong number of arguments for 'get' command\r\n", Stranger::Redis),
            (b"-NOAUTH Authentication required.\r\n", Stranger::Redis),
            (b"\x15\x03\x01\x00\x02\x02\x46", Stranger::Tls),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", Stranger::Http2),
            (b"220 mail.example ESMTP\r\n", Stranger::Unknown),
            (b"", Stranger::Unknown),
        ] {
            assert_eq!(of(said), found, "{}", String::from_utf8_lossy(said));
        }
    }
}
