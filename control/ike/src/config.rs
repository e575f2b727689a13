//! What the operator decided about a tunnel, typed. Enters: the control process's parsed configuration. Leaves: what
//! the protocol machine reads. Nothing here is read from files.

use crate::auth::{Identity, IdentityPattern, LocalCertificate, SharedKey, TrustStore};
use crate::crypto::{EspProposal, IkeProposal};
use crate::message::TrafficSelector;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// One peer and the tunnels to it.
#[derive(Clone)]
pub struct Connection {
    /// Unique name.
    pub name: Arc<str>,
    /// Our address.
    pub local: IpAddr,
    /// Where the peer is, or may come from.
    pub remote: Remote,
    /// Who we say we are.
    pub local_id: Identity,
    /// Whom we accept.
    pub remote_id: IdentityPattern,
    /// How we prove it.
    pub local_auth: LocalAuth,
    /// What proof we accept.
    pub remote_auth: RemoteAuth,
    /// IKE proposals, best first.
    pub ike: Vec<IkeProposal>,
    /// Tunnels; at least one.
    pub children: Vec<Arc<ChildConfig>>,
    /// Lifetime of the IKE SA before it is rekeyed and after which it is gone.
    pub lifetime: Lifetime,
    /// Silence after which the peer is probed; None: never.
    pub dpd: Option<Duration>,
    /// Encapsulate in UDP although no NAT was found.
    pub force_encapsulation: bool,
    /// Largest UDP payload of an IKE message before it is fragmented (RFC 7383); None: never fragment.
    pub fragment_bytes: Option<usize>,
}

/// The peer's side of the outer addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// One address; we may initiate.
    Address(IpAddr),
    /// Any address in the network; only the peer initiates.
    Network(TrafficSelector),
}

impl Remote {
    /// Whether a peer at this address may be meant.
    pub fn accepts(&self, address: IpAddr) -> bool {
        match self {
            Remote::Address(a) => *a == address,
            Remote::Network(n) => n.contains_address(address),
        }
    }
}

/// How we prove who we are.
#[derive(Clone)]
pub enum LocalAuth {
    /// A pre-shared key.
    Psk(SharedKey),
    /// A certificate and its key.
    Certificate(Box<LocalCertificate>),
}

/// What proof we accept from the peer.
#[derive(Clone)]
pub enum RemoteAuth {
    /// A pre-shared key.
    Psk(SharedKey),
    /// A certificate of one of these CAs.
    Certificate(Arc<TrustStore>),
}

/// When a child is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At once, and again whenever it goes down.
    Now,
    /// When the data plane has a packet for it.
    OnTraffic,
    /// When the peer or the operator does it.
    Wait,
}

/// Limits after which an SA is replaced (soft) and gone (hard).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Hard limit.
    pub hard: Duration,
    /// Replaced this long before the hard limit, or up to twice as long: the jitter is drawn per SA.
    pub margin: Duration,
    /// Replaced after this many bytes in one direction.
    pub soft_bytes: Option<u64>,
    /// Replaced after this many packets in one direction.
    pub soft_packets: Option<u64>,
}

impl Lifetime {
    /// A lifetime of `hard` with a margin of a tenth.
    pub fn of(hard: Duration) -> Lifetime {
        Lifetime { hard, margin: hard / 10, soft_bytes: None, soft_packets: None }
    }
}

/// One tunnel: a pair of selector lists and its ESP proposals.
#[derive(Clone, Debug)]
pub struct ChildConfig {
    /// Unique name within the connection.
    pub name: Arc<str>,
    /// Our networks; for a responder also the range that the peer may narrow.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's networks; for a responder also the range that the peer may choose from.
    pub remote_ts: Vec<TrafficSelector>,
    /// ESP proposals, best first.
    pub esp: Vec<EspProposal>,
    /// Lifetime of each SA.
    pub lifetime: Lifetime,
    /// When it is set up.
    pub start: Start,
    /// How many SAs for the same selectors, one per worker (RFC 9611); 1 is the ordinary case.
    pub per_worker: u16,
}

/// Settings of the whole endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// First retransmission after this long; each further one after `backoff_percent` of the previous wait.
    pub retransmit_first: Duration,
    /// Growth of the wait, per cent (180 is RFC-like back-off).
    pub backoff_percent: u32,
    /// Longest wait.
    pub retransmit_max: Duration,
    /// Transmissions of a request before the peer counts as dead.
    pub transmissions: u32,
    /// Half-open IKE SAs above which an initiator must return a cookie.
    pub cookie_threshold: usize,
    /// Half-open IKE SAs above which new ones are refused.
    pub max_half_open: usize,
    /// A half-open IKE SA that does not go on is dropped after this long.
    pub half_open_timeout: Duration,
    /// Inbound SAs are kept for this long after they were replaced.
    pub drain: Duration,
    /// First and longest wait before a failed connection is tried again.
    pub reconnect: (Duration, Duration),
    /// Interval of NAT keepalives.
    pub keepalive: Duration,
    /// Events kept per connection.
    pub log_events: usize,
    /// UDP ports of IKE, plain and with encapsulation: 500 and 4500.
    pub ports: (u16, u16),
    /// Ranges of addresses that an SA has on each side at most, those that touch taken as one: what the data plane holds.
    pub ranges: usize,
    /// Give out IKE SAs' keys for a decryption table. Only for laboratories.
    pub export_keys: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            retransmit_first: Duration::from_millis(500),
            backoff_percent: 180,
            retransmit_max: Duration::from_secs(15),
            transmissions: 8,
            cookie_threshold: 64,
            max_half_open: 4096,
            half_open_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            reconnect: (Duration::from_secs(1), Duration::from_secs(60)),
            keepalive: Duration::from_secs(20),
            log_events: 64,
            ports: (500, 4500),
            ranges: 16,
            export_keys: false,
        }
    }
}

impl Settings {
    /// The wait after the `n`-th transmission (from 0).
    pub fn wait(&self, n: u32) -> Duration {
        let factor = (f64::from(self.backoff_percent) / 100.0).max(1.0).powi(n.min(64) as i32);
        Duration::try_from_secs_f64(self.retransmit_first.as_secs_f64() * factor)
            .unwrap_or(self.retransmit_max)
            .min(self.retransmit_max)
    }

    /// From a request's first transmission until the peer counts as dead.
    pub fn retransmission_limit(&self) -> Duration {
        (0..self.transmissions).map(|n| self.wait(n)).sum()
    }
}

/// What is wrong with a set of connections, as `check` reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two tunnels claim the same traffic.
    #[error(
        "tunnels {first} and {second} overlap: both send {selector} to their peer; make the networks disjoint"
    )]
    Overlap {
        /// Connection/child.
        first: String,
        /// Connection/child.
        second: String,
        /// The common part of the remote networks.
        selector: String,
    },
    /// A name is used twice.
    #[error("the name {0} is used twice")]
    DuplicateName(String),
    /// A list is empty.
    #[error("{0}: {1} is empty")]
    Empty(String, &'static str),
    /// Limits contradict each other.
    #[error("{0}: the rekey margin must be shorter than half the lifetime")]
    Margin(String),
    /// Start needs an address.
    #[error("{0}: starts by itself, but the peer's address is a network; give its address or `start: wait`")]
    StartWithoutAddress(String),
}

/// Checks connections against each other: names, empty lists, lifetimes, overlapping and duplicate selectors. Route-based
/// tunnels (0.0.0.0/0, ::/0 on both sides) may overlap: routes choose among them.
pub fn check(connections: &[Connection]) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let mut claims: Vec<(String, &ChildConfig)> = Vec::new();
    for c in connections {
        if names.contains(&&*c.name) {
            errors.push(ConfigError::DuplicateName(c.name.to_string()));
        }
        names.push(&c.name);
        check_one(c, &mut errors);
        claims.extend(c.children.iter().map(|child| (format!("{}/{}", c.name, child.name), &**child)));
    }
    for (i, (second, b)) in claims.iter().enumerate() {
        for (first, a) in &claims[..i] {
            if let Some(selector) = overlap(a, b) {
                errors.push(ConfigError::Overlap { first: first.clone(), second: second.clone(), selector });
            }
        }
    }
    errors
}

fn check_one(c: &Connection, errors: &mut Vec<ConfigError>) {
    let mut empty = |is: bool, what| {
        if is {
            errors.push(ConfigError::Empty(c.name.to_string(), what));
        }
    };
    empty(c.ike.is_empty(), "the list of IKE proposals");
    empty(c.children.is_empty(), "the list of children");
    for child in &c.children {
        empty(child.esp.is_empty(), "the list of ESP proposals");
        empty(child.local_ts.is_empty() || child.remote_ts.is_empty(), "a list of networks");
    }
    for (i, child) in c.children.iter().enumerate() {
        if c.children[..i].iter().any(|o| o.name == child.name) {
            errors.push(ConfigError::DuplicateName(format!("{}/{}", c.name, child.name)));
        }
        if child.lifetime.margin * 2 >= child.lifetime.hard {
            errors.push(ConfigError::Margin(format!("{}/{}", c.name, child.name)));
        }
        if child.start != Start::Wait && !matches!(c.remote, Remote::Address(_)) {
            errors.push(ConfigError::StartWithoutAddress(format!("{}/{}", c.name, child.name)));
        }
    }
    if c.lifetime.margin * 2 >= c.lifetime.hard {
        errors.push(ConfigError::Margin(c.name.to_string()));
    }
}

fn overlap(a: &ChildConfig, b: &ChildConfig) -> Option<String> {
    let route_based = |c: &ChildConfig| {
        c.local_ts.iter().chain(&c.remote_ts).all(|t| t.as_network().is_some_and(|n| n.1 == 0))
    };
    if route_based(a) || route_based(b) {
        return None;
    }
    crate::message::intersect(&a.local_ts, &b.local_ts).first()?;
    crate::message::intersect(&a.remote_ts, &b.remote_ts).first().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::connection;

    #[test]
    fn waits_grow_up_to_the_limit() {
        let s = Settings::default();
        assert_eq!(s.wait(0), Duration::from_millis(500));
        assert_eq!(s.wait(1), Duration::from_millis(900));
        assert_eq!(s.wait(60), s.retransmit_max);
        assert!(
            s.retransmission_limit() > Duration::from_secs(40)
                && s.retransmission_limit() < Duration::from_secs(90)
        );
    }

    #[test]
    fn overlapping_duplicate_and_empty_are_named() {
        let a = connection("a", "192.0.2.1", "192.0.2.2", "10.1.0.0/16", "10.2.0.0/16");
        let b = connection("b", "192.0.2.1", "192.0.2.3", "10.1.0.0/16", "10.2.3.0/24");
        let c = connection("c", "192.0.2.1", "192.0.2.4", "0.0.0.0/0", "0.0.0.0/0");
        assert_eq!(check(&[a.clone(), c.clone()]), []);
        let errors = check(&[a.clone(), b]);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].to_string().contains("a/net and b/net overlap: both send 10.2.3.0/24"),
            "{}",
            errors[0]
        );
        assert!(check(&[a.clone(), a.clone()]).contains(&ConfigError::DuplicateName("a".into())));
        let mut d = a;
        d.children.clear();
        d.ike.clear();
        d.lifetime.margin = d.lifetime.hard;
        assert_eq!(check(&[d]).len(), 3);
    }
}
