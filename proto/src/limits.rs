//! Sizes that both sides keep.

/// The protocol version that this build speaks.
pub const PROTOCOL: u32 = 1;

/// Bytes of an adapter or payload in one chunk.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Largest gRPC message either side accepts: a chunk and its framing.
pub const MESSAGE_BYTES_MAX: usize = CHUNK_BYTES + 16 * 1024;

/// Longest reason of a decline that the server keeps, in bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Metadata key of the one-word reason of a refusal.
pub const REASON_KEY: &str = "floret-reason";

/// Metadata key of the time after which to try again, in milliseconds.
pub const RETRY_AFTER_KEY: &str = "floret-retry-after-ms";
