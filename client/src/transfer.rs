//! Transfers: adapters down and updates up. One that breaks goes on at the byte where it broke, and one
//! that moves may take its time.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floret_core::{Adapter, ClientUpdate, Digest, Layout, Payload, SignedReceipt, Version};
use floret_proto::convert::{self, FetchRequest, ReportHeader};
use floret_proto::gather::Pieces;
use floret_proto::limits::CHUNK_BYTES;
use floret_proto::v1;
use floret_proto::v1::report_chunk::Part;
use tokio::time::timeout;

use crate::calls::CallKind;
use crate::connection::{CallError, Connection, explain, too_slow};

/// Longest silence of a transfer. A server lets it wait for less (its `request_timeout_s`), and says
/// then when to come back.
const STALL: Duration = Duration::from_secs(180);

/// An adapter on its way: what came of it is not asked for again.
#[derive(Debug)]
pub struct Download {
    version: Version,
    digest: Option<Digest>,
    layout: Arc<Layout>,
    /// An adapter that the device holds: steps may lead from it to the one wanted.
    held: Option<Adapter>,
    /// What has come.
    begun: Option<Begun>,
}

/// What the server sends, as its first chunk tells.
#[derive(Debug)]
struct Begun {
    /// Lengths of the steps; none if it sends the adapter itself.
    steps: Vec<usize>,
    pieces: Pieces,
}

impl Begun {
    fn new(steps: Vec<usize>, layout: &Layout) -> Self {
        let want = if steps.is_empty() { layout.bytes() } else { steps.iter().sum() };
        Self { steps, pieces: Pieces::new(want) }
    }
}

impl Download {
    /// Nothing yet, of an adapter of this layout. Without its digest, a download that breaks begins
    /// anew: the bytes on the server may be others by then.
    #[must_use]
    pub fn new(version: Version, digest: Option<Digest>, layout: Arc<Layout>) -> Self {
        Self { version, digest, layout, held: None, begun: None }
    }

    /// The same from a device that holds an adapter of this layout already.
    #[must_use]
    pub fn holding(self, held: Option<Adapter>) -> Self {
        let fits = |held: &Adapter| held.layout().digest() == self.layout.digest();
        // Only a digest tells whether steps led where they should.
        let held = held.filter(|held| self.digest.is_some() && fits(held));
        Self { held, ..self }
    }

    /// Whether it is of this adapter.
    pub(crate) fn is_of(&self, digest: Option<Digest>) -> bool {
        digest.is_some() && self.digest == digest
    }

    fn request(&mut self) -> FetchRequest {
        if self.digest.is_none() {
            self.begun = None;
        }
        FetchRequest {
            version: self.version,
            digest: self.digest,
            offset: self.begun.as_ref().map_or(0, |begun| begun.pieces.received()),
            held: self.held.as_ref().map(Adapter::digest),
        }
    }

    /// Takes the first chunk of an answer: it says what the server sends.
    fn begin(&mut self, first: &v1::AdapterChunk) -> Result<(), CallError> {
        let steps = convert::step_lengths(first, self.layout.bytes());
        let steps = steps.map_err(|error| broken(&error))?;
        match &self.begun {
            // A server that has started again sends the whole: what came before is no part of that.
            Some(begun) if begun.steps != steps => {
                self.begun = None;
                Err(anew("the server sends the adapter in another form now"))
            }
            Some(_) => Ok(()),
            None if !steps.is_empty() && self.held.is_none() => {
                Err(CallError::Contract("steps came, and this device holds no adapter".to_owned()))
            }
            None => {
                self.begun = Some(Begun::new(steps, &self.layout));
                Ok(())
            }
        }
    }

    fn push(&mut self, chunk: &v1::AdapterChunk) -> Result<(), CallError> {
        let layout = &self.layout;
        let begun = self.begun.get_or_insert_with(|| Begun::new(Vec::new(), layout));
        begun.pieces.push(&chunk.data).map_err(|error| broken(&error))
    }

    fn finish(&mut self) -> Result<Adapter, CallError> {
        let begun = self.begun.take();
        let Begun { steps, pieces } = begun.unwrap_or_else(|| Begun::new(Vec::new(), &self.layout));
        let bytes = pieces.finish().map_err(|error| broken(&error))?;
        let Some(held) = self.held.take().filter(|_| !steps.is_empty()) else {
            let layout = Arc::clone(&self.layout);
            return Adapter::from_bytes(layout, &bytes).map_err(|error| broken(&error));
        };
        // Without the adapter that they start from, the next try fetches the whole.
        let adapter = walk(held, &steps, &bytes).map_err(|error| anew(&error.to_string()))?;
        match self.digest {
            Some(want) if want != adapter.digest() => Err(anew("it is not the one of the plan")),
            _ => Ok(adapter),
        }
    }
}

/// The adapter that steps of these lengths lead to.
fn walk(held: Adapter, steps: &[usize], mut bytes: &[u8]) -> Result<Adapter, Box<dyn Error>> {
    let layout = Arc::clone(held.layout());
    steps.iter().try_fold(held, |adapter, length| {
        let (step, rest) = bytes.split_at_checked(*length).ok_or("a step is cut short")?;
        bytes = rest;
        let step = Payload::from_bytes(step.to_vec()).decode(&layout)?;
        Ok(adapter.plus(&step)?)
    })
}

/// A download that must begin anew.
fn anew(problem: &str) -> CallError {
    let message = format!("the adapter came, and {problem}: it is fetched again");
    CallError::Unavailable { message, after: None }
}

fn broken(error: &dyn Error) -> CallError {
    CallError::Contract(format!("the adapter: {error}"))
}

impl Connection {
    /// Fetches an adapter; no more bytes are taken than its layout has.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn fetch_adapter(
        &mut self,
        version: Version,
        layout: Arc<Layout>,
    ) -> Result<Adapter, CallError> {
        self.fetch(&mut Download::new(version, None, layout)).await
    }

    /// Fetches what `download` does not have yet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn fetch(&mut self, download: &mut Download) -> Result<Adapter, CallError> {
        let call = self.begin(CallKind::FetchAdapter);
        call.end(self.receive_adapter(download).await)
    }

    async fn receive_adapter(&mut self, download: &mut Download) -> Result<Adapter, CallError> {
        let request = v1::FetchAdapterRequest::from(download.request());
        self.traffic().sent(&request);
        let chunks = timeout(STALL, self.client.fetch_adapter(request)).await;
        let mut chunks = chunks.map_err(|_| too_slow(STALL))?.map_err(explain)?.into_inner();
        let mut is_first = true;
        loop {
            let next = timeout(STALL, chunks.message()).await;
            let Some(chunk) = next.map_err(|_| too_slow(STALL))?.map_err(explain)? else { break };
            self.traffic().received(&chunk);
            if std::mem::take(&mut is_first) {
                download.begin(&chunk)?;
            }
            download.push(&chunk)?;
        }
        download.finish()
    }

    /// Sends an update.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn report(&mut self, update: &ClientUpdate) -> Result<SignedReceipt, CallError> {
        self.report_from(update, 0).await
    }

    /// Sends what the server does not have yet of an update: the bytes from `offset` on.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn report_from(
        &mut self,
        update: &ClientUpdate,
        offset: usize,
    ) -> Result<SignedReceipt, CallError> {
        let call = self.begin(CallKind::Report);
        call.end(self.send_update(update, offset).await)
    }

    async fn send_update(
        &mut self,
        update: &ClientUpdate,
        offset: usize,
    ) -> Result<SignedReceipt, CallError> {
        let moved = Arc::new(AtomicU64::new(0));
        let (traffic, counter) = (Arc::clone(self.traffic()), Arc::clone(&moved));
        let chunks = report_chunks(update.clone(), offset).inspect(move |chunk| {
            traffic.sent(chunk);
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut call = std::pin::pin!(self.client.report(tokio_stream::iter(chunks)));
        let response = loop {
            let before = moved.load(Ordering::Relaxed);
            match timeout(STALL, &mut call).await {
                Ok(response) => break response.map_err(explain)?.into_inner(),
                Err(_) if moved.load(Ordering::Relaxed) == before => return Err(too_slow(STALL)),
                Err(_) => {}
            }
        };
        self.traffic.received(&response);
        signed(&response)
    }
}

/// The receipt in an answer.
pub(crate) fn signed(response: &v1::ReportResponse) -> Result<SignedReceipt, CallError> {
    let receipt = convert::receipt(response);
    let (receipt, signature) = receipt.map_err(|error| CallError::Contract(error.to_string()))?;
    Ok(SignedReceipt { receipt, signature })
}

/// A report from byte `offset` of the payload on, a chunk at a time.
fn report_chunks(
    update: ClientUpdate,
    mut offset: usize,
) -> impl Iterator<Item = v1::ReportChunk> + Send + 'static {
    let header = ReportHeader {
        run: update.run,
        round: update.round,
        num_examples: update.num_examples,
        num_steps: update.num_steps,
        payload_bytes: update.payload.bytes().len(),
        payload_digest: update.payload.digest(),
        offset,
    };
    let bytes = update.payload.shared();
    let data = std::iter::from_fn(move || {
        let end = bytes.len().min(offset + CHUNK_BYTES);
        let piece = (offset < end).then(|| bytes.slice(offset..end))?;
        offset = end;
        Some(Part::Data(piece))
    });
    let parts = std::iter::once(Part::Header(header.into())).chain(data);
    parts.map(|part| v1::ReportChunk { part: Some(part) })
}

#[cfg(test)]
mod tests {
    use floret_core::{Payload, Round};
    use floret_proto::limits::MESSAGE_BYTES_MAX;
    use prost::Message;

    use super::*;

    #[test]
    fn reports_are_cut_into_chunks_that_both_sides_accept() {
        let bytes: Vec<u8> = (0..=2 * CHUNK_BYTES).map(|i| (i % 251) as u8).collect();
        let payload = Payload::from_bytes(bytes.clone());
        let update = ClientUpdate {
            run: "run".parse().unwrap(),
            round: Round(1),
            num_examples: 3,
            num_steps: 1,
            payload,
        };
        for (offset, count) in [(0, 4), (CHUNK_BYTES, 3), (2 * CHUNK_BYTES, 2), (bytes.len(), 1)] {
            let chunks: Vec<_> = report_chunks(update.clone(), offset).collect();
            assert_eq!(chunks.len(), count, "from {offset}");
            assert!(chunks.iter().all(|chunk| chunk.encoded_len() <= MESSAGE_BYTES_MAX));
            let data = chunks.into_iter().filter_map(|chunk| match chunk.part {
                Some(Part::Data(data)) => Some(data),
                _ => None,
            });
            assert_eq!(data.flatten().collect::<Vec<u8>>(), bytes[offset..]);
        }
    }
}
