//! The threads that computing uses. Burn's CPU backend computes on the current rayon pool.

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A fixed number of threads. It changes how long work takes, and no bit of its result.
#[derive(Debug)]
pub struct Threads(ThreadPool);

/// The operating system gave no thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {count} computing threads: {source}")]
pub struct NoThreads {
    count: usize,
    source: rayon::ThreadPoolBuildError,
}

impl Threads {
    /// Starts `count` threads; 0 means one for each core.
    ///
    /// # Errors
    /// The operating system gave none.
    pub fn new(count: usize) -> Result<Self, NoThreads> {
        let name = |index| format!("floret-compute-{index}");
        let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(name).build();
        pool.map(Self).map_err(|source| NoThreads { count, source })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` on these threads and waits for it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}
