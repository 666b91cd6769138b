//! The HTTP/2 frames that a client sends, on their way to h2.
//!
//! h2 makes two things fail that conforming clients of gRPC do, and both are mended before h2 reads them:
//!
//! - **`WINDOW_UPDATE` of a call that crossed the last GOAWAY.** h2 ignores the HEADERS of such a call, as it should
//!   (its client makes it again elsewhere), but takes the `WINDOW_UPDATE` after it for one of an idle stream and ends
//!   the whole connection with `PROTOCOL_ERROR`, with every call that was still to be answered. Such a `WINDOW_UPDATE`
//!   is dropped.
//! - **A socket's path as `:authority`**, which gRPC core and grpc-java send over Unix sockets, and which h2 answers
//!   with `RST_STREAM`. Nothing here reads the authority, so over a Unix socket it is replaced, also where it is encoded
//!   by Huffman's code. Only an authority in a CONTINUATION frame, after 16 KiB of other headers, is neither replaced
//!   nor counted.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tracing::warn;

use super::header_block::{authority, header_block};
use crate::metrics::Metrics;
use crate::net::log_throttle::LogThrottle;

/// Bytes of the client's preface (RFC 9113, section 3.4).
pub(super) const PREFACE_BYTES: usize = 24;
/// What the preface begins with, and no method of HTTP/1 does.
const PREFACE_START: &[u8] = b"PRI";
/// Bytes of a frame's header (RFC 9113, section 4.1).
pub(super) const HEADER_BYTES: usize = 9;
/// Bytes of a frame's payload: the least that the protocol allows. Longer ones are not looked into, since h2 refuses them.
pub(super) const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// The payload of the PING that h2 sends after the first GOAWAY of a graceful end; at its acknowledgement h2 sends the
/// last GOAWAY, and ignores the streams that are begun after it.
const SHUTDOWN_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

const HEADERS: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// The authority that stands for a socket's path.
const REPLACEMENT: &[u8] = b"localhost";
/// The shortest time between two warnings of refused authorities.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Greeting {
    /// HTTP/2, or what h2 is to refuse.
    Http2,
    /// A request of HTTP/1.
    Http1,
}

/// Counts and logs authorities that h2 refuses. One for each listener.
#[derive(Debug)]
pub(super) struct AuthorityReport {
    metrics: Arc<Metrics>,
    refused: LogThrottle,
}

impl AuthorityReport {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, refused: LogThrottle::new(LOG_INTERVAL) }
    }

    fn report(&self, found: Authorities) {
        self.metrics.authorities(found.replaced, found.refused);
        if let Some(calls) = self.refused.record(found.refused.into()) {
            warn!(
                calls,
                "refused calls with an invalid :authority (the client sees RST_STREAM): set the client's authority to \
                 localhost, such as by the option grpc.default_authority or overrideAuthority"
            );
        }
    }
}

/// A connection's socket, between its client and h2.
pub(super) struct ClientFrames<S> {
    stream: S,
    filter: FrameFilter,
    report: Arc<AuthorityReport>,
    /// Bytes that were read and are not handed over yet: first [`ready`](Self::ready) that were filtered, then the
    /// beginning of a frame.
    held: Vec<u8>,
    ready: usize,
}

impl<S: AsyncRead + Unpin> ClientFrames<S> {
    /// The frames that arrive on `stream`. `is_unix` says that it is a Unix socket, where a path as the authority is
    /// replaced.
    pub(super) fn new(stream: S, is_unix: bool, report: Arc<AuthorityReport>) -> Self {
        let filter = FrameFilter::new(is_unix);
        Self { stream, filter, report, held: Vec::new(), ready: 0 }
    }

    /// Waits for the first bytes. They are handed over to whoever reads next, also if this is dropped before its end.
    pub(super) async fn greeting(&mut self) -> io::Result<Greeting> {
        let greeting = loop {
            let compared = self.held.len().min(PREFACE_START.len());
            if self.held.get(..compared) != PREFACE_START.get(..compared) {
                let is_http1 = self.held.first().is_some_and(u8::is_ascii_uppercase);
                break if is_http1 { Greeting::Http1 } else { Greeting::Http2 };
            }
            if compared == PREFACE_START.len() || self.stream.read_buf(&mut self.held).await? == 0 {
                break Greeting::Http2;
            }
        };
        self.filter_held();
        Ok(greeting)
    }

    fn filter_held(&mut self) {
        let held = self.filter.filter(&mut self.held);
        // What was dropped lies between what was kept and the frame that is incomplete.
        self.held.drain(held.kept..held.incomplete);
        self.ready = held.kept;
        self.report();
    }

    fn report(&mut self) {
        let found = std::mem::take(&mut self.filter.found);
        if found.refused > 0 || found.replaced > 0 {
            self.report.report(found);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientFrames<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ready > 0 {
                let count = this.ready.min(buffer.remaining());
                buffer.put_slice(this.held.get(..count).unwrap_or_default());
                this.held.drain(..count);
                this.ready -= count;
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                // The usual case: whole frames are filtered where they were read to.
                let before = buffer.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
                let read = buffer.filled_mut().get_mut(before..).unwrap_or_default();
                if read.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let filtered = this.filter.filter(read);
                this.held.extend_from_slice(read.get(filtered.incomplete..).unwrap_or_default());
                buffer.set_filled(before + filtered.kept);
                this.report();
                if filtered.kept > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut more = [MaybeUninit::uninit(); 4096];
                let mut more = ReadBuf::uninit(&mut more);
                ready!(Pin::new(&mut this.stream).poll_read(context, &mut more))?;
                if more.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.held.extend_from_slice(more.filled());
                this.filter_held();
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientFrames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Authorities that h2 refuses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Authorities {
    refused: u32,
    replaced: u32,
}

/// The result of filtering a buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Filtered {
    /// So many bytes at the beginning are to be handed over.
    kept: usize,
    /// From here on there is the beginning of a frame, which is to be filtered again once more has arrived.
    incomplete: usize,
}

/// Finds the frames in what a client sends, and changes or drops those that h2 would make fail.
#[derive(Debug)]
struct FrameFilter {
    is_unix: bool,
    /// Bytes that pass as they are: what is missing of the preface, or of a frame's payload.
    passing: usize,
    /// The highest stream that was begun before h2 sent its last GOAWAY.
    last_stream: u32,
    /// Whether h2 ignores streams after that one.
    is_last: bool,
    found: Authorities,
}

/// A frame's header.
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEADER_BYTES>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The first bit is reserved.
        Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) })
    }
}

impl FrameFilter {
    fn new(is_unix: bool) -> Self {
        let found = Authorities::default();
        Self { is_unix, passing: PREFACE_BYTES, last_stream: 0, is_last: false, found }
    }

    /// Filters bytes in place; they begin where the ones before had become incomplete.
    fn filter(&mut self, bytes: &mut [u8]) -> Filtered {
        let (mut kept, mut at) = (0, 0);
        loop {
            let passed = self.passing.min(bytes.len() - at);
            move_within(bytes, at..at + passed, kept);
            self.passing -= passed;
            at += passed;
            kept += passed;
            let Some(frame) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) else { break };
            let Some(header) = Header::read(frame) else { break };
            let length = HEADER_BYTES + header.length;
            if !self.is_looked_into(&header) {
                self.passing = length;
                continue;
            }
            let Some(frame) = frame.get_mut(..length) else { break };
            let remains = self.look_into(&header, frame);
            move_within(bytes, at..at + remains, kept);
            at += length;
            kept += remains;
        }
        Filtered { kept, incomplete: at }
    }

    /// Whether a frame must have arrived whole before it is handed over.
    fn is_looked_into(&self, header: &Header) -> bool {
        match header.kind {
            HEADERS => header.length <= MAX_FRAME_BYTES as usize,
            PING => header.flags & ACK != 0 && header.length == SHUTDOWN_PING.len(),
            WINDOW_UPDATE => self.is_last && header.stream > self.last_stream && header.length == 4,
            _ => false,
        }
    }

    /// Notes what a frame says, and perhaps changes it. Returns how many of its bytes remain.
    fn look_into(&mut self, header: &Header, frame: &mut [u8]) -> usize {
        match header.kind {
            HEADERS => {
                if !self.is_last {
                    self.last_stream = self.last_stream.max(header.stream);
                }
                self.mend_authority(header, frame).unwrap_or(frame.len())
            }
            PING => {
                self.is_last |= frame.ends_with(&SHUTDOWN_PING);
                frame.len()
            }
            // It is of a stream that h2 ignores.
            _ => 0,
        }
    }

    /// Replaces an authority that h2 would refuse. Returns how long the frame is then; `None` where it is unchanged.
    fn mend_authority(&mut self, header: &Header, frame: &mut [u8]) -> Option<usize> {
        let block = header_block(header.flags, frame)?;
        let value = authority(frame, block)?;
        let text = value.decode(frame)?;
        if Authority::try_from(&*text).is_ok() {
            return None;
        }
        let length = text.len().min(value.encoded.len());
        if !self.is_unix || length == 0 {
            self.found.refused += 1;
            return None;
        }
        // HPACK counts the bytes of a text, as decoded, in the table that both sides keep. With a shorter text, h2 keeps
        // more than the client refers to, so both mean the same by each index; a longer one would evict what the client
        // still refers to. A text that is longer than what was encoded would not fit into the frame.
        let text = REPLACEMENT.get(..length.min(REPLACEMENT.len()))?;
        let rest = value.encoded.end..frame.len();
        let mut at = value.start;
        // A length below 127 takes one byte, and a text without Huffman's code has no flag before it.
        *frame.get_mut(at)? = u8::try_from(text.len()).ok()?;
        at += 1;
        frame.get_mut(at..at + text.len())?.copy_from_slice(text);
        at += text.len();
        let remains = at + rest.len();
        move_within(frame, rest, at);
        let [_, a, b, c] = u32::try_from(remains - HEADER_BYTES).ok()?.to_be_bytes();
        frame.get_mut(..3)?.copy_from_slice(&[a, b, c]);
        self.found.replaced += 1;
        Some(remains)
    }
}

/// Moves bytes towards the beginning.
fn move_within(bytes: &mut [u8], from: Range<usize>, to: usize) {
    if from.start != to {
        bytes.copy_within(from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A literal with incremental indexing whose name has this index.
    fn literal(index: u8, text: &[u8]) -> Vec<u8> {
        assert!(text.len() < 127);
        [&[0x40 | index, u8::try_from(text.len()).unwrap()], text].concat()
    }

    const WWW: &[u8] = b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";

    /// An `:authority` that is encoded by Huffman's code.
    fn huffman(encoded: &[u8]) -> Vec<u8> {
        [&[0x41, 0x80 | u8::try_from(encoded.len()).unwrap()], encoded].concat()
    }

    /// Filters bytes that arrive in parts of so many.
    fn filtered(filter: &mut FrameFilter, bytes: &[u8], part: usize) -> Vec<u8> {
        let (mut held, mut out) = (Vec::new(), Vec::new());
        for part in bytes.chunks(part) {
            held.extend_from_slice(part);
            let filtered = filter.filter(&mut held);
            out.extend_from_slice(&held[..filtered.kept]);
            held.drain(..filtered.incomplete);
        }
        assert!(held.is_empty());
        out
    }

    #[test]
    fn window_updates_of_streams_after_the_last_are_dropped_and_nothing_else() {
        let window_update = |stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1]);
        let headers = |stream| frame(HEADERS, 4, stream, &[0x83]);
        let before = [
            vec![0; PREFACE_BYTES],
            frame(4, 0, 0, &[]),
            headers(1),
            window_update(1),
            headers(5),
            window_update(7),
            frame(PING, 0, 0, &SHUTDOWN_PING),
            window_update(9),
            frame(PING, ACK, 0, &SHUTDOWN_PING),
        ]
        .concat();
        let after = |dropped: &[u8]| {
            [&headers(7), dropped, &frame(0, 1, 7, &[0; 70]), &window_update(5), &window_update(0)]
                .concat()
        };
        for part in [1, 2, 7, 13, 4096] {
            let mut filter = FrameFilter::new(true);
            assert_eq!(filtered(&mut filter, &before, part), before, "{part}");
            assert_eq!(
                filtered(&mut filter, &after(&window_update(7)), part),
                after(&[]),
                "{part}"
            );
        }
    }

    #[test]
    fn an_authority_that_h2_refuses_is_replaced_over_a_unix_socket() {
        let named = [&[0x40, 10], &b":authority"[..], &[6], b"%2Ftmp"].concat();
        for (authority, replaced) in [
            (literal(1, b"%2Frun%2Fconsentd.sock"), literal(1, b"localhost")),
            (literal(1, b"\0consentd"), literal(1, b"localhost")),
            (literal(1, b"/run/consentd.sock"), literal(1, b"localhost")),
            (literal(1, b"/a"), literal(1, b"lo")),
            (named.clone(), [&named[..13], b"localh"].concat()),
            (literal(1, b"localhost:50051"), literal(1, b"localhost:50051")),
            // By Huffman's code: "/run/consentd.sock", "//", "www.example.com", and bytes of 0xff.
            (
                huffman(b"\x62\xcb\x6a\x60\x87\xa9\x05\xa9\x32\x2e\x83\x93\xaf"),
                literal(1, b"localhost"),
            ),
            (huffman(b"\x61\x8f"), literal(1, b"lo")),
            (huffman(WWW), huffman(WWW)),
            (huffman(&[0xff, 0xff, 0xfb, 0xbf, 0xff, 0xfe, 0xef]), literal(1, b"l")),
        ] {
            let is_replaced = authority != replaced;
            for flags in [4, 4 | PRIORITY, 4 | PADDED, 4 | PADDED | PRIORITY] {
                let block = |authority: &[u8]| {
                    let mut block = Vec::new();
                    if flags & PADDED != 0 {
                        block.push(3);
                    }
                    if flags & PRIORITY != 0 {
                        block.extend([0; 5]);
                    }
                    block.extend([0x3f, 0xe1, 0x1f, 0x83, 0x86]);
                    block.extend(literal(4, b"/consent.v1.ConsentService/CanSend"));
                    block.extend(authority);
                    block.extend([0, 2, b't', b'e', 8]);
                    block.extend(b"trailers");
                    if flags & PADDED != 0 {
                        block.extend([0; 3]);
                    }
                    frame(HEADERS, flags, 1, &block)
                };
                let sent = [vec![0; PREFACE_BYTES], block(&authority), frame(0, 1, 1, b"data")];
                let kept = [vec![0; PREFACE_BYTES], block(&replaced), frame(0, 1, 1, b"data")];
                for part in [1, 11, 4096] {
                    let mut filter = FrameFilter::new(true);
                    assert_eq!(filtered(&mut filter, &sent.concat(), part), kept.concat());
                    let count = u32::from(is_replaced);
                    assert_eq!(filter.found, Authorities { refused: 0, replaced: count });
                    let mut filter = FrameFilter::new(false);
                    assert_eq!(filtered(&mut filter, &sent.concat(), part), sent.concat());
                    assert_eq!(filter.found, Authorities { refused: count, replaced: 0 });
                }
            }
        }
    }

    #[test]
    fn damaged_header_blocks_pass_as_they_are() {
        for block in [
            &[0x41][..],
            &[0x41, 0x7f],
            &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x41, 9, b'/'],
            &[0x40, 0xff],
            &[0xff, 0xff],
            &[0x3f],
            &[],
        ] {
            for flags in [0, PADDED, PRIORITY, PADDED | PRIORITY] {
                let sent = [vec![0; PREFACE_BYTES], frame(HEADERS, flags, 1, block)].concat();
                let mut filter = FrameFilter::new(true);
                assert_eq!(filtered(&mut filter, &sent, 4096), sent, "{block:?}");
            }
        }
    }
}
