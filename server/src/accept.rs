//! The accept loop: sockets become connections with an identity, and each serves HTTP/2.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use floret_core::ClientId;
use floret_proto::limits::MESSAGE_BYTES_MAX;
use floret_proto::v1::federation_server::FederationServer;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as _;
use tracing::{debug, warn};

use crate::config::{Limits, seconds};
use crate::metrics::Metrics;
use crate::service::Service;
use crate::tls;

/// HTTP/2 window and send buffer of a call, in bytes: what a peer can make the server hold before
/// its transfer has begun.
const STREAM_WINDOW: u32 = 32 * 1024;
/// HTTP/2 window of a connection, in bytes: a call that waits for its transfer leaves room for others.
const CONNECTION_WINDOW: u32 = 64 * 1024;
/// Longest header list of a request, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;
/// How often an idle peer is asked whether it is there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Pause after an accept that failed: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection needs.
pub(crate) struct Acceptor {
    pub(crate) tls: TlsAcceptor,
    pub(crate) service: FederationServer<Service>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) shutdown: CancellationToken,
    /// Tracks the connections' tasks.
    pub(crate) tasks: TaskTracker,
}

impl Acceptor {
    pub(crate) fn bounded(service: Service) -> FederationServer<Service> {
        FederationServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Accepts connections until shutdown.
    pub(crate) async fn run(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(self.limits.max_connections));
        let (tasks, shutdown) = (self.tasks.clone(), self.shutdown.clone());
        let acceptor = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        tasks.spawn(Arc::clone(&acceptor).connection(stream, peer, slot));
                    }
                    Err(_) => {
                        acceptor.metrics.connections_refused.inc();
                        warn!(%peer, "connection refused: limits.max_connections are open");
                    }
                },
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        _slot: OwnedSemaphorePermit,
    ) {
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            handshake = self.handshake(stream) => handshake,
        };
        match handshake {
            Ok((client, stream)) => {
                self.metrics.connections.inc();
                debug!(%peer, %client, "connected");
                self.serve(client.clone(), stream).await;
                debug!(%peer, %client, "disconnected");
                self.metrics.connections.dec();
            }
            Err(reason) => {
                self.metrics.handshakes_failed.inc();
                warn!(%peer, reason, "connection refused: no valid device certificate");
            }
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> Result<(ClientId, TlsStream<TcpStream>), String> {
        // Small answers must not wait for more to send.
        let _ = stream.set_nodelay(true);
        let limit = seconds(self.limits.handshake_timeout_s);
        let stream = match timeout(limit, self.tls.accept(stream)).await {
            Ok(stream) => stream.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("the TLS handshake was not done within {limit:?}")),
        };
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return Err("the peer does not speak HTTP/2".to_owned());
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let client = tls::client_id(certificate).map_err(|error| error.to_string())?;
        Ok((client, stream))
    }

    /// Serves a connection until its peer leaves, it is too old, or the server stops; in the last
    /// two cases calls in flight may finish.
    async fn serve(&self, client: ClientId, stream: TlsStream<TcpStream>) {
        let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(client.clone());
            self.service.clone().call(request)
        });
        let connection = self.http2().serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let retired = async {
            tokio::select! {
                () = sleep(seconds(self.limits.connection_max_age_s)) => {}
                () = self.shutdown.cancelled() => {}
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return log_end(&client, ended),
            () = retired => connection.as_mut().graceful_shutdown(),
        }
        let overdue = async {
            let stopping = async {
                self.shutdown.cancelled().await;
                sleep(seconds(self.limits.shutdown_grace_s)).await;
            };
            tokio::select! {
                () = sleep(seconds(self.limits.request_timeout_s)) => {}
                () = stopping => {}
            }
        };
        tokio::select! {
            ended = connection => log_end(&client, ended),
            () = overdue => debug!(%client, "connection closed with a call in flight"),
        }
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_concurrent_streams(self.limits.max_streams_per_connection)
            .max_header_list_size(HEADERS_MAX)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        builder
    }
}

fn log_end(client: &ClientId, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        debug!(%client, %error, "connection broke");
    }
}
