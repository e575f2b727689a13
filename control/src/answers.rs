//! What clients and metrics are told: the gateway as it stands enters, the types of the local interface leave.

use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::atomic::Ordering;

use ipnet::Ipv4Net;
use penstock_tables::adjacency::Unresolved;
use penstock_tables::worker::Tally;
use penstock_tables::{Adjacency, Cipher, Hop, Note, Prefix, StateView, TablesWriter, Verdict};

use crate::api::types::{
    Answer, Count, DataplaneStatus, Frames, Page, PortStatus, Request, Response, RouteStatus, SaStatus,
    Select, Status, TunnelState, TunnelStatus, TwinStatus, WorkerStatus,
};
use crate::gateway::Gateway;
use crate::publish::live::{Live, Traffic};
use crate::publish::routes::Lookup;

impl Gateway {
    /// Answers one request.
    pub fn answer(&mut self, request: &Request) -> Response {
        match request {
            Request::Status => Response::Ok(Answer::Status(Box::new(self.status()))),
            Request::Tunnels { select } => {
                Response::Ok(Answer::Tunnels(Page::of(self.tunnels(select), select.limit)))
            }
            Request::Sas { tunnel, select } => self.sas(tunnel.as_deref(), select),
            Request::Routes { select } => self.routes(select),
            Request::Drops => Response::Ok(Answer::Drops(self.drops())),
            Request::Ports => Response::Ok(Answer::Ports(self.ports())),
            Request::Workers => Response::Ok(Answer::Workers(self.workers())),
            Request::Apply => match self.apply() {
                Ok(applied) => Response::Ok(Answer::Applied(applied)),
                Err(error) => Response::Error(error),
            },
            Request::Rekey { tunnel, generation, force, ike } => {
                let negotiated = self.tunnels.get(tunnel).is_some_and(Live::is_negotiated);
                match negotiated || *ike {
                    true => self.rekey_negotiated(tunnel, *ike),
                    false => self.rekey(tunnel, *generation, *force),
                }
            }
            Request::Initiate { tunnel } => self.initiate(tunnel),
            Request::Terminate { tunnel, ike } => self.terminate(tunnel, *ike),
            Request::Why { tunnel } => self.with_losses(tunnel, self.why(tunnel)),
            Request::Log { tunnel, lines } => self.log_of(tunnel.as_deref(), *lines),
            Request::Ike { tunnel } => self.ike_sas(tunnel.as_deref()),
            Request::RekeyAll { force } => self.rekey_all(*force),
        }
    }

    fn rekey(&mut self, name: &str, generation: Option<u32>, force: bool) -> Response {
        let Some(state) = &self.state else { return Response::Error(NO_DATA_PLANE.into()) };
        match self.tunnels.step(&mut self.tables, state, name, generation, force) {
            Ok(generation) => Response::Ok(Answer::Rekeyed { tunnel: name.into(), generation }),
            Err(error) => Response::Error(error.to_string()),
        }
    }

    fn rekey_all(&mut self, force: bool) -> Response {
        let Some(state) = &self.state else { return Response::Error(NO_DATA_PLANE.into()) };
        match self.tunnels.step_all(&mut self.tables, state, force) {
            Ok(stepped) => Response::Ok(Answer::RekeyedAll(stepped)),
            Err(error) => Response::Error(error.to_string()),
        }
    }

    fn status(&self) -> Status {
        let config = self.config();
        let lives = self.state.as_ref().is_some_and(StateView::data_plane_lives);
        let lookup = self.view.lookup();
        let now = self.moment();
        let silent = self.tunnels.iter().filter(|(_, live)| live.watch.unanswered(now).is_some());
        let states = self.tunnels.iter().map(|(_, live)| self.state_of(live, &lookup));
        let mut total = Tally::default();
        self.tallies().iter().for_each(|tally| total.add(tally));
        let mut problems: Vec<String> = self.failures.iter().cloned().collect();
        if !lives {
            problems.insert(0, NO_DATA_PLANE.into());
        }
        Status {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            config: self.checked.file.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            dataplane: DataplaneStatus {
                running: lives,
                pid: self.state.as_ref().map(StateView::pid),
                restarts: self.restarts.load(Ordering::Relaxed),
                workers: self.state.as_ref().map_or(0, |state| state.workers().len()),
            },
            tunnels: config.tunnels.len(),
            tunnels_up: states.filter(|state| *state == TunnelState::Up).count(),
            unanswered: silent.map(|(name, _)| name.clone()).take(UNANSWERED).collect(),
            ike: self.ike_summary(),
            routes: self.tables.routes().len(),
            frames: frames(&total),
            problems,
        }
    }

    fn state_of(&self, live: &Live, lookup: &Lookup<'_>) -> TunnelState {
        match live.outbound() {
            None => TunnelState::NoSa,
            Some(_) => self.path_by(lookup, live.peer()),
        }
    }

    fn path_by(&self, lookup: &Lookup<'_>, peer: Ipv4Addr) -> TunnelState {
        match lookup.next_hop(peer) {
            None => TunnelState::NoRoute,
            Some(hop) if !self.view.neighbours.contains_key(&hop) => TunnelState::NoNeighbour,
            Some(_) => TunnelState::Up,
        }
    }

    /// The tunnels that `select` means, by name.
    fn tunnels(&self, select: &Select) -> impl Iterator<Item = (String, TunnelStatus)> {
        let after = select.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let chosen = self.tunnels.from(after).filter(move |(name, live)| chosen(name, live, select));
        let (lookup, mut negotiated) = (self.view.lookup(), self.negotiated());
        let now = self.moment();
        chosen.map(move |(name, live)| {
            let (sent, received) = match &self.state {
                Some(state) => live.traffic(state),
                None => (Traffic::default(), Traffic::default()),
            };
            let spec = live.spec();
            let status = TunnelStatus {
                name: name.clone(),
                state: self.state_of(live, &lookup),
                local: live.plan.local,
                peer: live.peer(),
                interface: (!spec.interface.is_empty()).then(|| spec.interface.clone()),
                inner_mtu: spec.inner_mtu,
                generation: live.generation,
                peer_generation: live.peer_generation,
                ike: negotiated.remove(name),
                sent,
                received,
                refused: live.watch.refused(),
                state_since: live.watch.since,
                last_sent: live.watch.last_sent,
                last_received: live.watch.last_received,
                unanswered: live.watch.unanswered(now),
                problem: live.problem.clone(),
            };
            (name.clone(), status)
        })
    }

    /// The SAs that are meant, by tunnel. A row is called by its tunnel's name and its place among that tunnel's.
    fn sas(&self, only: Option<&str>, select: &Select) -> Response {
        if let Some(name) = only.filter(|name| self.tunnels.get(name).is_none()) {
            return Response::Error(format!("there is no tunnel {name}: `penstock show tunnels` lists them"));
        }
        let Some(state) = &self.state else { return Response::Error(NO_DATA_PLANE.into()) };
        let (begin, seen) = match select.after.as_deref().map(|after| (after, after.rsplit_once('#'))) {
            None => (Bound::Unbounded, None),
            Some((after, None)) => (Bound::Excluded(after), None),
            Some((_, Some((name, place)))) => {
                (Bound::Included(name), Some((name, place.parse().unwrap_or(0))))
            }
        };
        let shown = self
            .tunnels
            .from(begin)
            .filter(|(name, live)| only.is_none_or(|only| only == *name) && chosen(name, live, select));
        let rows = shown.flat_map(|(name, live)| {
            let skipped = seen.filter(|(last, _)| last == name).map_or(0, |(_, place): (_, usize)| place);
            let places = sas_of(name, live, &self.tables, state).into_iter().enumerate().skip(skipped);
            places.map(move |(place, sa)| (format!("{name}#{}", place + 1), sa))
        });
        let mut page = Page::of(rows, select.limit);
        let ages = self.ages();
        for sa in page.rows.iter_mut().filter(|sa| sa.pair != 0) {
            let (age, left) = ages.get(&sa.pair).copied().unzip();
            (sa.age_seconds, sa.rekey_in_seconds) = (age, left);
        }
        Response::Ok(Answer::Sas(page))
    }

    /// The routes that are meant, by address.
    fn routes(&self, select: &Select) -> Response {
        if select.peer.is_some() {
            return Response::Error("routes have no peer: select them by --match or --prefix".into());
        }
        let after = match select.after.as_deref().map(str::parse::<Ipv4Net>) {
            None => Bound::Unbounded,
            Some(Ok(net)) => Bound::Excluded(Prefix::new(net.network().to_bits(), net.prefix_len())),
            Some(Err(_)) => return Response::Error("expected a prefix behind --after, as 10.0.0.0/8".into()),
        };
        let adjacencies: std::collections::HashMap<u32, Result<Adjacency, Unresolved>> =
            self.tables.adjacencies().collect();
        let wanted =
            select.prefix.map(|net| net.0).map(|net| Prefix::new(net.network().to_bits(), net.prefix_len()));
        let overlaps =
            |prefix: &Prefix| wanted.is_none_or(|wanted| wanted.contains(*prefix) || prefix.contains(wanted));
        let all = self.tables.routes().range((after, Bound::Unbounded));
        let rows = all.filter(|(prefix, _)| overlaps(prefix)).filter_map(|(prefix, hop)| {
            let prefix = format!("{}/{}", Ipv4Addr::from_bits(prefix.address), prefix.len);
            let target = self.words(*hop, &adjacencies);
            let meant = select.matching.as_deref().is_none_or(|text| target.contains(text));
            meant.then(|| (prefix.clone(), RouteStatus { prefix, target }))
        });
        Response::Ok(Answer::Routes(Page::of(rows, select.limit)))
    }

    /// A hop as people say it.
    fn words(
        &self,
        hop: Hop,
        adjacencies: &std::collections::HashMap<u32, Result<Adjacency, Unresolved>>,
    ) -> String {
        let port = |index: usize| {
            self.config().ports.keys().nth(index).cloned().unwrap_or_else(|| index.to_string())
        };
        match hop {
            Hop::None => "none".into(),
            Hop::Local => "this gateway".into(),
            Hop::Discard => "discard".into(),
            Hop::Glean(index) => format!("port {} (on link)", port(index as usize)),
            Hop::Tunnel(slot) => format!("tunnel {}", self.tunnels.name_of(slot).unwrap_or("?")),
            Hop::Adjacency(index) => match adjacencies.get(&index) {
                Some(Ok(next)) => format!("port {} {}", port(usize::from(next.port)), mac(next.mac)),
                Some(Err(next)) => {
                    let address = Ipv4Addr::from_bits(next.address);
                    format!("port {} via {address} (unresolved)", port(usize::from(next.port)))
                }
                None => "gone".into(),
            },
        }
    }

    pub(crate) fn tallies(&self) -> Vec<Tally> {
        self.state
            .as_ref()
            .map_or_else(Vec::new, |state| state.workers().iter().map(|worker| worker.read()).collect())
    }

    fn drops(&self) -> Vec<Count> {
        let mut total = Tally::default();
        self.tallies().iter().for_each(|tally| total.add(tally));
        let count = |verdict: Verdict| Count {
            name: verdict.name().into(),
            frames: total.of(verdict),
            meaning: verdict.describe().into(),
        };
        Verdict::drops().map(count).chain(self.outside()).collect()
    }

    /// Losses that no worker saw: they are not part of its sum.
    fn outside(&self) -> impl Iterator<Item = Count> {
        let ports = self.ports();
        let (mut detached, mut refused, mut no_frame) = (0, 0, 0);
        for twin in ports.iter().map(|port| port.twin).chain([self.interfaces()]) {
            (detached, refused, no_frame) =
                (detached + twin.detached, refused + twin.refused, no_frame + twin.no_frame);
        }
        let multisegment = ports.iter().map(|port| port.multisegment).sum();
        let all = [
            ("twin_detached", detached, "Punted (and counted so), then lost: the twin or interface had gone"),
            (
                "twin_refused",
                refused,
                "Punted (and counted so), then not taken by the kernel: the device is down, or its queue is full",
            ),
            (
                "twin_no_frame",
                no_frame,
                "Sent by the kernel, lost before it counted as received: no packet buffer was free, or none is so long",
            ),
            (
                "rx_multisegment",
                multisegment,
                "Lost before it counted as received: longer than a packet buffer, in several that could not be joined",
            ),
        ];
        all.into_iter().map(|(name, frames, meaning)| Count {
            name: name.into(),
            frames,
            meaning: meaning.into(),
        })
    }

    /// What passed the interfaces of all tunnels, and was lost there.
    pub(crate) fn interfaces(&self) -> TwinStatus {
        self.state.as_ref().map(|state| state.twin(None).get().into()).unwrap_or_default()
    }

    pub(crate) fn ports(&self) -> Vec<PortStatus> {
        let config = self.config();
        let public = config.public_ports();
        let reports: Vec<_> =
            self.state.iter().flat_map(|state| state.ports().iter().map(|port| port.get())).collect();
        let status = |(index, (name, port)): (usize, (&String, &crate::config::Port))| {
            let report = reports.get(index).cloned().flatten();
            let open = report.is_some();
            let report = report.unwrap_or_default();
            PortStatus {
                name: name.clone(),
                device: port.device.clone(),
                driver: report.driver,
                open,
                link_up: report.link_up,
                speed_mbit: report.speed_mbit,
                mac: mac(report.mac),
                addresses: port.addresses.iter().map(ToString::to_string).collect(),
                public: public[index],
                queues: report.queues,
                mtu: report.mtu,
                received: Traffic { packets: report.rx_packets, bytes: report.rx_bytes },
                sent: Traffic { packets: report.tx_packets, bytes: report.tx_bytes },
                missed: report.rx_missed,
                receive_errors: report.rx_errors + report.rx_no_buffer,
                send_errors: report.tx_errors,
                multisegment: report.rx_multisegment,
                twin: self
                    .state
                    .as_ref()
                    .map(|state| state.twin(Some(index)).get().into())
                    .unwrap_or_default(),
                buffers_in_use: report.pool_in_use,
                buffers_waiting: report.pool_waiting,
                reports: report.reports,
                buffers: report.pool_size,
            }
        };
        config.ports.iter().enumerate().map(status).collect()
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let hz = self.state.as_ref().map_or(0, StateView::tsc_hz);
        let micros =
            |cycles: u64| (u128::from(cycles) * 1_000_000).checked_div(u128::from(hz)).unwrap_or(0) as u64;
        let cores = &self.config().dataplane.cores;
        let status = |(worker, tally): (usize, Tally)| WorkerStatus {
            worker,
            core: cores.get(worker).copied(),
            frames: frames(&tally),
            busy_cycles: tally.busy_cycles,
            total_cycles: tally.total_cycles,
            longest_gap_micros: micros(tally.worst_gap),
            recent_gap_micros: micros(tally.recent_gap),
            polls: tally.polls,
            busy_polls: tally.busy_polls,
            handed: tally.noted(Note::Handed),
            helped: tally.noted(Note::Helped),
        };
        self.tallies().into_iter().enumerate().map(status).collect()
    }
}

/// Whether `select` means this tunnel.
fn chosen(name: &str, live: &Live, select: &Select) -> bool {
    let Select { matching, peer, prefix, .. } = select;
    let spec = live.spec();
    let overlaps = |net: &Ipv4Net| {
        let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
        let mut all = spec.local.iter().chain(&spec.remote);
        all.any(|own| own.first <= last && first <= own.last)
    };
    matching.as_deref().is_none_or(|text| name.contains(text))
        && peer.is_none_or(|peer| live.peer() == peer)
        && prefix.as_ref().is_none_or(|prefix| overlaps(&prefix.0))
}

/// Tunnels without an answer that `status` names at most.
const UNANSWERED: usize = 8;

pub(crate) const NO_DATA_PLANE: &str = "the data plane does not run: start it, or see its messages";

fn frames(tally: &Tally) -> Frames {
    Frames {
        received: tally.received,
        sent: tally.of(Verdict::Sent),
        punted: tally.of(Verdict::Punted),
        dropped: Verdict::drops().map(|verdict| tally.of(verdict)).sum(),
    }
}

fn sas_of(name: &str, live: &Live, tables: &TablesWriter, state: &StateView) -> Vec<SaStatus> {
    let form = &live.plan.form;
    let common = |direction: &str, spi, slot, generation, sequence, traffic| SaStatus {
        tunnel: name.into(),
        direction: direction.into(),
        spi,
        pair: 0,
        worker: None,
        slot,
        cipher: String::new(),
        esn: form.esn,
        udp: form.udp,
        generation,
        sequence,
        limit: None,
        window: None,
        refused: None,
        age_seconds: None,
        rekey_in_seconds: None,
        traffic,
    };
    // What was negotiated differs from SA to SA, so it is read where it stands.
    let outbound = live.all_outbound().map(|sa| {
        let stands = tables.outbound_sa(sa.slot);
        SaStatus {
            limit: Some(sa.granted),
            pair: sa.pair,
            worker: sa.worker,
            cipher: cipher(tables.outbound_key(sa.slot).cipher()),
            esn: stands.esn(),
            udp: stands.udp(),
            ..common("outbound", sa.spi, sa.slot, sa.generation, sa.sequence(state), sa.traffic(state))
        }
    });
    let udp = live.outbound().map_or(form.udp, |sa| tables.outbound_sa(sa.slot).udp());
    let inbound = live.inbound.iter().map(|(key, sa)| {
        let (replayed, failed) = state.inbound(sa.slot).refusals();
        let (pair, generation) = if live.is_negotiated() { (sa.spi, 0) } else { (0, *key) };
        SaStatus {
            window: Some(form.window),
            refused: Some(replayed + failed),
            pair,
            cipher: cipher(tables.inbound_key(sa.slot).cipher()),
            esn: tables.inbound_sa(sa.slot).esn(),
            udp,
            ..common("inbound", sa.spi, sa.slot, generation, sa.sequence(state), sa.traffic(state))
        }
    });
    outbound.chain(inbound).collect()
}

fn cipher(cipher: Option<Cipher>) -> String {
    match cipher {
        Some(Cipher::Aes128Gcm16) => "aes128gcm16",
        Some(Cipher::Aes256Gcm16) => "aes256gcm16",
        Some(Cipher::ChaCha20Poly1305) => "chacha20poly1305",
        None => "none",
    }
    .into()
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}
