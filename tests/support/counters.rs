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
        self.all(1)
    }

    /// Frames of all workers: 0 received, 1 sent, 2 punted, 3 dropped.
    pub fn all(&self, kind: usize) -> u64 {
        self.workers.iter().map(|frames| frames[kind]).sum()
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

/// Packet buffers as the data plane reported them last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Not in the pool.
    pub in_use: u64,
    /// Those of them that hold frames on their way to or from the twins.
    pub waiting: u64,
    /// The number of the report.
    pub report: u64,
}

impl Buffers {
    /// The last report.
    pub fn read(gateway: &Gateway) -> Buffers {
        let port = &gateway.json(&["show", "ports"])[0];
        let [in_use, waiting, report] =
            ["buffers_in_use", "buffers_waiting", "reports"].map(|name| figure(port, name));
        Buffers { in_use, waiting, report }
    }

    /// The first report of which `holds` is true, of those that are made after this call, for half a minute; otherwise the
    /// last one.
    pub fn once(gateway: &Gateway, mut holds: impl FnMut(Buffers) -> bool) -> Buffers {
        let first = Buffers::read(gateway);
        let mut last = first;
        until(Duration::from_secs(30), || {
            let now = Buffers::read(gateway);
            // One that was under way when this was called may tell of the time before.
            let fresh = now.report > last.report && now.report > first.report + 1;
            last = now;
            fresh && holds(now)
        });
        last
    }

    /// Those in use while no frame is on its way: what the receive rings hold. Eight reports in a row say the same.
    pub fn at_rest(gateway: &Gateway) -> u64 {
        let (mut level, mut same) = (0, 0);
        let last = Buffers::once(gateway, |now| {
            same = if now.in_use == level && now.waiting == 0 { same + 1 } else { 1 };
            level = now.in_use;
            same == 8
        });
        assert_eq!(
            same,
            8,
            "{}: the level of packet buffers does not come to rest: {last:?}",
            gateway.name()
        );
        level
    }
}

/// A number of an answer.
pub fn figure(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}
