//! A device's link that is cut at a byte, and counts what went over it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes one way, TLS included.
#[derive(Debug, Default)]
pub struct Way {
    moved: AtomicU64,
    /// Bytes until the link is cut, if it is to be.
    left: Mutex<Option<u64>>,
}

impl Way {
    /// Bytes so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::SeqCst)
    }

    /// Cuts the link after this many bytes more.
    pub fn cut_after(&self, bytes: u64) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Bytes that may still move in one go.
    fn room(&self) -> usize {
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Counts bytes; whether the link is cut now.
    fn count(&self, bytes: usize) -> bool {
        self.moved.fetch_add(bytes as u64, Ordering::SeqCst);
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.map(|left| left.saturating_sub(bytes as u64));
        left.take_if(|left| *left == 0).is_some()
    }
}

/// A link to a server; connections over it come and go.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// To the server.
    pub up: Arc<Way>,
    /// From the server.
    pub down: Arc<Way>,
}

impl Link {
    /// Opens a connection.
    pub fn dial(&self, server: SocketAddr) -> impl Future<Output = io::Result<LinkStream>> + use<> {
        let link = self.clone();
        async move {
            let socket = TcpStream::connect(server).await?;
            Ok(LinkStream { socket, link, cut: false })
        }
    }
}

/// A connection over a link.
#[derive(Debug)]
pub struct LinkStream {
    socket: TcpStream,
    link: Link,
    cut: bool,
}

impl LinkStream {
    fn check(&self) -> io::Result<()> {
        if self.cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        let room = self.link.down.room().min(buf.remaining());
        let mut bytes = vec![0; room];
        let mut part = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut part))?;
        let came = part.filled().len();
        buf.put_slice(part.filled());
        self.cut = self.link.down.count(came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let room = self.link.up.room().min(buf.len());
        let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &buf[..room]))?;
        self.cut = self.link.up.count(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
