//! Another way to the server than a plain socket, for whoever slows, cuts or counts what goes over it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

/// Asks a function for a stream each time that a connection must be opened.
pub(crate) struct Dialer<D>(pub(crate) D);

impl<D, F, S> Service<Uri> for Dialer<D>
where
    D: FnMut() -> F,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite,
{
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<S>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialing = (self.0)();
        Box::pin(async move { dialing.await.map(TokioIo::new) })
    }
}
