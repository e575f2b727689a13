//! The configured connections and what has happened to each: last failure, log, back-off. Enters: configuration and
//! events. Leaves: candidates for a peer, and what `why` and `log` show.

use crate::config::{Connection, Remote, Settings};
use crate::output::{Event, EventKind};
use crate::reason::{Failure, Reason};
use crate::time::{Instant, Now};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// What is remembered of a connection.
#[derive(Default)]
pub(crate) struct Memory {
    /// Negotiations that failed since it was last up.
    pub failures: u32,
    pub retry_at: Option<Instant>,
    /// The operator took it down: it stays down until the operator or traffic asks for it.
    pub held: bool,
    /// Children that were asked for beyond those that start by themselves.
    pub wanted: Vec<Arc<str>>,
    pub last_failure: Option<(Now, Failure)>,
    pub log: VecDeque<Event>,
    pub counts: BTreeMap<Reason, u64>,
}

/// The configured connections, in the order of configuration.
#[derive(Default)]
pub(crate) struct Connections {
    list: Vec<Arc<Connection>>,
}

impl Connections {
    pub fn set(&mut self, connection: Arc<Connection>) -> Option<Arc<Connection>> {
        match self.list.iter_mut().find(|c| c.name == connection.name) {
            Some(slot) => Some(std::mem::replace(slot, connection)),
            None => {
                self.list.push(connection);
                None
            }
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<Connection>> {
        let at = self.list.iter().position(|c| &*c.name == name)?;
        Some(self.list.remove(at))
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Connection>> {
        self.list.iter().find(|c| &*c.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.list.iter()
    }

    /// Connections that a peer at these addresses may mean; those with exactly its address first.
    pub fn by_address(&self, local: IpAddr, remote: IpAddr) -> Vec<Arc<Connection>> {
        let fits =
            |c: &&Arc<Connection>| (c.local == local || c.local.is_unspecified()) && c.remote.accepts(remote);
        let mut out: Vec<Arc<Connection>> = self.list.iter().filter(fits).cloned().collect();
        out.sort_by_key(|c| !matches!(c.remote, Remote::Address(_)));
        out
    }
}

impl Memory {
    pub fn record(&mut self, event: &Event, settings: &Settings) {
        if let Some(f) = &event.failure {
            *self.counts.entry(f.reason).or_default() += 1;
            if f.reason != Reason::Replaced {
                self.last_failure = Some((event.at, f.clone()));
            }
        }
        if event.kind == EventKind::ChildUp {
            self.last_failure = None;
        }
        if self.log.len() >= settings.log_events {
            self.log.pop_front();
        }
        self.log.push_back(event.clone());
    }

    /// Back-off: doubles from the first wait to the longest.
    pub fn schedule(&mut self, now: Instant, settings: &Settings) {
        let (first, longest) = settings.reconnect;
        let wait = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait);
    }
}
