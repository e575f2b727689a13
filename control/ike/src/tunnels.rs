//! Which child SAs are installed, which one each tunnel sends with, and which still drain. Enters: install, switch and
//! remove in the order of the exchanges. Leaves: the outputs that keep every tunnel on its newest usable SA
//! (RFC 7296 2.8: make before break).

use crate::message::{TrafficSelector, is_subset};
use crate::output::{ChildSa, Output, Outputs};
use crate::time::Instant;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Connection, child, selectors (with the peer where the connection takes many), worker.
pub(crate) type Key = (Arc<str>, Arc<str>, String, Option<u32>);

/// Our selectors and the peer's.
pub(crate) type Selectors = (Vec<TrafficSelector>, Vec<TrafficSelector>);

/// An adopted SA that the first new SA of its child does not replace waits so long for one that does.
const ADOPTED_REST: Duration = Duration::from_secs(20);

struct Entry {
    key: Key,
    spi_out: u32,
    selectors: Selectors,
    /// The peer is known to have it.
    usable: bool,
}

/// All installed child SAs.
#[derive(Default)]
pub(crate) struct Tunnels {
    /// By inbound SPI.
    entries: HashMap<u32, Entry>,
    /// Inbound SPIs of each tunnel, oldest first.
    by_key: BTreeMap<Key, Vec<u32>>,
    current: HashMap<Key, u32>,
    draining: BTreeSet<(Instant, u32)>,
    /// From before control's restart, without an IKE SA behind them, by connection and child.
    adopted: HashMap<(Arc<str>, Arc<str>), Vec<u32>>,
    /// When adopted SAs are too old, whatever becomes of the peer.
    expiring: BTreeSet<(Instant, u32)>,
}

impl Tunnels {
    fn insert(&mut self, spi_in: u32, entry: Entry) {
        self.by_key.entry(entry.key.clone()).or_default().push(spi_in);
        self.entries.insert(spi_in, entry);
    }

    /// Installs both directions without switching.
    pub fn install(&mut self, out: &mut Outputs, key: Key, sa: ChildSa) {
        let selectors = (sa.local_ts.clone(), sa.remote_ts.clone());
        self.insert(sa.spi_in, Entry { key, spi_out: sa.spi_out, selectors, usable: false });
        out.push(Output::InstallInbound(Box::new(sa)));
    }

    /// Takes over an SA that the data plane already has and sends with, until `expires` at the latest.
    pub fn adopt(&mut self, key: Key, (spi_in, spi_out): (u32, u32), selectors: Selectors, expires: Instant) {
        if self.entries.contains_key(&spi_in) {
            return;
        }
        self.adopted.entry((key.0.clone(), key.1.clone())).or_default().push(spi_in);
        self.expiring.insert((expires, spi_in));
        self.current.insert(key.clone(), spi_in);
        self.insert(spi_in, Entry { key, spi_out, selectors, usable: true });
    }

    /// Sends with this SA from now on; adopted SAs of the child whose selectors it has are done, and others soon.
    pub fn switch(&mut self, out: &mut Outputs, spi_in: u32, drained_at: Instant) {
        let Some(entry) = self.entries.get_mut(&spi_in) else { return };
        entry.usable = true;
        let (key, spi_out) = (entry.key.clone(), entry.spi_out);
        let (connection, child) = (key.0.clone(), key.1.clone());
        let of_child = (connection.clone(), child.clone());
        if self.current.insert(key, spi_in) != Some(spi_in) {
            out.push(Output::SwitchOutbound { connection, child, spi_in, spi_out });
        }
        let adopted = self.adopted.get(&of_child).filter(|adopted| !adopted.contains(&spi_in));
        for spi in adopted.cloned().unwrap_or_default() {
            match self.replaces(spi_in, spi) {
                true => self.remove(out, spi, Some(drained_at)),
                false => _ = self.expiring.insert((drained_at + ADOPTED_REST, spi)),
            }
        }
    }

    /// Whether all that the SA `old` carries may go by `new`. Of one that came with too little to tell, it is taken to.
    fn replaces(&self, new: u32, old: u32) -> bool {
        let (Some(new), Some(old)) = (self.entries.get(&new), self.entries.get(&old)) else { return true };
        is_subset(&old.selectors.0, &new.selectors.0) && is_subset(&old.selectors.1, &new.selectors.1)
    }

    /// Removes an SA: its outbound half at once, its inbound half at `drained_at` or at once.
    pub fn remove(&mut self, out: &mut Outputs, spi_in: u32, drained_at: Option<Instant>) {
        let Some(Entry { key, spi_out, .. }) = self.entries.remove(&spi_in) else { return };
        let same = self.by_key.remove(&key).unwrap_or_default();
        let same: Vec<u32> = same.into_iter().filter(|s| *s != spi_in).collect();
        // The newest that the peer has; failing that the newest at all, which the peer is about to have.
        let usable = |s: &&u32| self.entries.get(s).is_some_and(|e| e.usable);
        let next = same.iter().rev().find(usable).or(same.last()).copied();
        if !same.is_empty() {
            self.by_key.insert(key.clone(), same);
        }
        let of_child = (key.0.clone(), key.1.clone());
        if let Some(adopted) = self.adopted.get_mut(&of_child) {
            adopted.retain(|s| *s != spi_in);
            if adopted.is_empty() {
                self.adopted.remove(&of_child);
            }
        }
        if self.current.get(&key) == Some(&spi_in) {
            self.current.remove(&key);
            if let Some(next) = next {
                self.switch(out, next, drained_at.unwrap_or_default());
            }
        }
        out.push(Output::RemoveOutbound { spi_in, spi_out });
        match drained_at {
            Some(when) => {
                self.draining.insert((when, spi_in));
            }
            None => out.push(Output::RemoveInbound { spi_in }),
        }
    }

    /// Removes what has drained, and adopted SAs whose time is over.
    pub fn poll(&mut self, out: &mut Outputs, now: Instant) {
        while let Some((_, spi_in)) = self.expiring.first().copied().filter(|(when, _)| *when <= now) {
            self.expiring.pop_first();
            if self.is_adopted(spi_in) {
                self.remove(out, spi_in, None);
            }
        }
        while let Some((_, spi_in)) = self.draining.first().copied().filter(|(when, _)| *when <= now) {
            self.draining.pop_first();
            out.push(Output::RemoveInbound { spi_in });
        }
    }

    fn is_adopted(&self, spi_in: u32) -> bool {
        let Some(Entry { key, .. }) = self.entries.get(&spi_in) else { return false };
        self.adopted.get(&(key.0.clone(), key.1.clone())).is_some_and(|adopted| adopted.contains(&spi_in))
    }

    /// When [`Tunnels::poll`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, u32)>| set.first().map(|(when, _)| *when);
        first(&self.draining).into_iter().chain(first(&self.expiring)).min()
    }

    /// Whether the tunnel sends with this SA.
    pub fn is_current(&self, spi_in: u32) -> bool {
        self.entries.get(&spi_in).is_some_and(|e| self.current.get(&e.key) == Some(&spi_in))
    }

    /// Whether something else carries the traffic of this SA's tunnel at present.
    pub fn has_older(&self, spi_in: u32) -> bool {
        let Some(Entry { key, .. }) = self.entries.get(&spi_in) else { return false };
        self.current.get(key).is_some_and(|s| *s != spi_in) || self.has_adopted(&key.0, &key.1)
    }

    /// The SAs of a child whatever their selectors; `key` has none, and the peer where the connection takes many.
    pub fn of_child(&self, (connection, child, peer, resource): &Key) -> Vec<u32> {
        let from: Key = (connection.clone(), child.clone(), String::new(), None);
        let of_it = self.by_key.range(from..).take_while(|(key, _)| key.0 == *connection && key.1 == *child);
        let same = of_it.filter(|(key, _)| key.2.ends_with(peer.as_str()) && key.3 == *resource);
        same.flat_map(|(_, spis)| spis.iter().copied()).collect()
    }

    /// Those of [`Tunnels::of_child`] that the tunnel sends with, unless they are from before control's restart.
    pub fn sending(&self, key: &Key) -> Vec<u32> {
        let mut all = self.of_child(key);
        all.retain(|spi_in| self.is_current(*spi_in) && !self.is_adopted(*spi_in));
        all
    }

    /// Whether the tunnel has an SA beside these.
    pub fn has_beside(&self, key: &Key, these: &[u32]) -> bool {
        self.by_key.get(key).is_some_and(|all| all.iter().any(|spi_in| !these.contains(spi_in)))
    }

    /// Adopted SAs of a connection's child: they carry its traffic until a new SA takes over.
    pub fn has_adopted(&self, connection: &Arc<str>, child: &Arc<str>) -> bool {
        !self.adopted.is_empty() && self.adopted.contains_key(&(connection.clone(), child.clone()))
    }

    /// The SAs of a connection that it would leave behind, for when the connection is removed.
    pub fn of_connection(&self, connection: &str) -> Vec<u32> {
        let from: Key = (connection.into(), "".into(), String::new(), None);
        let of_it = self.by_key.range(from..).take_while(|(key, _)| &*key.0 == connection);
        of_it.flat_map(|(_, spis)| spis.iter().copied()).collect()
    }

    /// Installed and draining SAs; zero when nothing is left behind.
    pub fn len(&self) -> usize {
        self.entries.len() + self.draining.len()
    }

    /// The end of draining for an SA removed now.
    pub fn drain_end(now: Instant, drain: Duration) -> Option<Instant> {
        (!drain.is_zero()).then(|| now + drain)
    }
}
