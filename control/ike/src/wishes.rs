//! What the operator and the data plane want of the endpoint. Enters: names of connections and children, SPIs, counters.
//! Leaves: exchanges begun. RFC 7296 sections 1.3, 1.4 and 2.4.

use crate::child::selectors_text;
use crate::config::{Remote, Start};
use crate::endpoint::Endpoint;
use crate::exchange::{Task, What};
use crate::message::TrafficSelector;
use crate::output::{Outputs, SpiSource};
use crate::reason::Reason;
use crate::sa::{IkeSa, State};
use crate::time::Now;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What one child SA has carried, as the data plane counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Packets that were received and verified.
    pub packets_in: u64,
    /// Packets that were sent.
    pub packets_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

impl Endpoint {
    /// Sets up a connection, or one child of it: the operator's `up`, or the data plane's packet without an SA. Does
    /// nothing if it exists or is under way. False if there is no such connection, or only its peer can begin.
    pub fn initiate(
        &mut self,
        now: Now,
        name: &str,
        child: Option<&str>,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) -> bool {
        let Some(connection) = self.connections.get(name).cloned() else { return false };
        let Remote::Address(_) = connection.remote else { return false };
        let wanted: Vec<Arc<str>> = connection
            .children
            .iter()
            .filter(|c| child.is_none_or(|n| &*c.name == n))
            .map(|c| c.name.clone())
            .collect();
        if let Some(memory) = self.memory.get_mut(name) {
            memory.held = false;
            let new = wanted.iter().filter(|w| !memory.wanted.contains(w)).cloned().collect::<Vec<_>>();
            memory.wanted.extend(new);
        }
        let live = |s: &&IkeSa| matches!(s.state, State::Up | State::Connecting);
        let live = self.sas_of(name).find(live).map(IkeSa::local_spi);
        match live {
            None => self.connect(now, &connection, wanted, spis, out),
            Some(spi) => self.with_sa(now, spi, spis, out, |sa, ctx| {
                if sa.state == State::Connecting {
                    let new = wanted.iter().filter(|w| !sa.wanted.contains(w)).cloned().collect::<Vec<_>>();
                    sa.wanted.extend(new);
                    return;
                }
                wanted.iter().for_each(|w| sa.want_child(ctx, w, Duration::ZERO));
                sa.next_task(ctx);
            }),
        }
        true
    }

    /// The data plane has a packet for a child that has no SA. Sets it up, unless it is to wait for the peer or the
    /// operator, the operator took it down, or a failed attempt is still to be waited for.
    pub fn traffic(
        &mut self,
        now: Now,
        name: &str,
        child: &str,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let (Some(connection), Some(memory)) = (self.connections.get(name), self.memory.get(name)) else {
            return;
        };
        let start = connection.children.iter().find(|c| &*c.name == child).map(|c| c.start);
        let wanted = match start {
            Some(Start::OnTraffic) => true,
            Some(Start::Now) => !memory.held,
            Some(Start::Wait) | None => false,
        };
        if wanted && memory.retry_at.is_none() {
            self.initiate(now, name, Some(child), spis, out);
        }
    }

    /// Creates one more child SA for a worker of its own (RFC 9611), if the connection is up and its child allows it.
    pub fn initiate_for_worker(
        &mut self,
        now: Now,
        name: &str,
        child: &str,
        worker: u32,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let up = self.sas_of(name).find(|s| s.state == State::Up);
        let found = up.and_then(|sa| {
            let config = sa.connection.iter().flat_map(|c| &c.children).find(|c| &*c.name == child)?;
            Some((sa.local_spi(), config.clone()))
        });
        let Some((spi, config)) = found.filter(|(_, c)| c.per_worker > 1) else { return };
        self.with_sa(now, spi, spis, out, |sa, ctx| {
            sa.queue(Task::new(ctx.now.at, What::CreateChild(config.name.clone(), Some(worker))));
            sa.next_task(ctx);
        });
    }

    /// Replaces the IKE SAs of a connection now.
    pub fn rekey_ike(&mut self, now: Now, name: &str, spis: &mut dyn SpiSource, out: &mut Outputs) {
        self.queue_for(now, name, What::RekeyIke, spis, out);
    }

    /// Probes the peers of a connection now.
    pub fn probe(&mut self, now: Now, name: &str, spis: &mut dyn SpiSource, out: &mut Outputs) {
        self.queue_for(now, name, What::Probe, spis, out);
    }

    fn queue_for(&mut self, now: Now, name: &str, what: What, spis: &mut dyn SpiSource, out: &mut Outputs) {
        for spi in self.established(name) {
            self.with_sa(now, spi, spis, out, |sa, ctx| {
                sa.queue(Task::new(ctx.now.at, what.clone()));
                sa.next_task(ctx);
            });
        }
    }

    /// Replaces a child SA now: the operator's wish, or the data plane's soft limit of sequence numbers.
    pub fn rekey_child(&mut self, now: Now, spi_in: u32, spis: &mut dyn SpiSource, out: &mut Outputs) {
        let Some(&spi) = self.owners.get(&spi_in) else { return };
        self.with_sa(now, spi, spis, out, |sa, ctx| {
            sa.queue(Task::rekey_child(ctx.now.at, spi_in));
            sa.next_task(ctx);
        });
    }

    /// Deletes a child SA.
    pub fn delete_child(&mut self, now: Now, spi_in: u32, spis: &mut dyn SpiSource, out: &mut Outputs) {
        let Some(&spi) = self.owners.get(&spi_in) else { return };
        self.with_sa(now, spi, spis, out, |sa, ctx| {
            sa.queue(Task::new(ctx.now.at, What::DeleteChild(spi_in)));
            sa.next_task(ctx);
        });
    }

    /// Closes a connection until [`Endpoint::initiate`] asks for it again: the operator's `down`.
    pub fn delete(&mut self, now: Now, name: &str, spis: &mut dyn SpiSource, out: &mut Outputs) {
        self.close(now, name, Reason::DeletedByOperator, spis, out);
    }

    pub(crate) fn close(
        &mut self,
        now: Now,
        name: &str,
        reason: Reason,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        if let Some(memory) = self.memory.get_mut(name) {
            (memory.held, memory.retry_at) = (true, None);
            memory.wanted.clear();
        }
        for spi in self.sas_of(name).map(IkeSa::local_spi).collect::<Vec<_>>() {
            self.with_sa(now, spi, spis, out, |sa, ctx| match sa.state {
                State::Up => {
                    sa.queue(Task::new(ctx.now.at, What::DeleteIke(reason)));
                    sa.next_task(ctx);
                }
                State::Connecting | State::HalfOpen => sa.fail(ctx, reason.into()),
                _ => {}
            });
        }
    }

    /// What a child SA has carried so far. Traffic from the peer counts as a sign of life (RFC 7296 2.4), shows that the
    /// peer has a replacement, and limits by bytes and packets are checked.
    pub fn child_traffic(
        &mut self,
        now: Now,
        spi_in: u32,
        usage: Usage,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let Some(&spi) = self.owners.get(&spi_in) else { return };
        let before = self.seen.insert(spi_in, usage.packets_in).unwrap_or(0);
        let heard = usage.packets_in > before;
        self.with_sa(now, spi, spis, out, |sa, ctx| {
            if heard {
                sa.heard = ctx.now.at;
            }
            let drained = ctx.now.at + ctx.settings.drain;
            let Some(c) = sa.children.iter_mut().find(|c| c.spi_in == spi_in) else { return };
            if heard {
                c.unconfirmed = None;
            }
            c.bytes = (usage.bytes_in, usage.bytes_out);
            if heard && (c.awaits.take().is_some() | c.switch_at.take().is_some()) {
                ctx.tunnels.switch(ctx.out, spi_in, drained);
            }
            let l = c.config.lifetime;
            let over = |limit: Option<u64>, a: u64, b: u64| limit.is_some_and(|l| a.max(b) >= l);
            if c.state == crate::child::ChildState::Live
                && (over(l.soft_bytes, usage.bytes_in, usage.bytes_out)
                    || over(l.soft_packets, usage.packets_in, usage.packets_out))
            {
                sa.queue(Task::rekey_child(ctx.now.at, spi_in));
                sa.next_task(ctx);
            }
        });
    }

    /// The newest authentic packet of a child SA, in UDP, came from `remote`: the peer's NAT has another mapping, so IKE and
    /// all its child SAs go there from now on (RFC 7296 section 2.23). False where no IKE SA is behind the child SA.
    pub fn peer_moved(
        &mut self,
        now: Now,
        spi_in: u32,
        remote: SocketAddr,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) -> bool {
        let owner = self.owners.get(&spi_in).copied().filter(|spi| self.sas.contains_key(spi));
        let Some(spi) = owner else { return false };
        self.with_sa(now, spi, spis, out, |sa, ctx| sa.on_moved_esp(ctx, remote));
        true
    }

    /// Takes over a child SA that the data plane carries traffic on, after control has started anew: it is removed once a
    /// new SA of the same child is in use. The IKE SA behind it is set up at the next [`Endpoint::poll`], without
    /// INITIAL_CONTACT, so that the peer keeps the old one until then. `selectors` are ours and the peer's.
    pub fn adopt(
        &mut self,
        now: Now,
        (connection, child): (&str, &str),
        (spi_in, spi_out): (u32, u32),
        selectors: (Vec<TrafficSelector>, Vec<TrafficSelector>),
    ) -> bool {
        let Some(c) = self.connections.get(connection) else { return false };
        let Some(child) = c.children.iter().find(|x| &*x.name == child) else { return false };
        let expires = now.at + child.lifetime.hard;
        let (key, may) = (
            (c.name.clone(), child.name.clone(), selectors_text(&selectors.0, &selectors.1), None),
            matches!(c.remote, Remote::Address(_)),
        );
        if let Some(memory) = self.memory.get_mut(connection).filter(|_| may) {
            memory.retry_at = Some(now.at);
            self.retries.insert((now.at, key.0.clone()));
            if !memory.wanted.contains(&key.1) {
                memory.wanted.push(key.1.clone());
            }
        }
        self.tunnels.adopt(key, (spi_in, spi_out), selectors, expires);
        true
    }
}
