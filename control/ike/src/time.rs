//! Time as the caller gives it: a monotonic instant since an origin of its choice, and the wall clock for
//! certificates. Nothing in this crate reads a clock.

use std::time::Duration;

/// Monotonic time since an arbitrary origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Instant(pub Duration);

impl Instant {
    /// Time passed since `earlier`, zero if that is later.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(d))
    }
}

/// The two clocks at the moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Seconds since 1970 in UTC, for validity dates and log entries.
    pub unix_seconds: u64,
}
