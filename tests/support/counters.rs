//! What a gateway counts: its command line is asked, figures leave.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::command::until;
use super::gateway::Gateway;

/// The counters of a gateway's workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received, sent, punted and dropped frames of each worker.
    pub workers: Vec<[u64; 4]>,
    /// Dropped frames by reason.
    pub drops: BTreeMap<String, u64>,
}

impl Counters {
    /// As they stand.
    pub fn read(gateway: &Gateway) -> Counters {
        let (workers, drops) = (gateway.json(&["show", "workers"]), gateway.json(&["show", "drops"]));
        let worker = |worker: &Value| {
            ["received", "sent", "punted", "dropped"].map(|name| figure(&worker["frames"], name))
        };
        let reason =
            |count: &Value| (count["name"].as_str().expect("a word").to_owned(), figure(count, "frames"));
        Counters {
            workers: workers.as_array().expect("a list").iter().map(worker).collect(),
            drops: drops.as_array().expect("a list").iter().map(reason).collect(),
        }
    }

    /// Frames handed to ports.
    pub fn sent(&self) -> u64 {
        self.workers.iter().map(|[_, sent, ..]| sent).sum()
    }

    /// Frames dropped for that reason.
    pub fn of(&self, name: &str) -> u64 {
        *self.drops.get(name).unwrap_or_else(|| panic!("no counter {name} in {:?}", self.drops))
    }

    /// Fails unless received = sent + punted + dropped, for each worker, exactly.
    pub fn must_add_up(&self) {
        assert!(!self.workers.is_empty(), "no workers");
        for (index, [received, sent, punted, dropped]) in self.workers.iter().enumerate() {
            assert_eq!(*received, sent + punted + dropped, "worker {index}: {self:?}");
        }
    }

    /// Fails where a packet was replayed, too old, unknown or damaged: on a wire of ours none can be.
    pub fn must_have_opened_all(&self) {
        for name in ["replayed", "too_old", "auth_failed", "unknown_spi", "esp_trailer", "inner_malformed"] {
            assert_eq!(self.of(name), 0, "{name}: {:?}", self.drops);
        }
    }
}

/// Packet buffers in use, once the level has stood still for a second.
pub fn buffers_in_use(gateway: &Gateway) -> u64 {
    let level = || figure(&gateway.json(&["show", "ports"])[0], "buffers_in_use");
    let mut last = level();
    until(Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_secs(1));
        let now = level();
        std::mem::replace(&mut last, now) == now
    });
    last
}

/// A number of an answer.
pub fn figure(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}
