//! The protocol machine with its sockets, its clock, and what is known of each SA that it made. The configuration enters,
//! and what `drive` asks; the machine itself does the protocol (RFC 7296).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use penstock_ike::{
    ChildSa, Connection, Datagram, Endpoint, Event, EventKind, Now, Reason, SpiSource, Usage,
};
use penstock_tables::TablesWriter;
use tokio::sync::mpsc;

use super::configured::Configured;
use super::connections::settings;
use super::sockets::Sockets;
use crate::config::Config;

/// How often the process log tells of what strangers cause, for each tunnel and reason.
const NOISE: Duration = Duration::from_secs(60);
/// Events that are logged in a second; a flood of strangers is counted and not written down one by one.
const LINES: u32 = 200;

/// Why an IKE SA ends where nothing is wrong.
const MEANT: [Reason; 5] = [
    Reason::DeletedByPeer,
    Reason::DeletedByOperator,
    Reason::Replaced,
    Reason::InitialContact,
    Reason::ConfigurationChanged,
];

/// An SA that was negotiated, or found and adopted.
#[derive(Debug)]
pub(crate) struct Sa {
    /// Its tunnel, which is also the name of the child.
    pub tunnel: Arc<str>,
    /// Its keys, until the tunnel seals with it.
    pub keys: Option<Box<ChildSa>>,
    /// What it had carried when the machine was told last.
    pub usage: Usage,
}

/// IKEv2 of one gateway.
pub(crate) struct Ike {
    /// The protocol machine.
    pub endpoint: Endpoint,
    /// Its sockets.
    pub sockets: Sockets,
    /// What the file says, by name.
    pub connections: BTreeMap<Arc<str>, Configured>,
    /// The connection of each tunnel.
    pub owners: HashMap<Arc<str>, Arc<str>>,
    /// Connections that the machine does not know yet, since the sockets of their address are not open.
    pub waiting: VecDeque<Arc<str>>,
    /// Why they are not, by address.
    pub problems: BTreeMap<Ipv4Addr, String>,
    /// SAs by inbound SPI.
    pub sas: HashMap<u32, Sa>,
    /// Those whose counters are looked at next.
    pub round: VecDeque<u32>,
    /// Those that found no slot when the tunnel was to seal with them.
    pub unswitched: BTreeSet<u32>,
    /// Tunnels whose workers may get SAs of their own.
    pub spread: BTreeSet<Arc<str>>,
    /// Those that lost their numbers with the data plane's memory.
    pub lost: VecDeque<u32>,
    /// Children that the operator took down.
    pub held: BTreeSet<Arc<str>>,
    /// Rekeys so far: of IKE SAs, of child SAs.
    pub rekeys: (u64, u64),
    /// When the sockets were looked at last.
    pub followed: Option<Instant>,
    received: Option<mpsc::Receiver<Datagram>>,
    origin: Instant,
    save_keys: Option<PathBuf>,
    /// Second, lines in it, lines left out.
    logged: (u64, u32, u64),
    noise: Noise,
}

impl std::fmt::Debug for Ike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ike").field("connections", &self.connections.len()).finish_non_exhaustive()
    }
}

/// Inbound SPIs are slots of the tables.
pub(crate) struct Spis<'a>(pub &'a mut TablesWriter);

impl SpiSource for Spis<'_> {
    fn allocate(&mut self) -> Option<u32> {
        self.0.allocate_spi().ok()
    }

    fn release(&mut self, spi: u32) {
        self.0.release_spi(spi);
    }
}

/// What strangers caused: when each kind of it was told last, and how often it was not told since.
#[derive(Default)]
struct Noise(HashMap<NoiseKind, (Duration, u64)>);

/// Connection, what happened, why.
type NoiseKind = (Option<Arc<str>>, EventKind, Option<Reason>);

impl Noise {
    /// What is to be said behind an event; `None` where nothing is to be said of it now.
    fn sum_up(&mut self, event: &Event) -> Option<String> {
        if event.strangers == 0 {
            return Some(String::new());
        }
        let reason = event.failure.as_ref().map(|failure| failure.reason);
        let (now, key) = (event.at.at.0, (event.connection.clone(), event.kind, reason));
        let Some((told, more)) = self.0.get_mut(&key) else {
            self.0.insert(key, (now, 0));
            return Some(String::new());
        };
        if now.saturating_sub(*told) < NOISE {
            *more += 1;
            return None;
        }
        let said = if *more > 0 { format!(" ({more} more of this since)") } else { String::new() };
        (*told, *more) = (now, 0);
        Some(said)
    }
}

impl Ike {
    /// The machine without connections.
    pub fn new(config: &Config) -> Ike {
        let settings = settings(config);
        let (sockets, received) = Sockets::new(settings.ports);
        Ike {
            save_keys: config.ike.save_keys.clone().filter(|_| settings.export_keys),
            endpoint: Endpoint::new(settings, Box::new(UnwrapErr(SysRng))),
            sockets,
            connections: BTreeMap::new(),
            owners: HashMap::new(),
            waiting: VecDeque::new(),
            problems: BTreeMap::new(),
            sas: HashMap::new(),
            round: VecDeque::new(),
            unswitched: BTreeSet::new(),
            spread: BTreeSet::new(),
            lost: VecDeque::new(),
            held: BTreeSet::new(),
            rekeys: (0, 0),
            followed: None,
            received: Some(received),
            origin: Instant::now(),
            logged: (0, 0, 0),
            noise: Noise::default(),
        }
    }

    /// Where datagrams come out; once.
    pub fn take_received(&mut self) -> Option<mpsc::Receiver<Datagram>> {
        self.received.take()
    }

    /// The two clocks.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { at: penstock_ike::Instant(self.origin.elapsed()), unix_seconds: unix.as_secs() }
    }

    /// The connection of a tunnel.
    pub fn connection_of(&self, tunnel: &str) -> Option<&Configured> {
        self.connections.get(self.owners.get(tunnel)?)
    }

    /// The outer addresses that need sockets.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.connections.values().map(|one| one.local).collect()
    }

    /// Has the machine follow `wanted` from the next tick on. Connections that are new to it wait for their sockets.
    pub fn set(&mut self, wanted: BTreeMap<Arc<str>, Configured>) {
        self.owners = wanted
            .iter()
            .flat_map(|(name, one)| one.children.keys().map(|child| (child.clone(), name.clone())))
            .collect();
        self.connections = wanted;
        self.followed = None;
    }

    /// The connection that the machine is to be told of.
    pub fn connection(&self, name: &str) -> Option<Connection> {
        self.connections.get(name).map(|one| one.connection.clone())
    }

    /// Tells the process log of an event. Returns what is to be said behind it, unless it says nothing new.
    pub fn log(&mut self, event: &Event) -> Option<String> {
        match event.kind {
            EventKind::IkeRekeyed => self.rekeys.0 += 1,
            EventKind::ChildRekeyed => self.rekeys.1 += 1,
            _ => {}
        }
        let more = self.noise.sum_up(event)?;
        let second = event.at.at.0.as_secs();
        if self.logged.0 != second {
            if self.logged.2 > 0 {
                log::warn!("IKE: {} more events in one second", self.logged.2);
            }
            self.logged = (second, 0, 0);
        }
        self.logged.1 += 1;
        if self.logged.1 > LINES {
            self.logged.2 += 1;
            return None;
        }
        let name = event.connection.as_deref().unwrap_or("(no tunnel)");
        let meant = event.failure.as_ref().is_none_or(|failure| MEANT.contains(&failure.reason));
        let level = match event.kind {
            EventKind::Failed | EventKind::Warning => log::Level::Warn,
            EventKind::IkeDown if !meant => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(level, "IKE {name}: {event}{more}");
        Some(more)
    }

    /// Appends the keys of an IKE SA for Wireshark, in a laboratory.
    pub fn save_keys(&self, line: &str) {
        let Some(path) = &self.save_keys else { return };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
            log::warn!("{}: {error}: keys are not saved", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_cause_is_told_once_a_minute() {
        let mut noise = Noise::default();
        let mut said = |strangers, second| {
            let at = Now { at: penstock_ike::Instant(Duration::from_secs(second)), unix_seconds: second };
            let failure = Some(Reason::VersionMismatch.into());
            let (connection, kind) = (Some(Arc::from("a")), EventKind::Failed);
            noise.sum_up(&Event {
                at,
                connection,
                child: None,
                kind,
                failure,
                text: String::new(),
                strangers,
            })
        };
        assert_eq!((said(0, 0), said(0, 0)), (Some(String::new()), Some(String::new())));
        assert_eq!(said(1, 0).as_deref(), Some(""));
        assert!((0..60).all(|second| said(1, second).is_none()));
        assert_eq!(said(1, 60).as_deref(), Some(" (60 more of this since)"));
        assert_eq!(said(1, 61), None);
    }
}
