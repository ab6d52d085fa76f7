//! The admin address: `/metrics`, `/status` and `/healthz`, over plain HTTP.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use floret_aggregator::coordinator::Status;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::driver::Published;
use crate::metrics::Metrics;

/// What the pages read.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
}

/// The answer of `/status`: the run's status, and the server's own figures.
#[derive(Debug, Serialize)]
struct StatusPage {
    #[serde(flatten)]
    run: Status,
    server: ServerFigures,
}

#[derive(Debug, Serialize)]
struct ServerFigures {
    uptime_s: f64,
    connections: i64,
    connections_refused: u64,
    handshakes_failed: u64,
    bytes_up: u64,
    bytes_down: u64,
}

impl Admin {
    /// Serves until shutdown.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .route("/healthz", get(healthz))
            .with_state(Arc::new(self));
        let server = axum::serve(listener, router);
        if let Err(error) = server.with_graceful_shutdown(shutdown.cancelled_owned()).await {
            warn!(%error, "the admin address is not served any more");
        }
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let metrics = &admin.metrics;
    let server = ServerFigures {
        uptime_s: admin.started.elapsed().as_secs_f64(),
        connections: metrics.connections.get(),
        connections_refused: metrics.connections_refused.get(),
        handshakes_failed: metrics.handshakes_failed.get(),
        bytes_up: metrics.bytes_up.get(),
        bytes_down: metrics.bytes_down.get(),
    };
    Json(StatusPage { run: admin.published.borrow().status.clone(), server })
}

/// Whether the run can go on: a disk that failed makes it unhealthy.
async fn healthz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let stopped = admin.published.has_changed().is_err();
    match &admin.published.borrow().failure {
        Some(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
        None if stopped => (StatusCode::INTERNAL_SERVER_ERROR, "the driver stopped".to_owned()),
        None => (StatusCode::OK, "ok".to_owned()),
    }
}
