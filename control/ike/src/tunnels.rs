//! Which child SAs are installed, which one each tunnel sends with, and which still drain. Enters: install, switch and
//! remove in the order of the exchanges. Leaves: the outputs that keep every tunnel on its newest usable SA
//! (RFC 7296 2.8: make before break).

use crate::output::{ChildSa, Output, Outputs};
use crate::time::Instant;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Connection, child, peer (empty unless the connection takes many peers), worker.
pub(crate) type Key = (Arc<str>, Arc<str>, String, Option<u32>);

struct Entry {
    key: Key,
    spi_in: u32,
    spi_out: u32,
    /// The peer is known to have it.
    usable: bool,
    /// From before control's restart, without an IKE SA behind it.
    adopted: bool,
}

/// All installed child SAs, oldest first.
#[derive(Default)]
pub(crate) struct Tunnels {
    entries: Vec<Entry>,
    current: HashMap<Key, u32>,
    draining: Vec<(Instant, u32)>,
}

impl Tunnels {
    /// Installs both directions without switching.
    pub fn install(&mut self, out: &mut Outputs, key: Key, sa: ChildSa) {
        let (spi_in, spi_out) = (sa.spi_in, sa.spi_out);
        self.entries.push(Entry { key, spi_in, spi_out, usable: false, adopted: false });
        out.push(Output::InstallInbound(Box::new(sa)));
    }

    /// Takes over an SA that the data plane already has and sends with.
    pub fn adopt(&mut self, key: Key, spi_in: u32, spi_out: u32) {
        self.current.insert(key.clone(), spi_in);
        self.entries.push(Entry { key, spi_in, spi_out, usable: true, adopted: true });
    }

    /// Sends with this SA from now on; adopted SAs of the tunnel are done.
    pub fn switch(&mut self, out: &mut Outputs, spi_in: u32, drained_at: Instant) {
        let Some(entry) = self.entries.iter_mut().find(|e| e.spi_in == spi_in) else { return };
        entry.usable = true;
        let (key, spi_out) = (entry.key.clone(), entry.spi_out);
        if self.current.insert(key.clone(), spi_in) != Some(spi_in) {
            let (connection, child) = (key.0.clone(), key.1.clone());
            out.push(Output::SwitchOutbound { connection, child, spi_in, spi_out });
        }
        let adopted: Vec<u32> =
            self.entries.iter().filter(|e| e.adopted && e.key == key).map(|e| e.spi_in).collect();
        adopted.into_iter().for_each(|spi| self.remove(out, spi, Some(drained_at)));
    }

    /// Removes an SA: its outbound half at once, its inbound half at `drained_at` or at once.
    pub fn remove(&mut self, out: &mut Outputs, spi_in: u32, drained_at: Option<Instant>) {
        let Some(at) = self.entries.iter().position(|e| e.spi_in == spi_in) else { return };
        let Entry { key, spi_out, .. } = self.entries.remove(at);
        if self.current.get(&key) == Some(&spi_in) {
            self.current.remove(&key);
            // The newest that the peer has; failing that the newest at all, which the peer is about to have.
            let same = || self.entries.iter().rev().filter(|e| e.key == key);
            let next = same().find(|e| e.usable).or_else(|| same().next()).map(|e| e.spi_in);
            if let Some(next) = next {
                self.switch(out, next, drained_at.unwrap_or_default());
            }
        }
        out.push(Output::RemoveOutbound { spi_in, spi_out });
        match drained_at {
            Some(when) => self.draining.push((when, spi_in)),
            None => out.push(Output::RemoveInbound { spi_in }),
        }
    }

    /// Removes what has drained.
    pub fn poll(&mut self, out: &mut Outputs, now: Instant) {
        self.draining.retain(|(when, spi_in)| {
            let due = *when <= now;
            if due {
                out.push(Output::RemoveInbound { spi_in: *spi_in });
            }
            !due
        });
    }

    /// When [`Tunnels::poll`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.draining.iter().map(|d| d.0).min()
    }

    /// Whether the tunnel sends with this SA.
    pub fn is_current(&self, spi_in: u32) -> bool {
        self.current.values().any(|s| *s == spi_in)
    }

    /// Adopted SAs of a connection's child: they carry its traffic until a new SA takes over.
    pub fn has_adopted(&self, connection: &str, child: &str) -> bool {
        self.entries.iter().any(|e| e.adopted && &*e.key.0 == connection && &*e.key.1 == child)
    }

    /// The SAs of a connection that it would leave behind, for when the connection is removed.
    pub fn of_connection(&self, connection: &str) -> Vec<u32> {
        self.entries.iter().filter(|e| &*e.key.0 == connection).map(|e| e.spi_in).collect()
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
