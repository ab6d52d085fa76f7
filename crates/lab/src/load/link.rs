//! One device's way to the server: a socket that can be slow, cut at a byte, or change one.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::pace::Pace;

/// Receive buffer of a slow device's socket, in bytes: what waits there has not been delivered.
const SLOW_BUFFER: u32 = 16 * 1024;

/// Counts over all links.
#[derive(Debug, Default)]
pub(super) struct Meter {
    open: AtomicUsize,
    peak: AtomicUsize,
    opened: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl Meter {
    /// Most connections open at once.
    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Connections ever opened.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Bytes on the wire so far, TLS included: up, and down.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }
}

/// Damage that waits for its byte, counted in the bytes sent from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// The connection ends before this byte.
    Cut(u64),
    /// The TLS record that this byte is in arrives with another last byte.
    Flip(u64),
}

/// A device's link; connections come and go, and clones are the same link.
#[derive(Debug, Clone)]
pub(super) struct Link {
    server: SocketAddr,
    /// Bytes a second in each direction, if it is slow.
    rate: Option<u32>,
    meter: Arc<Meter>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    damage: Option<Damage>,
    /// Ends the newest connection.
    hang_up: CancellationToken,
    opened: u64,
}

impl Link {
    pub(super) fn new(server: SocketAddr, rate: Option<u32>, meter: Arc<Meter>) -> Self {
        Self { server, rate, meter, state: Arc::default() }
    }

    /// Opens a connection.
    pub(super) fn dial(&self) -> impl Future<Output = io::Result<LinkStream<TcpStream>>> + use<> {
        let link = self.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            if link.rate.is_some() {
                socket.set_recv_buffer_size(SLOW_BUFFER)?;
            }
            let socket = socket.connect(link.server).await?;
            socket.set_nodelay(true)?;
            Ok(link.over(socket))
        }
    }

    /// A connection of this link over `socket`.
    pub(super) fn over<S>(&self, socket: S) -> LinkStream<S> {
        let hang_up = CancellationToken::new();
        let mut state = self.lock();
        state.hang_up = hang_up.clone();
        state.opened += 1;
        drop(state);
        self.meter.opened.fetch_add(1, Ordering::Relaxed);
        let open = 1 + self.meter.open.fetch_add(1, Ordering::Relaxed);
        self.meter.peak.fetch_max(open, Ordering::Relaxed);
        let [up, down] = [self.rate.map(Pace::new), self.rate.map(Pace::new)];
        let ended = Box::pin(hang_up.cancelled_owned());
        LinkStream { socket, link: self.clone(), ended, up, down }
    }

    /// Ends the newest connection, as a network that goes away does.
    pub(super) fn hang_up(&self) {
        self.lock().hang_up.cancel();
    }

    /// The next bytes that are sent are damaged.
    pub(super) fn arm(&self, damage: Damage) {
        self.lock().damage = Some(damage);
    }

    /// Whether damage waits for its byte.
    pub(super) fn is_armed(&self) -> bool {
        self.lock().damage.is_some()
    }

    /// Connections that this link ever had.
    pub(super) fn opened(&self) -> u64 {
        self.lock().opened
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `sent` bytes went; the connection ends if that was the last before a cut.
    fn sent(&self, sent: usize, flipped: bool) {
        self.meter.up.fetch_add(sent as u64, Ordering::Relaxed);
        let mut state = self.lock();
        state.damage = match state.damage {
            Some(Damage::Cut(left)) if left <= sent as u64 => {
                state.hang_up.cancel();
                None
            }
            Some(Damage::Flip(_)) if flipped => None,
            Some(Damage::Cut(left)) => Some(Damage::Cut(left - sent as u64)),
            Some(Damage::Flip(left)) => Some(Damage::Flip(left.saturating_sub(sent as u64))),
            None => None,
        };
    }
}

/// One connection of a link.
#[derive(Debug)]
pub(super) struct LinkStream<S> {
    socket: S,
    link: Link,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    up: Option<Pace>,
    down: Option<Pace>,
}

impl<S> Drop for LinkStream<S> {
    fn drop(&mut self) {
        self.link.meter.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> LinkStream<S> {
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LinkStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_open(cx)?;
        let before = buf.filled().len();
        match &mut this.down {
            None => ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?,
            Some(pace) => {
                let piece = ready!(pace.poll_piece(cx)).min(buf.remaining());
                let mut bytes = vec![0; piece];
                let mut part = ReadBuf::new(&mut bytes);
                ready!(Pin::new(&mut this.socket).poll_read(cx, &mut part))?;
                buf.put_slice(part.filled());
                pace.spend(part.filled().len());
            }
        }
        let came = buf.filled().len() - before;
        this.link.meter.down.fetch_add(came as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LinkStream<S> {
    /// TLS hands over a record, or what is left of one.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_open(cx)?;
        let mut piece = buf.len();
        if let Some(pace) = &mut this.up {
            piece = piece.min(ready!(pace.poll_piece(cx)));
        }
        let damage = this.link.lock().damage;
        let mut changed = Vec::new();
        match damage {
            Some(Damage::Cut(left)) => piece = piece.min(usize::try_from(left).unwrap_or(piece)),
            Some(Damage::Flip(left)) if piece == buf.len() && left < piece as u64 => {
                changed.extend_from_slice(buf);
                changed.iter_mut().last().into_iter().for_each(|byte| *byte ^= 1);
            }
            _ => {}
        }
        let bytes = if changed.is_empty() { &buf[..piece] } else { &changed };
        let sent = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        this.link.sent(sent, sent == changed.len());
        if let Some(pace) = &mut this.up {
            pace.spend(sent);
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_open(cx)?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
