//! The adapter, or the steps that lead to it, as a stream of chunks, cut from the one copy that all
//! downloads share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use floret_core::ClientId;
use floret_proto::convert::FetchRequest;
use floret_proto::limits::CHUNK_BYTES;
use floret_proto::v1::{AdapterChunk, FetchAdapterRequest};
use futures_util::{Stream, stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tonic::Status;

use super::Service;
use super::refusal::Refusal;
use super::transfers::{Room, Transfers};
use crate::metrics::Metrics;
use crate::patience::Patience;

/// Memory that a download takes: its chunks on the way and HTTP/2's buffer. The adapter is shared.
const DOWNLOAD_BYTES: usize = 64 * 1024;

/// What went down to each device since its last update that counts, in bytes. It does not outlive a
/// restart.
#[derive(Debug, Default)]
pub(crate) struct Downloads(Mutex<HashMap<ClientId, u64>>);

impl Downloads {
    fn add(&self, client: &ClientId, bytes: usize) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sent.entry(client.clone()).or_default() += bytes as u64;
    }

    /// What went down to `client`.
    pub(super) fn to(&self, client: &ClientId) -> u64 {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.get(client).copied().unwrap_or_default()
    }

    /// The device's update counts.
    pub(super) fn settled(&self, client: &ClientId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(client);
    }
}

impl Service {
    /// Streams the current adapter from the byte asked for, if it is the one asked for.
    pub(super) async fn send_adapter(
        &self,
        client: ClientId,
        request: FetchAdapterRequest,
    ) -> Result<impl Stream<Item = Result<AdapterChunk, Status>> + Send + use<>, Refusal> {
        let FetchRequest { version: asked, digest, offset, held } = request.try_into()?;
        let room = self.transfers.room(DOWNLOAD_BYTES).await?;
        let adapter = Arc::clone(&self.published.borrow().adapter);
        if adapter.version != asked {
            return Err(Refusal::UnknownVersion { asked, current: adapter.version });
        }
        if let Some(asked) = digest.filter(|asked| *asked != adapter.digest) {
            return Err(Refusal::OtherAdapter { asked, current: adapter.digest });
        }
        let steps = held.and_then(|held| adapter.steps.since(held));
        let (step_bytes, all) = steps.unwrap_or_else(|| (Vec::new(), adapter.bytes.clone()));
        let total = all.len();
        if offset > total {
            return Err(Refusal::BeyondEnd { offset, total });
        }
        let rest = all.slice(offset..);
        let (sender, chunks) = mpsc::channel(1);
        let feed = Feed { sender, transfers: Arc::clone(&self.transfers), _room: room };
        // A task of its own: the response is not polled while the peer reads nothing, and its
        // room must come back all the same.
        tokio::spawn(feed.run(step_bytes, rest, self.patience));
        let open = Open {
            chunks,
            left: total - offset,
            client,
            downloads: Arc::clone(&self.downloads),
            metrics: Arc::clone(&self.metrics),
        };
        Ok(stream::unfold(Some(open), take))
    }
}

/// Where a download's chunks go.
struct Feed {
    sender: mpsc::Sender<Result<AdapterChunk, Status>>,
    transfers: Arc<Transfers>,
    _room: Room,
}

impl Feed {
    /// Sends `rest`, the first chunk with the lengths of the steps that it is made of. A slow download makes way while others wait: it goes on later.
    async fn run(self, mut step_bytes: Vec<u64>, mut rest: Bytes, patience: Patience) {
        let mut pace = patience.begin();
        while !rest.is_empty() {
            let slow = pace.lasted() > patience.stall && self.transfers.are_awaited();
            let next = match slow {
                true => Err(self.transfers.busy().into()),
                false => Ok(AdapterChunk {
                    data: rest.split_to(CHUNK_BYTES.min(rest.len())),
                    step_bytes: std::mem::take(&mut step_bytes),
                }),
            };
            let size = next.as_ref().map_or(0, |chunk: &AdapterChunk| chunk.data.len());
            let sent = timeout_at(pace.deadline(), self.sender.send(next)).await;
            if slow || !matches!(sent, Ok(Ok(()))) {
                return;
            }
            pace.moved(size);
        }
        // Until the last chunk is taken, too.
        let _ = timeout_at(pace.deadline(), self.sender.closed()).await;
    }
}

/// A download that goes on.
struct Open {
    chunks: mpsc::Receiver<Result<AdapterChunk, Status>>,
    /// Bytes that are still to come.
    left: usize,
    client: ClientId,
    downloads: Arc<Downloads>,
    metrics: Arc<Metrics>,
}

/// The next chunk. A feed that ends early ran out of time: the device must not take what it has for
/// the whole.
async fn take(open: Option<Open>) -> Option<(Result<AdapterChunk, Status>, Option<Open>)> {
    let mut open = open.filter(|open| open.left > 0)?;
    match open.chunks.recv().await {
        Some(Ok(chunk)) => {
            open.left -= chunk.data.len();
            open.downloads.add(&open.client, chunk.data.len());
            open.metrics.bytes_down.inc_by(chunk.encoded_len() as u64);
            Some((Ok(chunk), Some(open)))
        }
        Some(Err(status)) => Some((Err(status), None)),
        None => Some((Err(Refusal::TooSlow.into()), None)),
    }
}
