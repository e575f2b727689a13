//! A new IKE SA in the place of one on which a rekey was refused. Enters: the older one and the children that need it. Leaves:
//! a negotiation, and once its children carry the traffic the end of the older one. RFC 7296 section 2.8.3.

use super::Endpoint;
use crate::child::{Child, ChildState};
use crate::config::Remote;
use crate::exchange::{Request, Task, What};
use crate::message::is_subset;
use crate::output::{Outputs, SpiSource};
use crate::reason::Reason;
use crate::sa::{IkeSa, Path, State};
use crate::time::Now;
use std::net::SocketAddr;
use std::sync::Arc;

/// Whether `new` has what `old` still carries: each live child by name and worker, with all of its selectors unless the
/// configuration has others by now.
pub(super) fn covers(new: &IkeSa, old: &IkeSa) -> bool {
    let live = |c: &&Child| matches!(c.state, ChildState::Live | ChildState::Rekeying);
    old.children.iter().filter(live).all(|o| {
        let current = new.connection.iter().flat_map(|c| &c.children).find(|c| c.name == o.config.name);
        let stale = current
            .is_none_or(|c| !is_subset(&o.local_ts, &c.local_ts) || !is_subset(&o.remote_ts, &c.remote_ts));
        new.children.iter().filter(live).any(|n| {
            let same = n.config.name == o.config.name && n.resource == o.resource;
            same && (stale || (is_subset(&o.local_ts, &n.local_ts) && is_subset(&o.remote_ts, &n.remote_ts)))
        })
    })
}

impl Endpoint {
    /// Begins a new IKE SA for these children unless one is under way.
    pub(super) fn replace(
        &mut self,
        now: Now,
        old: u64,
        wanted: Vec<Arc<str>>,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let Some(sa) = self.sas.get(&old) else { return };
        let Some(connection) = sa.connection.clone() else { return };
        let remote = match connection.remote {
            Remote::Address(remote) => remote,
            // Behind a NAT it cannot be reached unless it begins.
            Remote::Network(_) if sa.nat.1 => return,
            Remote::Network(_) => sa.path.remote.ip(),
        };
        let begun =
            |s: &IkeSa| s.state == State::Connecting || (s.state == State::Up && s.replaces == Some(old));
        if self.sas_of(&connection.name).any(begun) {
            return;
        }
        let port = self.settings.ports.0;
        let local = SocketAddr::new(sa.path.local.ip(), port);
        let path = Path { local, remote: SocketAddr::new(remote, port), encapsulated: false };
        let from = out.len();
        let mut ctx = self.context(now, spis, out);
        if let Some(mut sa) = IkeSa::initiate(&mut ctx, &connection, path, wanted) {
            sa.replaces = Some(old);
            self.put(sa);
        }
        self.record(from, out);
    }

    /// The peer was faster: an attempt of ours that it has not answered yet, and that was to do what `new` does, ends.
    pub(super) fn give_up_others(
        &mut self,
        now: Now,
        new: u64,
        name: &str,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let Some(has) = self.sas.get(&new) else { return };
        let vain = |s: &&IkeSa| {
            let unanswered = matches!(&s.pending, Some(p) if matches!(p.request, Request::Init(_)));
            let old = s.replaces.and_then(|old| self.sas.get(&old));
            s.state == State::Connecting && unanswered && old.is_some_and(|old| covers(has, old))
        };
        let vain: Vec<u64> = self.sas_of(name).filter(vain).map(IkeSa::local_spi).collect();
        for spi in vain {
            self.with_sa(now, spi, spis, out, |sa, ctx| sa.fail(ctx, Reason::Replaced.into()));
        }
    }

    /// An IKE SA was rekeyed: whatever is to replace the old one replaces the new one.
    pub(super) fn follow_rekey(&mut self, from: u64, to: u64) {
        let Some(name) = self.sas.get(&to).and_then(IkeSa::name) else { return };
        let waiting = self.sas_of(&name).filter(|s| s.replaces == Some(from));
        let waiting: Vec<u64> = waiting.map(IkeSa::local_spi).collect();
        for spi in waiting {
            self.sas.get_mut(&spi).into_iter().for_each(|s| s.replaces = Some(to));
        }
    }

    /// Once a new IKE SA has all that an older one carries, the older one ends: when the peer is sure to send with the new
    /// one, so that nothing under way is lost.
    pub(super) fn settle(&mut self, now: Now, spi: u64) {
        let Some(new) = self.sas.get(&spi).filter(|s| s.state == State::Up) else { return };
        let Some(old) = new.replaces else { return };
        let done = match self.sas.get(&old) {
            Some(sa) => covers(new, sa),
            None => true,
        };
        if !done {
            return;
        }
        if let Some(mut sa) = self.sas.remove(&old) {
            sa.retiring = true;
            if sa.state == State::Up {
                sa.queue(Task::new(now.at + self.settings.drain / 2, What::DeleteIke(Reason::Replaced)));
            }
            self.put(sa);
        }
        if let Some(new) = self.sas.get_mut(&spi) {
            new.replaces = None;
        }
    }
}
