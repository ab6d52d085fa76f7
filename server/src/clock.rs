//! Time for the coordinator: milliseconds since 1970 when the server started, and from then on a
//! clock that only goes forward, whatever happens to the machine's.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use floret_core::Time;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started_at: Time,
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_at: Time::default().after(since), started: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        self.started_at.after(self.started.elapsed())
    }
}
