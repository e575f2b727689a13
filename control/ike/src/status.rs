//! What people and metrics see: state, the last failure in a sentence, the log, certificates. Enters: nothing. Leaves:
//! plain values without keys.

use crate::auth::Identity;
use crate::config::{LocalAuth, RemoteAuth};
use crate::crypto::{EspChoice, IkeChoice};
use crate::endpoint::Endpoint;
use crate::message::TrafficSelector;
use crate::output::Event;
use crate::reason::{Reason, Refused};
use crate::sa::{IkeSa, State};
use crate::time::{Instant, Now};
use std::net::SocketAddr;
use std::sync::Arc;

/// An IKE SA.
#[derive(Clone, Debug)]
pub struct IkeStatus {
    /// `connecting`, `half-open`, `up`, `rekeyed`, `closing`.
    pub state: &'static str,
    /// SPIs of initiator and responder.
    pub spis: (u64, u64),
    /// We initiated it.
    pub initiator: bool,
    /// Algorithms.
    pub choice: Option<IkeChoice>,
    /// The authenticated peer.
    pub peer: Option<Identity>,
    /// Outer addresses.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// A NAT before us, before the peer.
    pub nat: (bool, bool),
    /// When it came up.
    pub established: Instant,
    /// When it will be replaced.
    pub rekey_at: Instant,
    /// Subject and end of validity of the peer's certificate, in seconds since 1970.
    pub peer_certificate: Option<(String, u64)>,
    /// Its rekey was refused, and nothing has taken its place yet.
    pub refused: Option<Refused>,
    /// Children.
    pub children: Vec<ChildStatus>,
}

/// A child SA.
#[derive(Clone, Debug)]
pub struct ChildStatus {
    /// Child's name.
    pub name: Arc<str>,
    /// Inbound and outbound SPI.
    pub spis: (u32, u32),
    /// Algorithms.
    pub esp: EspChoice,
    /// Our networks.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's.
    pub remote_ts: Vec<TrafficSelector>,
    /// The tunnel sends with it.
    pub sending: bool,
    /// When it came up.
    pub established: Instant,
    /// When it will be replaced.
    pub rekey_at: Instant,
    /// Its rekey was refused, and nothing has taken its place yet.
    pub refused: Option<Refused>,
    /// The worker it belongs to (RFC 9611).
    pub resource: Option<u32>,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Name.
    pub name: Arc<str>,
    /// At least one child is up.
    pub up: bool,
    /// IKE SAs, also those on their way in and out.
    pub ike: Vec<IkeStatus>,
    /// When it is tried again.
    pub retry_at: Option<Instant>,
    /// Failures so far by reason, for metrics.
    pub failures: Vec<(Reason, u64)>,
}

impl ConnectionStatus {
    /// The first end of what is up, where a rekey was refused: of this child or of any, or of the IKE SA that it is of.
    pub fn refused(&self, child: Option<&str>) -> Option<&Refused> {
        let of_it = |c: &&ChildStatus| c.sending && child.is_none_or(|name| &*c.name == name);
        let carrying = self.ike.iter().filter(|i| i.children.iter().any(|c| of_it(&c)));
        let found = carrying
            .flat_map(|i| i.refused.iter().chain(i.children.iter().filter(of_it).flat_map(|c| &c.refused)));
        found.min_by_key(|r| r.until_unix_seconds)
    }
}

/// Why a connection is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// A stable code: `up`, `waiting`, `negotiating`, or a [`Reason`]'s.
    pub code: &'static str,
    /// One or two lines.
    pub text: String,
    /// When the failure happened.
    pub at: Option<Now>,
}

/// A certificate's end of validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Connection that uses it.
    pub connection: Arc<str>,
    /// `local`, `ca` or `peer`.
    pub role: &'static str,
    /// Subject.
    pub subject: String,
    /// Seconds since 1970.
    pub not_after: u64,
}

impl Endpoint {
    /// Every connection's state.
    pub fn status(&self) -> Vec<ConnectionStatus> {
        self.connections.iter().map(|c| self.connection_status(&c.name)).collect()
    }

    /// A connection's state; None if there is no such connection.
    pub fn connection(&self, name: &str) -> Option<ConnectionStatus> {
        self.connections.get(name).map(|c| self.connection_status(&c.name))
    }

    fn connection_status(&self, name: &Arc<str>) -> ConnectionStatus {
        let ike: Vec<IkeStatus> = self.sas_of(name).map(|s| self.ike_status(s)).collect();
        let memory = self.memory.get(name);
        ConnectionStatus {
            name: name.clone(),
            up: ike.iter().any(|i| !i.children.is_empty()),
            ike,
            retry_at: memory.and_then(|m| m.retry_at),
            failures: memory.map(|m| m.counts.iter().map(|(r, n)| (*r, *n)).collect()).unwrap_or_default(),
        }
    }

    fn ike_status(&self, s: &IkeSa) -> IkeStatus {
        let state = match s.state {
            State::Connecting => "connecting",
            State::HalfOpen => "half-open",
            State::Up => "up",
            State::Rekeyed => "rekeyed",
            State::Closing | State::Dead => "closing",
        };
        let child = |c: &crate::child::Child| ChildStatus {
            name: c.config.name.clone(),
            spis: (c.spi_in, c.spi_out),
            esp: c.esp,
            local_ts: c.local_ts.clone(),
            remote_ts: c.remote_ts.clone(),
            sending: self.tunnels.is_current(c.spi_in),
            established: c.established,
            rekey_at: c.soft_at,
            refused: c.refused.clone(),
            resource: c.resource,
        };
        IkeStatus {
            state,
            spis: (s.spi_i, s.spi_r),
            initiator: s.initiator,
            choice: s.choice,
            peer: s.peer_id.clone(),
            local: s.path.local,
            remote: s.path.remote,
            nat: s.nat,
            established: s.established,
            rekey_at: s.soft_at,
            peer_certificate: s.peer_certificate.clone(),
            refused: s.refused.clone().filter(|_| s.state == State::Up && !s.retiring),
            children: s.children.iter().map(child).collect(),
        }
    }

    /// Why a connection is down, in one or two lines; None if there is no such connection.
    pub fn why(&self, name: &str) -> Option<Why> {
        let connection = self.connections.get(name)?;
        let memory = self.memory.get(name)?;
        let status = self.connection_status(&connection.name);
        if let Some(refused) = status.refused(None) {
            let (code, text) = (refused.failure.reason.code(), format!("{name} is {refused}"));
            return Some(Why { code, text, at: None });
        }
        let failed = memory.last_failure.as_ref();
        if status.up && failed.is_none() {
            return Some(Why { code: "up", text: format!("{name} is up"), at: None });
        }
        if let Some((at, failure)) = failed {
            let state = if status.up { "is up, but" } else { "is down:" };
            let text = format!("{name} {state} {failure}");
            return Some(Why { code: failure.reason.code(), text, at: Some(*at) });
        }
        let negotiating = status.ike.iter().any(|i| i.state == "connecting" || i.state == "half-open");
        let (code, text) = match negotiating {
            true => ("negotiating", format!("{name} is being set up")),
            false if memory.held => ("held", format!("{name} was taken down by the operator")),
            false => ("waiting", format!("{name} waits for traffic, the operator or the peer")),
        };
        Some(Why { code, text, at: None })
    }

    /// Pairs of networks of a child that no SA has anything of, while others of it have one: ours and the peer's.
    pub fn pairs_without_sa(&self, name: &str, child: &str) -> Vec<(TrafficSelector, TrafficSelector)> {
        let up = self.sas_of(name).filter(|s| s.state == State::Up);
        let of_it = |s: &&IkeSa| s.children.iter().any(|c| &*c.config.name == child);
        let Some(sa) = up.into_iter().find(of_it) else { return Vec::new() };
        let config = sa.connection.iter().flat_map(|c| &c.children).find(|c| &*c.name == child);
        config.map(|config| sa.pairs_without(config)).unwrap_or_default()
    }

    /// The last events of a connection, oldest first.
    pub fn log(&self, name: &str) -> Vec<Event> {
        self.memory.get(name).map(|m| m.log.iter().cloned().collect()).unwrap_or_default()
    }

    /// Failures and ends so far by reason, those of connections that are gone among them, for metrics.
    pub fn failures(&self) -> std::collections::BTreeMap<Reason, u64> {
        let mut sum = self.stray.clone();
        self.remembered.iter().for_each(|(reason, count)| *sum.entry(*reason).or_default() += count);
        sum
    }

    /// Failures and ends of one connection so far by reason, for metrics.
    pub fn failures_of(&self, name: &str) -> impl Iterator<Item = (Reason, u64)> {
        self.memory.get(name).into_iter().flat_map(|m| &m.counts).map(|(reason, count)| (*reason, *count))
    }

    /// When a child SA will be replaced, by its inbound SPI.
    pub fn child_rekey_at(&self, spi_in: u32) -> Option<Instant> {
        let sa = self.sas.get(self.owners.get(&spi_in)?)?;
        sa.children.iter().find(|child| child.spi_in == spi_in).map(|child| child.soft_at)
    }

    /// When the keys of a child SA end whose rekey, or whose IKE SA's, was refused, in seconds since 1970; by its inbound SPI.
    pub fn child_ends_at(&self, spi_in: u32) -> Option<u64> {
        let sa = self.sas.get(self.owners.get(&spi_in)?)?;
        let child = sa.children.iter().find(|child| child.spi_in == spi_in)?;
        let ends = [&child.refused, &sa.refused].into_iter().flatten();
        ends.map(|refused| refused.until_unix_seconds).min().filter(|_| !sa.retiring)
    }

    /// Refusals that belong to no connection, by reason, for metrics.
    pub fn stray_failures(&self) -> Vec<(Reason, u64)> {
        self.stray.iter().map(|(r, n)| (*r, *n)).collect()
    }

    /// Certificates in use and their ends of validity.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        self.connections.iter().flat_map(|c| self.certificates_of(&c.name)).collect()
    }

    /// Those that one connection uses.
    pub fn certificates_of(&self, name: &str) -> Vec<CertificateStatus> {
        let Some(c) = self.connections.get(name) else { return Vec::new() };
        let mut out = Vec::new();
        let entry = |role, subject: &str, not_after| CertificateStatus {
            connection: c.name.clone(),
            role,
            subject: subject.to_string(),
            not_after,
        };
        if let LocalAuth::Certificate(own) = &c.local_auth {
            out.push(entry("local", own.subject(), own.not_after()));
        }
        if let RemoteAuth::Certificate(store) = &c.remote_auth {
            out.extend(store.validity().iter().map(|(s, t)| entry("ca", s, *t)));
        }
        let of_peers = self.sas_of(&c.name).filter_map(|s| s.peer_certificate.as_ref());
        out.extend(of_peers.map(|(s, t)| entry("peer", s, *t)));
        out
    }

    /// IKE SAs, half-open ones among them, and installed or draining child SAs. All zero when nothing is left behind.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.sas.len(), self.half_open.len(), self.tunnels.len())
    }
}
