//! Sizes that both sides keep.

/// The protocol version that this build speaks.
pub const PROTOCOL: u32 = 1;

/// Bytes of an adapter or payload in one chunk: few, so that a slow link moves one within seconds.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// Largest gRPC message either side accepts.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 + 16 * 1024;

/// Longest reason of a decline that the server keeps, in bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Metadata key of the one-word reason of a refusal.
pub const REASON_KEY: &str = "floret-reason";

/// Metadata key of the time after which to try again, in milliseconds.
pub const RETRY_AFTER_KEY: &str = "floret-retry-after-ms";
