//! A client's socket that records when bytes move.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connection::Connection;
use super::listener::ClientStream;

/// Maximum time for draining a body that is not read. Closing the socket at once would reset
/// the connection, and the client would lose the answer before reading it.
const LINGER: Duration = Duration::from_secs(30);
/// Maximum time without a byte while draining.
const LINGER_IDLE: Duration = Duration::from_secs(5);

pub(super) struct WatchedStream {
    stream: ClientStream,
    connection: Arc<Connection>,
    lingering: Option<Lingering>,
}

/// The answer was sent, but the client is still sending.
struct Lingering {
    until: Instant,
    /// Ends `LINGER_IDLE` after the last byte.
    idle: Pin<Box<Sleep>>,
}

impl WatchedStream {
    pub fn new(stream: ClientStream, connection: Arc<Connection>) -> Self {
        WatchedStream {
            stream,
            connection,
            lingering: None,
        }
    }

    /// The first byte that the client has sent, which stays to be read.
    pub async fn first_byte(&self) -> io::Result<u8> {
        self.stream.first_byte().await
    }

    fn written(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Pending => self.connection.write_waits(),
            Poll::Ready(Ok(count)) if *count > 0 => self.connection.wrote(),
            Poll::Ready(_) => {}
        }
    }

    /// Reads and discards what the client sends, until it closes or the time is up.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        let lingering = self.lingering.get_or_insert_with(|| Lingering {
            until: now + LINGER,
            idle: Box::pin(tokio::time::sleep(LINGER_IDLE)),
        });
        let mut thrown_away = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let now = Instant::now();
                    if now >= lingering.until {
                        return Poll::Ready(Ok(()));
                    }
                    lingering.idle.as_mut().reset(now + LINGER_IDLE);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(lingering.idle.as_mut().poll(context));
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.read();
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        if self.connection.has_unread_body() {
            self.poll_linger(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}
