//! An accepted connection of a Unix socket that is woken for what it waits for, and for nothing else.
//!
//! Tokio's own [`UnixStream`](tokio::net::UnixStream) asks epoll for both directions from the start. On a Unix
//! socket the kernel then reports "writable" each time that the peer has read an answer, so that every call wakes
//! the server twice. In a container with a small CPU quota these wake-ups are most of what a check costs. Here the
//! socket is watched for reading; for writing only while a write has to wait.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A connection of a Unix socket.
pub(crate) struct UnixConnection {
    readable: AsyncFd<UnixStream>,
    /// A second descriptor of the same socket, while a write waits for the peer to read.
    writable: Option<AsyncFd<UnixStream>>,
}

impl UnixConnection {
    /// Takes over a connection that was accepted.
    ///
    /// # Errors
    ///
    /// The system's error, if the connection cannot be watched.
    pub(crate) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        // Leaves it non-blocking, and takes it out of epoll.
        let readable = watch(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { readable, writable: None })
    }

    /// Writes once, or waits until the peer has read.
    fn poll_write_once(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writable) = &self.writable {
                let mut guard = ready!(writable.poll_write_ready(context))?;
                if let Ok(written) = guard.try_io(|descriptor| write(descriptor.get_ref())) {
                    self.writable = None;
                    return Poll::Ready(written);
                }
            } else {
                match write(self.readable.get_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let stream = self.readable.get_ref().try_clone()?;
                        self.writable = Some(watch(stream, Interest::WRITABLE)?);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    written => return Poll::Ready(written),
                }
            }
        }
    }
}

/// Watches a socket for one direction.
#[allow(
    deprecated,
    reason = "what replaces it is unsafe, which is forbidden here: types in general may close or change their \
              descriptor. This one owns it, and hands out references alone"
)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for UnixConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.readable.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let wanted = space.len();
            match guard.try_io(|descriptor| descriptor.get_ref().read(space)) {
                // Another event may be waiting: epoll reports it anew.
                Err(_would_block) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => {
                    let read = read?;
                    // There was no more than this, so that the next read would find nothing. The end of
                    // the stream is remembered all the same.
                    if read > 0 && read < wanted {
                        guard.clear_ready();
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for UnixConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_once(context, |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_once(context, |mut stream| stream.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.readable.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Duration, timeout};

    use super::*;

    /// A connection, and the peer's end of it.
    fn pair() -> (UnixConnection, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (UnixConnection::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn read_of_parts_and_of_the_end_is_whole() {
        let (mut ours, mut theirs) = pair();
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            ours.read_to_end(&mut all).await.map(|_| all)
        });
        for part in 0..100_u8 {
            theirs.write_all(&[part; 1_000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(theirs);
        let all = timeout(Duration::from_secs(10), reader).await.unwrap().unwrap().unwrap();
        let expected: Vec<u8> = (0..100_u8).flat_map(|part| [part; 1_000]).collect();
        assert_eq!(all, expected);
    }

    #[tokio::test]
    async fn end_that_came_with_the_last_bytes_is_found() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(b"last").await.unwrap();
        drop(theirs);
        let mut buffer = [0; 64];
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 4);
        let end = timeout(Duration::from_secs(10), ours.read(&mut buffer)).await;
        assert_eq!(end.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn write_that_must_wait_goes_on_once_the_peer_reads() {
        let (mut ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            ours.write_all(&sent).await?;
            ours.shutdown().await?;
            io::Result::Ok(ours)
        });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished(), "a socket's buffer held everything: nothing was tested");
        let mut all = Vec::new();
        timeout(Duration::from_secs(10), theirs.read_to_end(&mut all)).await.unwrap().unwrap();
        assert!(all == expected, "other bytes arrived");
        let ours = writer.await.unwrap().unwrap();
        assert!(ours.writable.is_none(), "it still wakes for every answer that is read");
    }

    #[tokio::test]
    async fn peer_that_reads_an_answer_wakes_nothing() {
        let (mut ours, mut theirs) = pair();
        ours.write_all(b"answer").await.unwrap();
        let mut buffer = [0; 64];
        // Watched from here on: reading the answer makes the socket writable once more.
        let waits = timeout(Duration::from_millis(1), ours.read(&mut buffer));
        assert!(waits.await.is_err(), "there was nothing to read");
        let descriptor = ours.readable.get_ref().try_clone().unwrap();
        let both = watch(descriptor, Interest::READABLE | Interest::WRITABLE).unwrap();
        both.writable().await.unwrap().clear_ready();
        theirs.read_exact(&mut buffer[..6]).await.unwrap();
        // What watches for both is woken: this is what the connection avoids.
        let woken = timeout(Duration::from_secs(10), both.writable()).await;
        assert!(woken.unwrap().is_ok());
        assert!(timeout(Duration::from_millis(1), ours.read(&mut buffer)).await.is_err());
        assert!(ours.writable.is_none(), "it is registered for writing");
    }

    #[tokio::test]
    async fn write_after_the_peer_has_gone_fails() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        let error = ours.write_all(b"answer").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
