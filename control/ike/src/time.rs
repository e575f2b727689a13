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

impl Now {
    /// Another moment in seconds since 1970.
    pub fn unix_of(&self, at: Instant) -> u64 {
        (self.unix_seconds + at.since(self.at).as_secs()).saturating_sub(self.at.since(at).as_secs())
    }
}

/// The time of day in UTC: `14:32:05 UTC`.
pub fn clock(unix_seconds: u64) -> String {
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02} UTC")
}

/// The two clocks at the moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Seconds since 1970 in UTC, for validity dates and log entries.
    pub unix_seconds: u64,
}
