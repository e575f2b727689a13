//! What the local socket tells of IKEv2: its SAs and their children, what happened, and why a tunnel is down. RFC 7296.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Why packets do not pass through a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyStatus {
    /// Its name.
    pub tunnel: String,
    /// Whether they do.
    pub up: bool,
    /// A stable code: `up`, `waiting`, a reason of `docs/reasons.md`, ...
    pub code: String,
    /// One or two lines for people.
    pub text: String,
    /// When it failed, in seconds since 1970.
    pub unix_seconds: Option<u64>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// A stable code: `ike-up`, `child-rekeyed`, `failed`, `applied`, `link-down`, ...
    pub event: String,
    /// The tunnel that owns the peer, or the tunnel itself; none where it is of the whole gateway.
    pub tunnel: Option<String>,
    /// The tunnel, where it is of one child and not of the IKE SA.
    pub child: Option<String>,
    /// A reason of `docs/reasons.md`, for what went wrong or ended.
    pub reason: Option<String>,
    /// For people.
    pub text: String,
    /// How often it happened, the last time at that moment: what strangers send is one line for each reason.
    pub times: u64,
}

/// One IKE SA.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IkeSaStatus {
    /// The tunnel that owns the peer.
    pub connection: String,
    /// `connecting`, `half-open`, `up`, `rekeyed`, `closing`.
    pub state: String,
    /// Whether this gateway began it.
    pub initiator: bool,
    /// SPI of the initiator, hexadecimal.
    pub spi_initiator: String,
    /// SPI of the responder, hexadecimal.
    pub spi_responder: String,
    /// Outer address and port of this gateway.
    pub local: SocketAddr,
    /// Outer address and port of the peer.
    pub remote: SocketAddr,
    /// Who the peer proved to be.
    pub identity: Option<String>,
    /// Cipher, integrity, PRF, key exchange.
    pub algorithms: Option<String>,
    /// Where addresses are translated: `none`, `here`, `peer`, `both`.
    pub nat: String,
    /// Since it was established.
    pub age_seconds: u64,
    /// Until it is replaced.
    pub rekey_in_seconds: u64,
    /// End of validity of the peer's certificate, in seconds since 1970.
    pub certificate_end: Option<u64>,
    /// Its child SAs.
    pub children: Vec<IkeChild>,
}

/// One child SA of an IKE SA.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IkeChild {
    /// Its tunnel.
    pub tunnel: String,
    /// Inbound SPI.
    pub spi_in: u32,
    /// Outbound SPI.
    pub spi_out: u32,
    /// Cipher, key exchange, extended sequence numbers.
    pub esp: String,
    /// Networks of this side as negotiated.
    pub local: Vec<String>,
    /// Networks of the peer as negotiated.
    pub remote: Vec<String>,
    /// Whether the tunnel seals with it.
    pub sending: bool,
    /// Since it was established.
    pub age_seconds: u64,
    /// Until it is replaced.
    pub rekey_in_seconds: u64,
    /// The worker that it belongs to (RFC 9611).
    pub worker: Option<u32>,
}

/// What IKEv2 knows of a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NegotiatedStatus {
    /// The tunnel that owns the peer.
    pub connection: String,
    /// `connecting`, `half-open`, `up`, `rekeyed`, `closing`; `retrying` or `waiting` where there is no IKE SA.
    pub state: String,
    /// Who the peer proved to be.
    pub identity: Option<String>,
    /// Algorithms of the IKE SA.
    pub ike: Option<String>,
    /// Algorithms of the child SA.
    pub esp: Option<String>,
    /// Where addresses are translated: `none`, `here`, `peer`, `both`.
    pub nat: String,
    /// Since the child SA was established.
    pub age_seconds: Option<u64>,
    /// Until the child SA is replaced.
    pub rekey_in_seconds: Option<u64>,
    /// The end of what is up, where a rekey was refused.
    #[serde(default)]
    pub refused: Option<RekeyRefused>,
    /// Until it is tried again.
    pub retry_in_seconds: Option<u64>,
    /// End of validity of the peer's certificate, in seconds since 1970.
    pub certificate_end: Option<u64>,
}

/// A rekey that was refused: the tunnel is up until its keys end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyRefused {
    /// Its tunnel.
    pub tunnel: String,
    /// A reason of `docs/reasons.md`.
    pub reason: String,
    /// `up until ..., then down: ...`, for people.
    pub text: String,
    /// When its keys end, in seconds since 1970.
    pub until_unix_seconds: u64,
}

/// End of validity of a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// The tunnel that owns the peer.
    pub tunnel: String,
    /// `local`, `ca` or `peer`.
    pub role: String,
    /// Subject.
    pub subject: String,
    /// In seconds since 1970.
    pub not_after: u64,
}

/// IKEv2 as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IkeSummary {
    /// IKE SAs, also those being set up by this gateway or replaced.
    pub sas: u64,
    /// Peers that began and are not authenticated yet.
    pub half_open: u64,
    /// Child SAs in use or draining.
    pub children: u64,
    /// Certificates in use that end within 30 days, or have ended.
    pub ending: Vec<CertificateEnd>,
    /// Tunnels whose rekey was refused, as long as nothing has taken the place of their SAs.
    #[serde(default)]
    pub refused: Vec<RekeyRefused>,
}
