//! The endpoint: all IKE SAs of a gateway. Enters: datagrams, the passage of time, the operator's and the data plane's
//! wishes. Leaves: [`Output`]s in the order in which they must be done. RFC 7296 sections 2.4, 2.6 and 2.8.

use crate::config::{Connection, Remote, Settings, Start};
use crate::connections::{Connections, Memory};
use crate::crypto::Rng;
use crate::exchange::{Task, What};
use crate::output::{Event, EventKind, Output, Outputs, SpiSource};
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, Effects, IkeSa, Path, State};
use crate::time::{Instant, Now};
use crate::tunnels::Tunnels;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// An IKE SA that the peer's INITIAL_CONTACT ends is deleted politely if it is younger than this: the two ends may have
/// started at the same time.
const SIMULTANEOUS: Duration = Duration::from_secs(60);
/// IKE SAs that one [`Endpoint::poll`] ticks at most, and connections that it begins: their public-key work takes a
/// millisecond each, and datagrams wait meanwhile.
const MOST_TICKS: usize = 256;
const MOST_BEGUN: usize = 16;

mod replacement;

use replacement::covers;

pub(crate) struct CookieSecret {
    pub(crate) version: u8,
    pub(crate) changed: Instant,
    pub(crate) secrets: [[u8; 32]; 2],
}

/// All IKE SAs of a gateway.
pub struct Endpoint {
    pub(crate) settings: Settings,
    pub(crate) rng: Box<Rng>,
    pub(crate) connections: Connections,
    pub(crate) memory: BTreeMap<Arc<str>, Memory>,
    pub(crate) sas: HashMap<u64, IkeSa>,
    /// Local SPIs of the IKE SAs of each connection.
    by_name: HashMap<Arc<str>, BTreeSet<u64>>,
    /// Connections by when they are tried again; what is not due any more is passed over.
    pub(crate) retries: BTreeSet<(Instant, Arc<str>)>,
    /// When each IKE SA wants to be ticked, both ways.
    deadlines: HashMap<u64, Instant>,
    timers: BTreeSet<(Instant, u64)>,
    /// Half-open IKE SAs by who began them, for repeated first requests.
    pub(crate) half_open: HashMap<(SocketAddr, u64), u64>,
    /// Child SAs' IKE SAs by inbound SPI.
    pub(crate) owners: HashMap<u32, u64>,
    /// Of those, how many there were after the last sweep.
    swept: usize,
    /// Inbound packets last seen per child SA.
    pub(crate) seen: HashMap<u32, u64>,
    pub(crate) tunnels: Tunnels,
    pub(crate) cookie: CookieSecret,
    pub(crate) refusals: (u64, u32),
    /// Events of the endpoint that belong to no connection, by reason.
    pub(crate) stray: BTreeMap<Reason, u64>,
    /// The sum of what every connection's memory counts.
    pub(crate) remembered: BTreeMap<Reason, u64>,
    expiry_checked: Option<u64>,
}

impl Endpoint {
    /// An endpoint without connections. `rng` must be the operating system's, or one seeded from it.
    pub fn new(settings: Settings, mut rng: Box<Rng>) -> Endpoint {
        let mut secrets = [[0; 32]; 2];
        secrets.iter_mut().for_each(|s| rng.fill_bytes(s));
        Endpoint {
            settings,
            rng,
            connections: Connections::default(),
            memory: BTreeMap::new(),
            sas: HashMap::new(),
            by_name: HashMap::new(),
            retries: BTreeSet::new(),
            swept: 0,
            deadlines: HashMap::new(),
            timers: BTreeSet::new(),
            half_open: HashMap::new(),
            owners: HashMap::new(),
            seen: HashMap::new(),
            tunnels: Tunnels::default(),
            cookie: CookieSecret { version: 0, changed: Instant::default(), secrets },
            refusals: (0, 0),
            stray: BTreeMap::new(),
            remembered: BTreeMap::new(),
            expiry_checked: None,
        }
    }

    // ---- configuration ----

    /// Adds a connection, or replaces the one of this name. What is up stays up and follows the new configuration at its
    /// next rekey, unless addresses, identities or secrets changed: then call [`Endpoint::remove_connection`] first.
    /// A connection that starts at once is due at the next [`Endpoint::poll`].
    pub fn set_connection(&mut self, now: Now, connection: Connection) {
        let connection = Arc::new(connection);
        let name = connection.name.clone();
        let starts = connection.children.iter().any(|c| c.start == Start::Now);
        self.connections.set(connection.clone());
        let memory = self.memory.entry(name.clone()).or_default();
        let mut up = false;
        // What is being closed closes as what it was.
        let lives = |s: &&mut IkeSa| {
            s.name().as_ref() == Some(&name) && !matches!(s.state, State::Closing | State::Dead)
        };
        for spi in self.by_name.get(&name).into_iter().flatten() {
            if let Some(sa) = self.sas.get_mut(spi).filter(lives) {
                sa.connection = Some(connection.clone());
                up = true;
            }
        }
        if starts && !up && !memory.held {
            memory.retry_at = Some(now.at);
            self.retries.insert((now.at, name));
        }
    }

    /// Removes a connection and closes what is up.
    pub fn remove_connection(&mut self, now: Now, name: &str, spis: &mut dyn SpiSource, out: &mut Outputs) {
        self.close(now, name, Reason::ConfigurationChanged, spis, out);
        self.tunnels.of_connection(name).into_iter().for_each(|s| self.tunnels.remove(out, s, None));
        self.connections.remove(name);
        let memory = self.memory.remove(name).unwrap_or_default();
        for (reason, n) in &memory.counts {
            *self.stray.entry(*reason).or_default() += n;
            *self.remembered.entry(*reason).or_default() -= n;
        }
    }

    /// Other settings, from the next exchange on; what they say about timers under way stays.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    // ---- time ----

    /// Does what is due, or a part of it: what is left is due at once, as [`Endpoint::next_timeout`] says.
    pub fn poll(&mut self, now: Now, spis: &mut dyn SpiSource, out: &mut Outputs) {
        for _ in 0..MOST_TICKS {
            let Some((_, spi)) = self.timers.first().copied().filter(|(at, _)| *at <= now.at) else { break };
            self.with_sa(now, spi, spis, out, |sa, ctx| sa.tick(ctx));
            // An SA that wants the same moment again would never let go: later, then.
            if self.deadlines.get(&spi).is_some_and(|t| *t <= now.at) {
                self.set_deadline(spi, Some(now.at + Duration::from_millis(10)));
            }
        }
        self.tunnels.poll(out, now.at);
        let mut begun = 0;
        while begun < MOST_BEGUN
            && let Some((at, name)) = self.retries.pop_first()
        {
            if at > now.at {
                self.retries.insert((at, name));
                break;
            }
            if self.memory.get(&name).is_some_and(|m| m.retry_at == Some(at)) {
                begun += 1;
                self.reconnect(now, &name, spis, out);
            }
        }
        self.warn_of_expiry(now, out);
    }

    /// The moment for the next [`Endpoint::poll`], if nothing comes before.
    pub fn next_timeout(&self) -> Option<Instant> {
        let first = self.timers.first().map(|t| t.0);
        let retry = self.retries.first().map(|(at, _)| *at);
        [first, retry, self.tunnels.next_timeout()].into_iter().flatten().min()
    }

    fn reconnect(&mut self, now: Now, name: &Arc<str>, spis: &mut dyn SpiSource, out: &mut Outputs) {
        let Some(memory) = self.memory.get_mut(name) else { return };
        memory.retry_at = None;
        let wanted = memory.wanted.clone();
        let Some(connection) = self.connections.get(name).cloned() else { return };
        let busy = |s: &IkeSa| matches!(s.state, State::Up | State::Connecting);
        if !self.sas_of(name).any(busy) && matches!(connection.remote, Remote::Address(_)) {
            self.connect(now, &connection, wanted, spis, out);
        }
    }

    pub(crate) fn connect(
        &mut self,
        now: Now,
        connection: &Arc<Connection>,
        mut wanted: Vec<Arc<str>>,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let Remote::Address(remote) = connection.remote else { return };
        for c in connection.children.iter().filter(|c| c.start == Start::Now) {
            if !wanted.contains(&c.name) {
                wanted.push(c.name.clone());
            }
        }
        let port = self.settings.ports.0;
        let local = SocketAddr::new(connection.local, port);
        let path = Path { local, remote: SocketAddr::new(remote, port), encapsulated: false };
        let from = out.len();
        let mut ctx = self.context(now, spis, out);
        let sa = IkeSa::initiate(&mut ctx, connection, path, wanted);
        if let Some(sa) = sa {
            self.put(sa);
        }
        self.record(from, out);
    }

    fn warn_of_expiry(&mut self, now: Now, out: &mut Outputs) {
        const DAY: u64 = 86_400;
        if self.expiry_checked.is_some_and(|t| now.unix_seconds < t + DAY) {
            return;
        }
        self.expiry_checked = Some(now.unix_seconds);
        for c in self.certificates() {
            let left = c.not_after.saturating_sub(now.unix_seconds);
            if left < 30 * DAY {
                let text = format!("{} {}", c.role, c.subject);
                let failure = Failure::new(Reason::ExpiryAhead, format!("in {} days", left / DAY));
                self.note(now, Some(c.connection), EventKind::Warning, Some(failure), text, out);
            }
        }
    }

    // ---- inside ----

    pub(crate) fn context<'a>(
        &'a mut self,
        now: Now,
        spis: &'a mut dyn SpiSource,
        out: &'a mut Outputs,
    ) -> Ctx<'a> {
        Ctx {
            now,
            rng: &mut *self.rng,
            spis,
            out,
            settings: &self.settings,
            connections: &self.connections,
            tunnels: &mut self.tunnels,
            effects: Effects::default(),
        }
    }

    pub(crate) fn established(&self, name: &str) -> Vec<u64> {
        self.sas_of(name).filter(|s| s.state == State::Up).map(IkeSa::local_spi).collect()
    }

    /// The IKE SAs of a connection.
    pub(crate) fn sas_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a IkeSa> {
        let known = self.by_name.get(name).into_iter().flatten().filter_map(|spi| self.sas.get(spi));
        known.filter(move |s| s.connection.as_ref().is_some_and(|c| &*c.name == name))
    }

    /// Works on one SA with everything else at hand, then does what that means for others.
    pub(crate) fn with_sa(
        &mut self,
        now: Now,
        spi: u64,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
        work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>),
    ) {
        let Some(mut sa) = self.sas.remove(&spi) else {
            return self.set_deadline(spi, None);
        };
        let from = out.len();
        let others = sa.state == State::Connecting && self.has_others(&sa);
        let mut ctx = self.context(now, spis, out);
        ctx.effects.others = others;
        work(&mut sa, &mut ctx);
        let effects = ctx.effects;
        if sa.state != State::HalfOpen && !sa.initiator {
            let of_it = (sa.path.remote, sa.spi_i);
            if self.half_open.remove(&of_it).is_none() {
                self.half_open.retain(|_, s| *s != spi);
            }
        }
        match sa.state {
            State::Dead => self.forget(&sa),
            _ => self.put(sa),
        }
        self.apply(now, spi, effects, spis, out);
        self.record(from, out);
    }

    /// Whether another IKE SA with this connection's peer exists or is about to.
    fn has_others(&self, sa: &IkeSa) -> bool {
        let Some(name) = sa.name() else { return false };
        let remote = sa.path.remote.ip();
        let adopted =
            sa.connection.iter().flat_map(|c| &c.children).any(|c| self.tunnels.has_adopted(&name, &c.name));
        adopted
            || self.half_open.keys().any(|(from, _)| from.ip() == remote)
            || self.sas_of(&name).any(|o| o.state == State::Up)
    }

    pub(crate) fn put(&mut self, sa: IkeSa) {
        let spi = sa.local_spi();
        self.set_deadline(spi, Some(sa.next_timeout(&self.settings)));
        sa.children.iter().for_each(|c| {
            self.owners.insert(c.spi_in, spi);
        });
        if let Some(name) = sa.name() {
            self.by_name.entry(name).or_default().insert(spi);
        }
        self.sas.insert(spi, sa);
        if self.owners.len() > 64 + 2 * self.swept {
            self.sweep();
        }
    }

    /// Forgets children that are gone.
    fn sweep(&mut self) {
        let live: std::collections::HashSet<u32> =
            self.sas.values().flat_map(|s| s.children.iter().map(|c| c.spi_in)).collect();
        self.owners.retain(|s, _| live.contains(s));
        self.seen.retain(|s, _| live.contains(s));
        self.swept = self.owners.len();
    }

    fn forget(&mut self, sa: &IkeSa) {
        let spi = sa.local_spi();
        self.set_deadline(spi, None);
        if let Some(name) = sa.name()
            && let Some(known) = self.by_name.get_mut(&name)
        {
            known.remove(&spi);
            if known.is_empty() {
                self.by_name.remove(&name);
            }
        }
    }

    fn set_deadline(&mut self, spi: u64, at: Option<Instant>) {
        let old = match at {
            Some(at) => self.deadlines.insert(spi, at),
            None => self.deadlines.remove(&spi),
        };
        if let Some(old) = old {
            self.timers.remove(&(old, spi));
        }
        self.timers.extend(at.map(|at| (at, spi)));
    }

    fn apply(&mut self, now: Now, spi: u64, effects: Effects, spis: &mut dyn SpiSource, out: &mut Outputs) {
        let mut kick = Vec::new();
        for sa in effects.spawned {
            kick.push(sa.local_spi());
            self.put(sa);
        }
        for (to, children, tasks) in effects.moves {
            self.follow_rekey(spi, to);
            self.set_children(now, to, children, tasks, out);
            kick.push(to);
        }
        for (victim, at) in effects.reap {
            if let Some(mut sa) = self.sas.remove(&victim) {
                (sa.reap_at, sa.state) = (Some(at), State::Rekeyed);
                self.put(sa);
            }
        }
        for k in kick {
            self.with_sa(now, k, spis, out, |sa, ctx| sa.next_task(ctx));
        }
        if let Some(contact) = effects.established {
            self.on_established(now, spi, contact, spis, out);
        }
        if let Some(wanted) = effects.replace {
            self.replace(now, spi, wanted, spis, out);
        }
        self.settle(now, spi);
        for (name, failure) in effects.ended {
            self.on_ended(now, &name, &failure);
        }
    }

    fn set_children(
        &mut self,
        now: Now,
        to: u64,
        children: Vec<crate::child::Child>,
        tasks: std::collections::VecDeque<Task>,
        out: &mut Outputs,
    ) {
        match self.sas.remove(&to) {
            Some(mut sa) => {
                sa.contested = false;
                sa.children.extend(children);
                sa.tasks.extend(tasks);
                self.put(sa);
            }
            None => {
                let end = Tunnels::drain_end(now.at, self.settings.drain);
                children.iter().for_each(|c| self.tunnels.remove(out, c.spi_in, end));
            }
        }
    }

    /// An IKE SA was authenticated: what becomes of the others with the same peer?
    fn on_established(
        &mut self,
        now: Now,
        spi: u64,
        contact: bool,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        let Some(new) = self.sas.get(&spi) else { return };
        let Some(name) = new.name() else { return };
        if let Some(memory) = self.memory.get_mut(&name) {
            (memory.failures, memory.retry_at) = (0, None);
        }
        self.give_up_others(now, spi, &name, spis, out);
        let Some(new) = self.sas.get(&spi) else { return };
        let (ours, nonce, id) = (new.initiator, new.nonce.clone(), new.peer_id.clone());
        let same = |s: &&IkeSa| s.local_spi() != spi && s.state == State::Up && s.peer_id == id;
        let others: Vec<u64> = self.sas_of(&name).filter(same).map(IkeSa::local_spi).collect();
        for other in others {
            let (Some(o), Some(new)) = (self.sas.get(&other), self.sas.get(&spi)) else { continue };
            if new.replaces == Some(other) {
                continue;
            }
            // One of two that have different children is not too many.
            let covered = covers(new, o);
            let fresh = now.at.since(o.established) < SIMULTANEOUS;
            let task = match (contact, o.initiator == ours) {
                (true, _) if !fresh => {
                    self.with_sa(now, other, spis, out, |sa, ctx| {
                        sa.fail(ctx, Reason::InitialContact.into())
                    });
                    continue;
                }
                (true, true) => (other, What::DeleteIke(Reason::InitialContact)),
                (false, _) if !covered => (other, What::Probe),
                // Begun from both ends: the one with the lowest nonce is closed by its initiator.
                (_, false) if nonce < o.nonce && ours => (spi, What::DeleteIke(Reason::Replaced)),
                (_, false) if nonce >= o.nonce && o.initiator => (other, What::DeleteIke(Reason::Replaced)),
                // The peer closes one of the two; if it has forgotten the old one, nobody does.
                (_, false) => (other, What::Probe),
                (false, true) if ours => (other, What::DeleteIke(Reason::Replaced)),
                // The peer began anew without saying so: is the old one still alive there?
                (false, true) => (other, What::Probe),
            };
            if let Some(old) = self.sas.get_mut(&other).filter(|_| task.0 == other) {
                old.superseded = true;
            }
            // Where the peer began, it has the new SA only once our answer is there; until then the old one carries the traffic.
            let at = if !ours && task.0 == other { now.at + self.settings.drain / 2 } else { now.at };
            self.with_sa(now, task.0, spis, out, |sa, ctx| {
                sa.queue(Task::new(at, task.1));
                sa.next_task(ctx);
            });
        }
    }

    /// A connection lost an IKE SA or did not get one: try again if it ought to be up.
    fn on_ended(&mut self, now: Now, name: &Arc<str>, failure: &Failure) {
        let Some(connection) = self.connections.get(name) else { return };
        let alive = self.sas_of(name).any(|s| matches!(s.state, State::Up | State::Connecting));
        let Some(memory) = self.memory.get_mut(name) else { return };
        if failure.reason == Reason::DeletedByPeer {
            // The peer's will; what starts by itself, or on traffic, comes back by that.
            memory.wanted.clear();
        }
        let starts = connection.children.iter().any(|c| c.start == Start::Now) || !memory.wanted.is_empty();
        let may = matches!(connection.remote, Remote::Address(_));
        if starts && may && !memory.held && failure.reason != Reason::Replaced && !alive {
            let at = memory.schedule(now.at, &self.settings);
            self.retries.insert((at, name.clone()));
        }
    }

    pub(crate) fn note(
        &mut self,
        at: Now,
        connection: Option<Arc<str>>,
        kind: EventKind,
        failure: Option<Failure>,
        text: String,
        out: &mut Outputs,
    ) {
        let from = out.len();
        // What fails outside of every SA was sent by anybody.
        let strangers = u64::from(kind == EventKind::Failed);
        out.push(Output::Event(Event { at, connection, child: None, kind, failure, text, strangers }));
        self.record(from, out);
    }

    /// Writes new events into the logs.
    pub(crate) fn record(&mut self, from: usize, out: &Outputs) {
        for output in out.get(from..).unwrap_or_default() {
            let Output::Event(event) = output else { continue };
            let up = event.strangers > 0
                && event.connection.as_ref().is_some_and(|n| self.sas_of(n).any(|sa| sa.state == State::Up));
            match event.connection.as_ref().and_then(|n| self.memory.get_mut(n)) {
                // A nested call has recorded it already.
                Some(memory) if memory.recorded.as_ref() == Some(event) => {}
                Some(memory) => {
                    memory.record(event, up, &self.settings);
                    if let Some(f) = &event.failure {
                        *self.remembered.entry(f.reason).or_default() += 1;
                    }
                }
                None => {
                    if let Some(f) = &event.failure {
                        *self.stray.entry(f.reason).or_default() += 1;
                    }
                }
            }
        }
    }
}
