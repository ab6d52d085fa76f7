//! The adapter as a stream of chunks, cut from the one copy that all downloads share.

use std::sync::Arc;
use std::time::Duration;

use floret_core::Version;
use floret_proto::v1::AdapterChunk;
use futures_util::{Stream, stream};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tonic::Status;

use super::Service;
use super::refusal::Refusal;
use crate::driver::PublishedAdapter;
use crate::metrics::Metrics;

/// Bytes in one chunk of a download, well below the contract's limit: HTTP/2 holds the last chunk of
/// each download until its peer has read it, when the transfer counts as done already.
const CHUNK_BYTES: usize = 32 * 1024;

impl Service {
    /// Streams the current adapter, if it is the version asked for.
    pub(super) async fn send_adapter(
        &self,
        version: u64,
    ) -> Result<impl Stream<Item = Result<AdapterChunk, Status>> + Send + use<>, Refusal> {
        let permit = self.permit().await?;
        let adapter = Arc::clone(&self.published.borrow().adapter);
        let asked = Version(version);
        if adapter.version != asked {
            return Err(Refusal::UnknownVersion { asked, current: adapter.version });
        }
        let total = adapter.bytes.len();
        let (sender, chunks) = mpsc::channel(1);
        // A task of its own: the response is not polled while the peer reads nothing, and its
        // permit must come back all the same.
        let deadline = self.request_timeout;
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(async move {
            let _ = timeout(deadline, feed(adapter, sender, &metrics, permit)).await;
        });
        Ok(stream::unfold(Some((chunks, total)), move |open| take(open, deadline)))
    }
}

async fn feed(
    adapter: Arc<PublishedAdapter>,
    sender: mpsc::Sender<AdapterChunk>,
    metrics: &Metrics,
    _permit: OwnedSemaphorePermit,
) {
    let mut rest = adapter.bytes.clone();
    while !rest.is_empty() {
        let data = rest.split_to(CHUNK_BYTES.min(rest.len()));
        let chunk = AdapterChunk { data };
        let size = chunk.encoded_len() as u64;
        if sender.send(chunk).await.is_err() {
            return;
        }
        metrics.bytes_down.inc_by(size);
    }
    // Until the last chunk is taken, too.
    sender.closed().await;
}

/// The chunks that are still to come, and their bytes; `None` after an error.
type Open = Option<(mpsc::Receiver<AdapterChunk>, usize)>;

/// The next chunk. A feed that ends early ran out of time: the device must not take what it has for
/// the whole.
async fn take(open: Open, deadline: Duration) -> Option<(Result<AdapterChunk, Status>, Open)> {
    let (mut chunks, left) = open.filter(|(_, left)| *left > 0)?;
    match chunks.recv().await {
        Some(chunk) => {
            let left = left - chunk.data.len();
            Some((Ok(chunk), Some((chunks, left))))
        }
        None => Some((Err(Refusal::TooSlow(deadline).into()), None)),
    }
}
