//! RESP2, as much of it as the handshake and a subscription need.
//!
//! redis-rs does everything else. It is not used here for two reasons. Its handshake mixes the rejection of
//! a password with the server's error about its arguments, which may quote the password; and its
//! subscriptions read into an unbounded queue, while here nothing is read from the socket before what was
//! read is delivered.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The maximum length of a string, in bytes. An announcement is far shorter.
const MAX_STRING: usize = 64 * 1024 * 1024;
/// The maximum number of elements of an array. A message has three, a reply to HELLO about fourteen.
const MAX_ELEMENTS: usize = 1_024;
/// The maximum depth of nested arrays. The modules in a reply to HELLO are nested three deep.
const MAX_DEPTH: usize = 5;
/// The maximum length of a line (a number, a status or an error), in bytes.
const MAX_LINE: usize = 64 * 1024;

/// How many bytes are read at once.
const READ_BYTES: usize = 8 * 1024;

/// A byte stream: TCP, TLS or a Unix socket.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that speaks RESP, with the bytes that were read and not yet parsed.
pub(crate) struct RespConnection {
    stream: Box<dyn Stream>,
    read: BytesMut,
}

/// A reply of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    /// A status.
    Simple(Bytes),
    /// An error.
    Error(Bytes),
    /// A number.
    Integer(i64),
    /// A string, or null.
    Bulk(Option<Bytes>),
    /// An array; a null array is empty.
    Array(Vec<Reply>),
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RespError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side closed it.
    #[error("the connection was closed")]
    Closed,
    /// The received bytes are not RESP. Has the first of them.
    #[error("the received bytes are not RESP")]
    NotResp(u8),
}

impl Reply {
    /// The bytes of a string or a status.
    pub(crate) fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Simple(bytes) | Self::Bulk(Some(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a string or a status.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

impl RespConnection {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, read: BytesMut::new() }
    }

    /// Sends commands with a single write.
    pub(crate) async fn send(&mut self, commands: &[Vec<&[u8]>]) -> Result<(), RespError> {
        let mut packed = Vec::new();
        for command in commands {
            packed.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for argument in command {
                packed.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                packed.extend_from_slice(argument);
                packed.extend_from_slice(b"\r\n");
            }
        }
        self.stream.write_all(&packed).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Receives the next reply. Cancel-safe.
    pub(crate) async fn reply(&mut self) -> Result<Reply, RespError> {
        loop {
            let mut rest = &self.read[..];
            if let Some(reply) = parse(&mut rest, 0)? {
                let taken = self.read.len() - rest.len();
                self.read.advance(taken);
                return Ok(reply);
            }
            self.read.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(RespError::Closed);
            }
        }
    }

    /// Returns the stream, unless there are unparsed bytes.
    pub(crate) fn into_stream(self) -> Option<Box<dyn Stream>> {
        self.read.is_empty().then_some(self.stream)
    }
}

/// Parses one reply off `rest`; `None` if it is incomplete.
fn parse(rest: &mut &[u8], depth: usize) -> Result<Option<Reply>, RespError> {
    let Some(&kind) = rest.first() else { return Ok(None) };
    let wrong = || RespError::NotResp(kind);
    if !b"+-:$*".contains(&kind) || depth > MAX_DEPTH {
        return Err(wrong());
    }
    let Some(end) = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if rest.len() < MAX_LINE { Ok(None) } else { Err(wrong()) };
    };
    let line = rest.get(1..end).and_then(|line| line.strip_suffix(b"\r")).ok_or_else(wrong)?;
    let mut behind = rest.get(end + 1..).unwrap_or_default();
    let number = || {
        let text = std::str::from_utf8(line).map_err(|_| wrong())?;
        text.parse::<i64>().map_err(|_| wrong())
    };
    let reply = match kind {
        b'+' => Reply::Simple(Bytes::copy_from_slice(line)),
        b'-' => Reply::Error(Bytes::copy_from_slice(line)),
        b':' => Reply::Integer(number()?),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Reply::Bulk(None),
            Ok(length) if length > MAX_STRING => return Err(wrong()),
            // Copied, so that a short message does not keep a large buffer alive.
            Ok(length) => match (behind.get(..length), behind.get(length..length + 2)) {
                (Some(string), Some(b"\r\n")) => {
                    behind = behind.get(length + 2..).unwrap_or_default();
                    Reply::Bulk(Some(Bytes::copy_from_slice(string)))
                }
                (_, Some(_)) => return Err(wrong()),
                (_, None) => return Ok(None),
            },
        },
        _ => {
            let count = usize::try_from(number()?).unwrap_or(0);
            if count > MAX_ELEMENTS {
                return Err(wrong());
            }
            let mut elements = Vec::with_capacity(count);
            for _ in 0..count {
                let Some(element) = parse(&mut behind, depth + 1)? else { return Ok(None) };
                elements.push(element);
            }
            Reply::Array(elements)
        }
    };
    *rest = behind;
    Ok(Some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reply_is_parsed_however_the_bytes_are_split() {
        let sent =
            b"+OK\r\n-ERR no\r\n:-7\r\n$-1\r\n$4\r\na\r\nb\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n\
                     $0\r\n\r\n*-1\r\n";
        for size in [1, 2, 3, 7, 1_000] {
            let (near, mut far) = tokio::io::duplex(size);
            let write = async { far.write_all(sent).await.unwrap() };
            let mut resp = RespConnection::new(Box::new(near));
            let read = async {
                let mut replies = Vec::new();
                for _ in 0..7 {
                    replies.push(resp.reply().await.unwrap());
                }
                replies
            };
            let ((), replies) = tokio::join!(write, read);
            let bulk = |text: &'static str| Reply::Bulk(Some(Bytes::from(text)));
            assert_eq!(replies[0], Reply::Simple(Bytes::from("OK")));
            assert_eq!(replies[1], Reply::Error(Bytes::from("ERR no")));
            assert_eq!(replies[2], Reply::Integer(-7));
            assert_eq!(replies[3], Reply::Bulk(None));
            assert_eq!(replies[4], bulk("a\r\nb"));
            assert_eq!(replies[5], Reply::Array(vec![bulk("message"), bulk("c"), bulk("")]));
            assert_eq!(replies[6], Reply::Array(Vec::new()));
            assert!(resp.into_stream().is_some());
        }
    }

    #[tokio::test]
    async fn reply_that_is_not_resp_is_rejected_at_once() {
        for sent in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"\x15\x03\x03\x00\x02\x02\x0a",
            b"$99999999999\r\n",
            b"*2000\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
            b":\xff\r\n",
            b"$1\r\nabc\r\n",
            b"+\n",
        ] {
            let (near, mut far) = tokio::io::duplex(1_000);
            far.write_all(sent).await.unwrap();
            let read = RespConnection::new(Box::new(near)).reply().await;
            assert!(matches!(read, Err(RespError::NotResp(_))), "{sent:?}: {read:?}");
        }
        let (near, far) = tokio::io::duplex(10);
        drop(far);
        let read = RespConnection::new(Box::new(near)).reply().await;
        assert!(matches!(read, Err(RespError::Closed)));
    }
}
