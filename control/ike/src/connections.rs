//! The configured connections and what has happened to each: last failure, log, back-off. Enters: configuration and
//! events. Leaves: candidates for a peer, and what `why` and `log` show.

use crate::config::{Connection, Remote, Settings};
use crate::output::{Event, EventKind};
use crate::reason::{Failure, Reason};
use crate::time::{Instant, Now};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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
    /// The last event as it came.
    pub recorded: Option<Event>,
    pub counts: BTreeMap<Reason, u64>,
}

/// The configured connections, in the order of configuration, found by name and by the peer's address.
#[derive(Default)]
pub(crate) struct Connections {
    list: BTreeMap<u64, Arc<Connection>>,
    next: u64,
    by_name: HashMap<Arc<str>, u64>,
    by_remote: HashMap<IpAddr, BTreeSet<u64>>,
    networks: BTreeSet<u64>,
}

impl Connections {
    pub fn set(&mut self, connection: Arc<Connection>) -> Option<Arc<Connection>> {
        let place = self.by_name.get(&connection.name).copied().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let old = self.list.remove(&place);
        old.iter().for_each(|old| self.unlist(place, old));
        match connection.remote {
            Remote::Address(address) => self.by_remote.entry(address).or_default().insert(place),
            Remote::Network(_) => self.networks.insert(place),
        };
        self.by_name.insert(connection.name.clone(), place);
        self.list.insert(place, connection);
        old
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<Connection>> {
        let place = self.by_name.remove(name)?;
        let old = self.list.remove(&place)?;
        self.unlist(place, &old);
        Some(old)
    }

    fn unlist(&mut self, place: u64, connection: &Connection) {
        self.networks.remove(&place);
        if let Remote::Address(address) = connection.remote
            && let Some(places) = self.by_remote.get_mut(&address)
        {
            places.remove(&place);
            if places.is_empty() {
                self.by_remote.remove(&address);
            }
        }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Connection>> {
        self.list.get(self.by_name.get(name)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.list.values()
    }

    /// Connections that a peer at these addresses may mean; those with exactly its address first.
    pub fn by_address(&self, local: IpAddr, remote: IpAddr) -> Vec<Arc<Connection>> {
        let places = self.by_remote.get(&remote).into_iter().flatten().chain(&self.networks);
        places
            .filter_map(|place| self.list.get(place))
            .filter(|c| (c.local == local || c.local.is_unspecified()) && c.remote.accepts(remote))
            .cloned()
            .collect()
    }
}

impl Memory {
    /// `up`: strangers can say nothing of a peer that is there.
    pub fn record(&mut self, event: &Event, up: bool, settings: &Settings) {
        self.recorded = Some(event.clone());
        if let Some(f) = &event.failure {
            *self.counts.entry(f.reason).or_default() += 1;
            if f.reason != Reason::Replaced && !up {
                self.last_failure = Some((event.at, f.clone()));
            }
        }
        if matches!(event.kind, EventKind::ChildUp | EventKind::ChildRekeyed) {
            self.last_failure = None;
        }
        let mut event = event.clone();
        if let Some(same) = self.log.iter().rposition(|old| old.is_same_noise(&event))
            && let Some(old) = self.log.remove(same)
        {
            event.strangers += old.strangers;
        }
        if self.log.len() >= settings.log_events {
            self.log.pop_front();
        }
        self.log.push_back(event);
    }

    /// Back-off: doubles from the first wait to the longest. Returns the moment.
    pub fn schedule(&mut self, now: Instant, settings: &Settings) -> Instant {
        let (first, longest) = settings.reconnect;
        let wait = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let at = now + wait;
        self.retry_at = Some(at);
        at
    }
}
