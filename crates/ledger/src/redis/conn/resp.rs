//! RESP2, as much of it as the handshake, a subscription and the reading of all buckets need.
//!
//! redis-rs does everything else. It is not used here for three reasons. Its handshake mixes the rejection of
//! a password with the server's error about its arguments, which may quote the password; its subscriptions
//! read into an unbounded queue, while here nothing is read from the socket before what was read is
//! delivered; and it allocates several times for each string of a reply, where millions of pairs are read.

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
/// How many bytes of a long reply are read at once: about as many as a Unix socket holds.
const LONG_READ_BYTES: usize = 256 * 1024;

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
            self.receive(READ_BYTES).await?;
        }
    }

    /// Receives the next reply, an array of strings in pairs such as that of HGETALL, and hands each pair to
    /// `each` as it arrives, without a copy of its own. The array may be of any length. Returns the reply
    /// itself if it is an error. Not cancel-safe: a part of the reply may have been handed over.
    pub(crate) async fn string_pairs(
        &mut self,
        mut each: impl FnMut(&[u8], &[u8]) + Send,
    ) -> Result<Option<Reply>, RespError> {
        let mut left = loop {
            let mut rest = &self.read[..];
            if rest.first().is_some_and(|kind| *kind != b'*') {
                return self.reply().await.map(Some);
            }
            if let Some((_, line)) = split_line(&mut rest)? {
                let count = usize::try_from(number(b'*', line)?).unwrap_or(0);
                let taken = self.read.len() - rest.len();
                self.read.advance(taken);
                break count;
            }
            self.receive(READ_BYTES).await?;
        };
        if !left.is_multiple_of(2) {
            return Err(RespError::NotResp(b'*'));
        }
        loop {
            let mut rest = &self.read[..];
            while left > 0 {
                let mut behind = rest;
                let Some(first) = parse_string(&mut behind)? else { break };
                let Some(second) = parse_string(&mut behind)? else { break };
                each(first, second);
                (rest, left) = (behind, left - 2);
            }
            let taken = self.read.len() - rest.len();
            self.read.advance(taken);
            if left == 0 {
                return Ok(None);
            }
            self.receive(LONG_READ_BYTES).await?;
        }
    }

    /// Reads more bytes off the stream, with room for so many.
    async fn receive(&mut self, room: usize) -> Result<(), RespError> {
        self.read.reserve(room);
        if self.stream.read_buf(&mut self.read).await? == 0 {
            return Err(RespError::Closed);
        }
        Ok(())
    }

    /// Returns the stream, unless there are unparsed bytes.
    pub(crate) fn into_stream(self) -> Option<Box<dyn Stream>> {
        self.read.is_empty().then_some(self.stream)
    }
}

/// Splits the first line of a reply off `rest`: the kind of the reply, and what follows it in the line;
/// `None` if it is incomplete.
fn split_line<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, RespError> {
    let Some(&kind) = rest.first() else { return Ok(None) };
    let wrong = || RespError::NotResp(kind);
    let Some(end) = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if rest.len() < MAX_LINE { Ok(None) } else { Err(wrong()) };
    };
    let line = rest.get(1..end).and_then(|line| line.strip_suffix(b"\r")).ok_or_else(wrong)?;
    *rest = rest.get(end + 1..).unwrap_or_default();
    Ok(Some((kind, line)))
}

/// The number in the first line of a reply of this kind.
fn number(kind: u8, line: &[u8]) -> Result<i64, RespError> {
    let text = std::str::from_utf8(line).map_err(|_| RespError::NotResp(kind))?;
    text.parse().map_err(|_| RespError::NotResp(kind))
}

/// Parses what follows the first line of a string off `rest`; `None` if it is incomplete.
fn string_of<'a>(rest: &mut &'a [u8], length: usize) -> Result<Option<&'a [u8]>, RespError> {
    if length > MAX_STRING {
        return Err(RespError::NotResp(b'$'));
    }
    match (rest.get(..length), rest.get(length..length + 2)) {
        (Some(string), Some(b"\r\n")) => {
            *rest = rest.get(length + 2..).unwrap_or_default();
            Ok(Some(string))
        }
        (_, Some(_)) => Err(RespError::NotResp(b'$')),
        (_, None) => Ok(None),
    }
}

/// Parses one string, which must not be null, off `rest`; `None` if it is incomplete.
fn parse_string<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RespError> {
    let mut behind = *rest;
    let Some((kind, line)) = split_line(&mut behind)? else { return Ok(None) };
    let length = usize::try_from(number(kind, line)?);
    let (b'$', Ok(length)) = (kind, length) else { return Err(RespError::NotResp(kind)) };
    let Some(string) = string_of(&mut behind, length)? else { return Ok(None) };
    *rest = behind;
    Ok(Some(string))
}

/// Parses one reply off `rest`; `None` if it is incomplete.
fn parse(rest: &mut &[u8], depth: usize) -> Result<Option<Reply>, RespError> {
    let Some(&kind) = rest.first() else { return Ok(None) };
    let wrong = || RespError::NotResp(kind);
    if !b"+-:$*".contains(&kind) || depth > MAX_DEPTH {
        return Err(wrong());
    }
    let mut behind = *rest;
    let Some((_, line)) = split_line(&mut behind)? else { return Ok(None) };
    let reply = match kind {
        b'+' => Reply::Simple(Bytes::copy_from_slice(line)),
        b'-' => Reply::Error(Bytes::copy_from_slice(line)),
        b':' => Reply::Integer(number(kind, line)?),
        b'$' => match usize::try_from(number(kind, line)?) {
            Err(_) => Reply::Bulk(None),
            // Copied, so that a short message does not keep a large buffer alive.
            Ok(length) => match string_of(&mut behind, length)? {
                Some(string) => Reply::Bulk(Some(Bytes::copy_from_slice(string))),
                None => return Ok(None),
            },
        },
        _ => {
            let count = usize::try_from(number(kind, line)?).unwrap_or(0);
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
    async fn pairs_of_strings_are_handed_over_however_the_bytes_are_split() {
        let long = vec![b'x'; 5_000];
        let mut sent = b"*4\r\n$1\r\na\r\n$0\r\n\r\n$4\r\nb\r\nc\r\n$5000\r\n".to_vec();
        sent.extend_from_slice(&long);
        sent.extend_from_slice(b"\r\n*0\r\n-NOPERM no\r\n*2\r\n$1\r\nd\r\n$1\r\ne\r\n:5\r\n");
        for size in [1, 2, 3, 7, 1_000, 100_000] {
            let (near, mut far) = tokio::io::duplex(size);
            let write = async { far.write_all(&sent).await.unwrap() };
            let mut resp = RespConnection::new(Box::new(near));
            let read = async {
                let (mut pairs, mut others) = (Vec::new(), Vec::new());
                for _ in 0..4 {
                    let add = |one: &[u8], two: &[u8]| pairs.push((one.to_vec(), two.to_vec()));
                    others.extend(resp.string_pairs(add).await.unwrap());
                }
                (pairs, others, resp.reply().await.unwrap())
            };
            let ((), (pairs, others, last)) = tokio::join!(write, read);
            let pair = |one: &[u8], two: &[u8]| (one.to_vec(), two.to_vec());
            assert_eq!(pairs, [pair(b"a", b""), pair(b"b\r\nc", &long), pair(b"d", b"e")]);
            assert_eq!(others, [Reply::Error(Bytes::from("NOPERM no"))]);
            assert_eq!(last, Reply::Integer(5));
            assert!(resp.into_stream().is_some());
        }
        for sent in [&b"*1\r\n"[..], b"*2\r\n:1\r\n", b"*2\r\n$-1\r\n", b"*2\r\n$1\r\nabc\r\n"] {
            let (near, mut far) = tokio::io::duplex(1_000);
            far.write_all(sent).await.unwrap();
            let read = RespConnection::new(Box::new(near)).string_pairs(|_, _| {}).await;
            assert!(matches!(read, Err(RespError::NotResp(_))), "{sent:?}: {read:?}");
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
