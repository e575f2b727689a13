//! Looks at tunnels, and gathers what metrics tell, in slices: control has other work in between, however many tunnels
//! there are. A scrape begun enters, a snapshot leaves.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use penstock_tables::StateView;
use tokio::sync::oneshot;

use super::{Snapshot, TunnelSample};
use crate::api::types::{Answer, Response, TunnelState};
use crate::gateway::Gateway;
use crate::publish::live::Live;
use crate::publish::watch::{Moment, Sight};

/// How long one slice may take: IKEv2 and the kernel's news wait meanwhile.
const SLICE: Duration = Duration::from_millis(2);
/// Tunnels between two looks at the clock.
const STEP: usize = 32;
/// How often each tunnel is looked at.
const ROUND: Duration = Duration::from_secs(1);

/// A scrape under way.
#[derive(Debug)]
pub struct Scrape {
    snapshot: Snapshot,
    replies: Vec<oneshot::Sender<Arc<Snapshot>>>,
    done: Done,
}

/// How far a scrape is.
#[derive(Debug)]
enum Done {
    /// Up to and with this tunnel.
    Tunnel(Option<String>),
    /// All tunnels, and the certificates up to and with this connection's.
    Connection(Option<Arc<str>>),
}

/// Where the round of looks at all tunnels is.
#[derive(Debug, Default)]
pub(crate) struct Round {
    begun: Option<Instant>,
    /// The last tunnel that was looked at; `None` between two rounds.
    last: Option<String>,
}

impl Gateway {
    /// The clocks.
    pub(crate) fn moment(&self) -> Moment {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment { up: self.started.elapsed(), unix: unix.as_secs() }
    }

    /// Looks at every tunnel once a second, some of them now.
    pub(crate) fn look_at_tunnels(&mut self) {
        let now = self.moment();
        let Some(counters) = &self.state else { return };
        if self.round.last.is_none() {
            if self.round.begun.is_some_and(|begun| begun.elapsed() < ROUND) {
                return;
            }
            self.round.begun = Some(Instant::now());
        }
        let until = Instant::now() + SLICE;
        let (lookup, neighbours) = (self.view.lookup(), &self.view.neighbours);
        let from = self.round.last.take();
        let from = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (count, (name, live)) in self.tunnels.watched(from).enumerate() {
            let ((sent, received), refused) = (live.traffic(counters), live.refused(counters));
            let state = match (live.outbound(), lookup.next_hop(live.peer())) {
                (None, _) => TunnelState::NoSa,
                (Some(_), None) => TunnelState::NoRoute,
                (Some(_), Some(hop)) if !neighbours.contains_key(&hop) => TunnelState::NoNeighbour,
                _ => TunnelState::Up,
            };
            if let Some(before) = live.watch.look(now, Sight { state, sent, received, refused }) {
                self.notices.tunnel_changed(name, before, state);
            }
            if count % STEP == STEP - 1 && Instant::now() >= until {
                self.round.last = Some(name.clone());
                return;
            }
        }
    }

    /// Begins a scrape.
    pub fn scrape(&self, replies: Vec<oneshot::Sender<Arc<Snapshot>>>) -> Scrape {
        let config = self.config();
        let snapshot = Snapshot {
            name: config.name.clone(),
            started: self.moment().unix.saturating_sub(self.started.elapsed().as_secs()),
            dataplane: self.state.as_ref().is_some_and(StateView::data_plane_lives),
            restarts: self.restarts.load(Ordering::Relaxed),
            routes: self.tables.routes().len(),
            applied: self.applied,
            states: TunnelState::ALL.map(|state| (state, 0)).into(),
            unanswered: 0,
            tunnels: config.metrics.tunnels.then(Vec::new),
            certificates: Vec::new(),
            ports: self.ports(),
            interfaces: self.interfaces(),
            workers: self.tallies(),
            events_lost: self.events.lost(),
            ike: self.ike_metrics(),
        };
        Scrape { snapshot, replies, done: Done::Tunnel(None) }
    }

    /// Goes on with a scrape for a moment. Returns it unless it is done, and answered then.
    pub fn scrape_on(&self, mut scrape: Scrape) -> Option<Scrape> {
        let until = Instant::now() + SLICE;
        let done = match scrape.done {
            Done::Tunnel(last) => self.scrape_tunnels(&mut scrape.snapshot, last, until),
            Done::Connection(last) => self.scrape_certificates(&mut scrape.snapshot, last, until),
        };
        match done {
            Some(done) => Some(Scrape { done, ..scrape }),
            None => {
                let snapshot = Arc::new(scrape.snapshot);
                scrape.replies.into_iter().for_each(|reply| drop(reply.send(snapshot.clone())));
                None
            }
        }
    }

    fn scrape_tunnels(&self, snapshot: &mut Snapshot, last: Option<String>, until: Instant) -> Option<Done> {
        let now = self.moment();
        let lives = self.state.as_ref().is_some_and(StateView::data_plane_lives);
        let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (count, (name, live)) in self.tunnels.from(from).enumerate() {
            let state = live.watch.state().unwrap_or(TunnelState::NoSa);
            let unanswered = lives && live.watch.unanswered(now).is_some();
            *snapshot.states.entry(state).or_default() += 1;
            snapshot.unanswered += u64::from(unanswered);
            if let Some(tunnels) = &mut snapshot.tunnels {
                let down = self.down_code(name, live, state, lives);
                tunnels.push(TunnelSample { down, unanswered, ..self.sample(name, live, now.unix) });
            }
            if count % STEP == STEP - 1 && Instant::now() >= until {
                return Some(Done::Tunnel(Some(name.clone())));
            }
        }
        Some(Done::Connection(None))
    }

    fn scrape_certificates(
        &self,
        snapshot: &mut Snapshot,
        last: Option<Arc<str>>,
        until: Instant,
    ) -> Option<Done> {
        let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let connections =
            self.ike.connections.range::<Arc<str>, _>((from, Bound::Unbounded)).map(|(name, _)| name);
        for (count, name) in connections.enumerate() {
            snapshot.certificates.extend(self.certificates_of(name));
            if count % STEP == STEP - 1 && Instant::now() >= until {
                return Some(Done::Connection(Some(name.clone())));
            }
        }
        None
    }

    /// What is told of one tunnel.
    fn sample(&self, name: &str, live: &Live, now: u64) -> TunnelSample {
        let traffic = self.state.as_ref().map(|state| (live.traffic(state), live.refused(state)));
        let ((sent, received), refused) = traffic.unwrap_or_default();
        let pair = live.outbound().map(|sa| sa.pair).filter(|_| live.is_negotiated());
        let rekey_at = pair.and_then(|spi_in| self.ike.endpoint.child_rekey_at(spi_in));
        let at = self.ike.now().at;
        TunnelSample {
            name: name.into(),
            since: live.watch.since,
            failures: self.ike.endpoint.failures_of(name).collect(),
            generation: live.generation,
            ends_at: pair.and_then(|spi_in| self.ike.endpoint.child_ends_at(spi_in)),
            rekey_at: rekey_at.map(|rekey| now + rekey.since(at).as_secs()),
            sent,
            received,
            last: (live.watch.last_sent, live.watch.last_received),
            unanswered_packets: live.watch.unanswered_packets(),
            refused,
            ..TunnelSample::default()
        }
    }

    /// The code that `why` has for a tunnel, where it is not up.
    fn down_code(&self, name: &str, live: &Live, state: TunnelState, lives: bool) -> Option<String> {
        let code = match state {
            _ if !lives => "no-data-plane",
            _ if live.problem.is_some() => "no-room",
            TunnelState::Up => return None,
            TunnelState::NoRoute => "no-route",
            TunnelState::NoNeighbour => "no-neighbour",
            TunnelState::NoSa if live.is_negotiated() => match self.why_not_negotiated(name, live) {
                Response::Ok(Answer::Why(why)) => return Some(why.code),
                _ => "no-sa",
            },
            TunnelState::NoSa => "no-sa",
        };
        Some(code.into())
    }
}
