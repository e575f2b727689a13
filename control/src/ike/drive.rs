//! Drives the protocol machine: datagrams, time and the data plane's hints enter it, and what it wants is done in its order:
//! datagrams leave, SAs are installed, switched to and removed (RFC 7296 sections 2.8 and 2.9.2).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_ike::message::TrafficSelector;
use penstock_ike::{ChildSa, Datagram, Endpoint, Now, Output, Outputs, SpiSource, Start, Usage};
use penstock_tables::Selector;
use penstock_tables::tunnel::WORKER_SAS;
use tokio::sync::mpsc;

use super::configured::{Configured, Digest};
use super::connections::settings;
use super::shell::{Sa, Spis};
use crate::events::News;
use crate::gateway::Gateway;
use crate::publish::live::Child;

/// How long the machine may work at once: everything else of control waits meanwhile.
const BUDGET: Duration = Duration::from_millis(10);
/// How often sockets that are missing are tried again.
const FOLLOW: Duration = Duration::from_millis(100);
/// Ticks in which the counters of all SAs are looked at once: a second.
const ROUND: usize = 50;
/// How long the peers may take to answer that they forget us too.
const FAREWELL: Duration = Duration::from_secs(1);

impl Gateway {
    /// Lets the machine work, and does what it wants.
    pub(crate) fn negotiate<T>(
        &mut self,
        work: impl FnOnce(&mut Endpoint, Now, &mut dyn SpiSource, &mut Outputs) -> T,
    ) -> T {
        let now = self.ike.now();
        let mut outputs = Outputs::new();
        let result = work(&mut self.ike.endpoint, now, &mut Spis(&mut self.tables), &mut outputs);
        outputs.into_iter().for_each(|output| self.carry_out(output));
        result
    }

    /// Where the datagrams of peers come out; once.
    pub fn take_received(&mut self) -> Option<mpsc::Receiver<Datagram>> {
        self.ike.take_received()
    }

    /// Datagrams of peers: the first one, and more as long as there is time.
    pub fn received(&mut self, first: Datagram, more: &mut mpsc::Receiver<Datagram>) {
        let until = Instant::now() + BUDGET;
        let mut next = Some(first);
        while let Some(datagram) = next {
            // Without the data plane's memory there is no place for an SA; the peer asks again.
            if self.state.is_some() {
                self.negotiate(|endpoint, now, spis, out| endpoint.handle(now, &datagram, spis, out));
            }
            next = if Instant::now() < until { more.try_recv().ok() } else { None };
        }
    }

    /// What is due every few milliseconds.
    pub(crate) fn tick_ike(&mut self, news: &News) {
        if self.ike.connections.is_empty() && self.ike.sas.is_empty() {
            return;
        }
        let until = Instant::now() + BUDGET;
        self.follow_sockets();
        self.begin_connections(until);
        self.retry_switches();
        for slot in &news.tunnels {
            self.on_traffic(*slot);
        }
        for slot in &news.soft {
            self.on_soft_limit(*slot);
        }
        for (spi_in, source) in &news.moved {
            self.on_moved(*spi_in, *source);
        }
        while let Some(spi_in) = self.ike.lost.pop_front() {
            self.negotiate(|endpoint, now, spis, out| endpoint.rekey_child(now, spi_in, spis, out));
            if Instant::now() >= until {
                break;
            }
        }
        self.spread();
        self.tell_usage();
        let due = |gateway: &Gateway| {
            gateway.ike.endpoint.next_timeout().is_some_and(|at| at <= gateway.ike.now().at)
        };
        while due(self) {
            self.negotiate(|endpoint, now, spis, out| endpoint.poll(now, spis, out));
            if Instant::now() >= until {
                break;
            }
        }
    }

    fn follow_sockets(&mut self) {
        if self.ike.followed.is_some_and(|last| last.elapsed() < FOLLOW) {
            return;
        }
        self.ike.followed = Some(Instant::now());
        let wanted = self.ike.addresses();
        self.ike.problems = self.ike.sockets.follow(&wanted);
        // The addresses come with the twins, a moment after the start.
        let lasting = self.started.elapsed() >= Duration::from_secs(5);
        let problems = self.ike.problems.values().filter(|_| lasting).cloned().collect();
        self.note("ike", problems);
    }

    /// Tells the machine of connections whose sockets are open, and of the SAs that stand in the tables for them.
    fn begin_connections(&mut self, until: Instant) {
        for _ in 0..self.ike.waiting.len() {
            let Some(name) = self.ike.waiting.pop_front() else { return };
            let Some(local) = self.ike.connections.get(&name).map(|one| one.local) else { continue };
            if !self.ike.sockets.has(local) {
                self.ike.waiting.push_back(name);
                continue;
            }
            let Some(connection) = self.ike.connection(&name) else { continue };
            let children: Vec<Arc<str>> =
                connection.children.iter().map(|child| child.name.clone()).collect();
            let starting = connection.children.iter().filter(|child| child.start == Start::Now);
            let starting: Vec<Arc<str>> = starting.map(|child| child.name.clone()).collect();
            self.negotiate(|endpoint, now, _, _| endpoint.set_connection(now, connection));
            children.iter().for_each(|child| self.adopt_child(&name, child));
            // Where the IKE SA is up, it gets the children that are new; else it is begun in its turn.
            for child in &starting {
                self.negotiate(|endpoint, now, spis, out| endpoint.traffic(now, &name, child, spis, out));
            }
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// SAs that an earlier control negotiated carry the traffic until new ones do.
    fn adopt_child(&mut self, connection: &str, child: &Arc<str>) {
        let Some(live) = self.tunnels.get(child) else { return };
        let slot_of = |spi: u32| live.inbound.get(&spi).map(|sa| sa.tunnel);
        let selectors = |spi: u32| {
            let child = live.children().find(|one| Some(one.slot) == slot_of(spi));
            child.map(|one| (negotiable(&one.local), negotiable(&one.remote))).unwrap_or_default()
        };
        let sealing: Vec<(u32, u32)> =
            live.children().filter_map(|child| child.outbound.as_ref()).map(|sa| (sa.pair, sa.spi)).collect();
        // Those that seal come last: they are in use.
        let others = live.inbound.keys().filter(|spi| sealing.iter().all(|(pair, _)| pair != *spi));
        let mut found: Vec<(u32, u32)> = others.map(|spi| (*spi, 0)).collect();
        found.extend(sealing);
        let found: Vec<_> = found.into_iter().map(|spis| (spis, selectors(spis.0))).collect();
        for ((spi_in, spi_out), selectors) in found {
            if self.ike.sas.contains_key(&spi_in) {
                continue;
            }
            let adopted = self.negotiate(|endpoint, now, _, _| {
                endpoint.adopt(now, (connection, child), (spi_in, spi_out), selectors)
            });
            if adopted {
                let sa = Sa { tunnel: child.clone(), keys: None, usage: Usage::default() };
                self.ike.sas.insert(spi_in, sa);
                log::info!("IKE {connection}: adopted SA {spi_in:08x} of {child}");
                self.happened("adopted", Some(child), &format!("SA {spi_in:08x} of an earlier run"));
            }
        }
    }

    /// The data plane has a packet for a tunnel without a usable SA.
    fn on_traffic(&mut self, slot: u32) {
        let Some(name) = self.tunnels.name_of(slot) else { return };
        let Some((child, connection)) = self.ike.owners.get_key_value(name) else { return };
        let (child, connection) = (child.clone(), connection.clone());
        if !self.ike.held.contains(&child) {
            self.negotiate(|endpoint, now, spis, out| endpoint.traffic(now, &connection, &child, spis, out));
        }
    }

    /// The newest authentic packet of an SA came from elsewhere: the peer's NAT has another mapping now
    /// (RFC 7296 section 2.23).
    fn on_moved(&mut self, spi_in: u32, source: std::net::SocketAddr) {
        let known =
            self.negotiate(|endpoint, now, spis, out| endpoint.peer_moved(now, spi_in, source, spis, out));
        // Negotiated by an earlier control: no IKE SA is behind it yet.
        if !known {
            self.move_outer(spi_in, source);
        }
    }

    /// An outbound SA nears its last sequence number.
    fn on_soft_limit(&mut self, slot: u32) {
        let tunnel = self.tables.outbound_sa(slot).tunnel();
        let live = self.tunnels.name_of(tunnel).and_then(|name| self.tunnels.get(name));
        let live = live.filter(|live| live.is_negotiated());
        let sealing =
            live.and_then(|live| live.children().flat_map(Child::sealing).find(|sa| sa.slot == slot));
        if let Some(spi_in) = sealing.map(|sa| sa.pair) {
            self.negotiate(|endpoint, now, spis, out| endpoint.rekey_child(now, spi_in, spis, out));
        }
    }

    /// Where both sides want it, each worker gets an SA of its own once the shared one is there: from whoever began
    /// (RFC 9611 section 3).
    fn spread(&mut self) {
        while let Some(child) = self.ike.spread.pop_first() {
            let Some(one) = self.ike.connection_of(&child) else { continue };
            let config = one.connection.children.iter().find(|config| config.name == child);
            let wanted = config.map_or(1, |config| config.per_worker);
            let workers = self.state.as_ref().map_or(0, |state| state.workers().len()).min(WORKER_SAS);
            if wanted < 2 || workers < 2 {
                continue;
            }
            let connection = one.connection.name.clone();
            let status = self.ike.endpoint.connection(&connection);
            let begun = status
                .iter()
                .flat_map(|status| &status.ike)
                .any(|ike| ike.initiator && ike.children.iter().any(|one| one.name == child && one.sending));
            let has_own = |worker: u32| {
                let children = status.iter().flat_map(|status| &status.ike).flat_map(|ike| &ike.children);
                children.into_iter().any(|one| one.name == child && one.resource == Some(worker))
            };
            let lacking: Vec<u32> = (0..workers as u32).filter(|worker| begun && !has_own(*worker)).collect();
            for worker in lacking {
                self.negotiate(|endpoint, now, spis, out| {
                    endpoint.initiate_for_worker(now, &connection, &child, worker, spis, out);
                });
            }
        }
    }

    /// Tells the machine what SAs have carried, each once a second, where it is something new.
    fn tell_usage(&mut self) {
        let share = self.ike.round.len().div_ceil(ROUND);
        for _ in 0..share {
            let Some(spi_in) = self.ike.round.pop_front() else { return };
            let (Some(state), Some(sa)) = (&self.state, self.ike.sas.get_mut(&spi_in)) else { continue };
            self.ike.round.push_back(spi_in);
            let Some(live) = self.tunnels.get(&sa.tunnel) else { continue };
            let received = live.inbound.get(&spi_in).map(|one| one.traffic(state)).unwrap_or_default();
            let sealing = live.all_outbound().find(|one| one.pair == spi_in);
            let sent = sealing.map(|one| one.traffic(state)).unwrap_or_default();
            let usage = Usage {
                packets_in: received.packets,
                packets_out: sent.packets,
                bytes_in: received.bytes,
                bytes_out: sent.bytes,
            };
            if std::mem::replace(&mut sa.usage, usage) != usage {
                self.negotiate(|endpoint, now, spis, out| {
                    endpoint.child_traffic(now, spi_in, usage, spis, out);
                });
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(datagram) => self.ike.sockets.send(&datagram),
            Output::InstallInbound(sa) => self.install(sa),
            Output::SwitchOutbound { spi_in, .. } => self.switch(spi_in),
            Output::RemoveOutbound { spi_in, .. } => {
                self.ike.unswitched.remove(&spi_in);
                if let (Some(state), Some(sa)) = (&self.state, self.ike.sas.get_mut(&spi_in)) {
                    sa.keys = None;
                    self.tunnels.remove_outbound(&mut self.tables, state, &sa.tunnel, spi_in);
                }
            }
            Output::RemoveInbound { spi_in } => {
                let sa = self.ike.sas.remove(&spi_in);
                if let (Some(state), Some(sa)) = (&self.state, sa) {
                    self.dirty |= self.tunnels.remove_inbound(&mut self.tables, state, &sa.tunnel, spi_in);
                }
            }
            Output::UpdateOuter { spis_in, remote } => {
                for spi_in in spis_in {
                    self.move_outer(spi_in, remote);
                }
            }
            Output::LabKeys(keys) => self.ike.save_keys(&keys.line),
            Output::Event(event) => self.negotiation_happened(&event),
        }
    }

    fn install(&mut self, sa: Box<ChildSa>) {
        let Some(state) = &self.state else { return };
        let (spi_in, tunnel) = (sa.spi_in, sa.child.clone());
        if let Err(error) = self.tunnels.install_inbound(&mut self.tables, state, &sa) {
            log::error!("tunnel {tunnel}: SA {spi_in:08x} is not installed: {error}");
            return;
        }
        self.ike.sas.insert(spi_in, Sa { tunnel, keys: Some(sa), usage: Usage::default() });
        self.ike.round.push_back(spi_in);
    }

    fn switch(&mut self, spi_in: u32) {
        let (Some(state), Some(sa)) = (&self.state, self.ike.sas.get_mut(&spi_in)) else { return };
        let Some(keys) = sa.keys.take() else {
            self.tunnels.switch_back(&mut self.tables, &sa.tunnel, spi_in);
            return;
        };
        match self.tunnels.switch_to(&mut self.tables, state, &keys) {
            Ok(moved) => {
                self.ike.unswitched.remove(&spi_in);
                self.dirty |= moved;
                if keys.resource.is_none() && keys.replaces.is_none() {
                    self.ike.spread.insert(keys.child.clone());
                }
            }
            Err(error) => {
                if self.ike.unswitched.insert(spi_in) {
                    log::error!("tunnel {}: SA {spi_in:08x} cannot seal yet: {error}", sa.tunnel);
                }
                sa.keys = Some(keys);
            }
        }
    }

    /// Slots that were being given back are free a few milliseconds later.
    fn retry_switches(&mut self) {
        for spi_in in self.ike.unswitched.clone() {
            self.switch(spi_in);
        }
    }

    fn move_outer(&mut self, spi_in: u32, remote: std::net::SocketAddr) {
        let (Some(state), Some(sa)) = (&self.state, self.ike.sas.get_mut(&spi_in)) else { return };
        self.tunnels.expect_from(&self.tables, (&sa.tunnel, spi_in), remote);
        if let Some(keys) = &mut sa.keys {
            keys.outer.1 = remote.ip();
            if let Some(udp) = &mut keys.encapsulation {
                udp.remote_port = remote.port();
            }
            return;
        }
        let moved = self.tunnels.move_peer(&mut self.tables, state, (&sa.tunnel, spi_in), remote);
        match moved {
            Ok(()) => self.dirty = true,
            Err(error) => log::error!("tunnel {}: the peer moved to {remote}: {error}", sa.tunnel),
        }
    }

    /// SAs that stand in the tables no more, since the data plane's memory was lost, are made anew.
    pub(crate) fn renew_lost(&mut self) {
        let stands = |spi: &u32, sa: &Sa| {
            self.tunnels.get(&sa.tunnel).is_some_and(|live| live.inbound.contains_key(spi))
        };
        let lost = self.ike.sas.iter().filter(|(spi, sa)| !stands(spi, sa)).map(|(spi, _)| *spi).collect();
        self.ike.lost = lost;
    }

    /// Ends what `wanted` has no more, or otherwise: the IKE SA where the peer is described otherwise, else only the child.
    pub(crate) fn part_from(&mut self, wanted: &BTreeMap<Arc<str>, Configured>) {
        let (mut connections, mut children) = (Vec::new(), Vec::new());
        for (name, old) in &self.ike.connections {
            let Some(new) = wanted.get(name).filter(|new| new.peer == old.peer) else {
                connections.push(name.clone());
                continue;
            };
            let other = |(child, digest): &(&Arc<str>, &Digest)| new.children.get(*child) != Some(*digest);
            children.extend(old.children.iter().filter(other).map(|(child, _)| child.clone()));
        }
        for name in connections {
            self.negotiate(|endpoint, now, spis, out| endpoint.remove_connection(now, &name, spis, out));
            self.ike.connections.remove(&name);
        }
        for child in children {
            for spi_in in self.spis_of(&child) {
                self.negotiate(|endpoint, now, spis, out| endpoint.delete_child(now, spi_in, spis, out));
            }
        }
    }

    /// Has the machine follow `wanted`. What did not change is not touched.
    pub(crate) fn follow_connections(&mut self, wanted: BTreeMap<Arc<str>, Configured>) {
        self.ike.endpoint.set_settings(settings(&self.checked.config));
        let known = &self.ike.connections;
        let same =
            |name: &Arc<str>, new: &Configured| known.get(name).is_some_and(|old| old.whole == new.whole);
        let news: Vec<Arc<str>> =
            wanted.iter().filter(|(name, new)| !same(name, new)).map(|(name, _)| name.clone()).collect();
        self.ike.waiting.retain(|name| wanted.contains_key(name) && !news.contains(name));
        self.ike.waiting.extend(news);
        self.ike.set(wanted);
    }

    /// Closes every connection, and waits a moment for the peers.
    pub async fn close(&mut self, received: &mut mpsc::Receiver<Datagram>) {
        let until = Instant::now() + FAREWELL;
        let names: Vec<Arc<str>> = self.ike.connections.keys().cloned().collect();
        for name in names {
            self.negotiate(|endpoint, now, spis, out| endpoint.delete(now, &name, spis, out));
            if Instant::now() >= until {
                return;
            }
        }
        while self.ike.endpoint.counts().0 > 0 && Instant::now() < until {
            let next = tokio::time::timeout(Duration::from_millis(20), received.recv()).await;
            if let Ok(Some(datagram)) = next {
                self.received(datagram, received);
            }
            self.negotiate(|endpoint, now, spis, out| endpoint.poll(now, spis, out));
        }
    }
}

/// Ranges of a slot as IKEv2 has them.
fn negotiable(ranges: &[Selector]) -> Vec<TrafficSelector> {
    let address = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
    let one = |range: &Selector| TrafficSelector {
        start: address(range.first),
        end: address(range.last),
        ..TrafficSelector::any_v4()
    };
    ranges.iter().map(one).collect()
}
