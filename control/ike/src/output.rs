//! What the machine wants done. Enters: nothing. Leaves: datagrams to send, security associations to install, switch and
//! remove, and events, in the order in which the caller must do them.

use crate::crypto::{DirectionKey, EspChoice};
use crate::message::TrafficSelector;
use crate::reason::Failure;
use crate::time::Now;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where inbound SPIs come from: the data plane's table, whose slot an SPI's low bits are.
pub trait SpiSource {
    /// A free inbound SPI above 255, reserved until it is installed or released; None if the table is full.
    fn allocate(&mut self) -> Option<u32>;
    /// Gives back an SPI that was allocated and never installed.
    fn release(&mut self, spi: u32);
}

/// A datagram that came in or goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Our socket is the one for encapsulation (port 4500): IKE messages begin with four zero bytes, which are part of
    /// `bytes` in both directions (RFC 3948).
    pub encapsulated: bool,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// UDP encapsulation of ESP (RFC 3948).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulation {
    /// Our port.
    pub local_port: u16,
    /// The peer's port, behind its NAT.
    pub remote_port: u16,
    /// The peer is behind a NAT and we are not: authentic packets from elsewhere are followed
    /// ([`crate::Endpoint::peer_moved`]).
    pub follow: bool,
}

/// A child SA that has been negotiated, with its keys.
#[derive(Clone, Debug)]
pub struct ChildSa {
    /// Connection.
    pub connection: Arc<str>,
    /// Child within the connection.
    pub child: Arc<str>,
    /// The authenticated peer.
    pub peer: String,
    /// Inbound SPI, ours.
    pub spi_in: u32,
    /// Outbound SPI, the peer's.
    pub spi_out: u32,
    /// Outer addresses.
    pub outer: (IpAddr, IpAddr),
    /// UDP encapsulation, if any.
    pub encapsulation: Option<Encapsulation>,
    /// Our networks as negotiated.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's networks as negotiated.
    pub remote_ts: Vec<TrafficSelector>,
    /// Cipher, extended sequence numbers.
    pub esp: EspChoice,
    /// Key for what comes in.
    pub key_in: DirectionKey,
    /// Key for what goes out.
    pub key_out: DirectionKey,
    /// The inbound SPI of the SA that this one replaces.
    pub replaces: Option<u32>,
    /// The worker that the peer or we bound it to (RFC 9611).
    pub resource: Option<u32>,
}

/// Something to do, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send it.
    Send(Datagram),
    /// Install the SA for both directions, but send with it only after [`Output::SwitchOutbound`].
    InstallInbound(Box<ChildSa>),
    /// Send the child's traffic with this SA from now on.
    SwitchOutbound {
        /// Connection.
        connection: Arc<str>,
        /// Child.
        child: Arc<str>,
        /// The SA, by its inbound SPI.
        spi_in: u32,
        /// The SA's outbound SPI.
        spi_out: u32,
    },
    /// Do not send with this SA any more. If it was the last, the child's traffic is dropped, never sent clear.
    RemoveOutbound {
        /// The SA, by its inbound SPI.
        spi_in: u32,
        /// The SA's outbound SPI.
        spi_out: u32,
    },
    /// Remove the SA; nothing in flight is expected on it any more.
    RemoveInbound {
        /// Inbound SPI.
        spi_in: u32,
    },
    /// The peer's outer address changed: use the new one for these SAs.
    UpdateOuter {
        /// Inbound SPIs.
        spis_in: Vec<u32>,
        /// The peer's new address and port.
        remote: SocketAddr,
    },
    /// Keys of an IKE SA for a decryption table; only if the caller asked for it.
    LabKeys(Box<LabKeys>),
    /// Tell people and count.
    Event(Event),
}

/// Keys of an IKE SA in hexadecimal, as Wireshark's IKEv2 table wants them.
#[derive(Clone)]
pub struct LabKeys {
    /// One line of Wireshark's `ikev2_decryption_table`.
    pub line: String,
}

impl std::fmt::Debug for LabKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LabKeys(..)")
    }
}

/// The outputs of calls, in order.
pub type Outputs = Vec<Output>;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Negotiation begins.
    Initiating,
    /// An IKE SA is established.
    IkeUp,
    /// An IKE SA is gone.
    IkeDown,
    /// An IKE SA was replaced by a new one.
    IkeRekeyed,
    /// A child SA is established.
    ChildUp,
    /// A child SA is gone.
    ChildDown,
    /// A child SA was replaced by a new one.
    ChildRekeyed,
    /// A negotiation failed.
    Failed,
    /// A NAT was found on the way.
    NatFound,
    /// The peer's outer address changed.
    PeerMoved,
    /// A certificate expires soon.
    Warning,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 11] = [
        EventKind::Initiating,
        EventKind::IkeUp,
        EventKind::IkeDown,
        EventKind::IkeRekeyed,
        EventKind::ChildUp,
        EventKind::ChildDown,
        EventKind::ChildRekeyed,
        EventKind::Failed,
        EventKind::NatFound,
        EventKind::PeerMoved,
        EventKind::Warning,
    ];

    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            EventKind::Initiating => "initiating",
            EventKind::IkeUp => "ike-up",
            EventKind::IkeDown => "ike-down",
            EventKind::IkeRekeyed => "ike-rekeyed",
            EventKind::ChildUp => "child-up",
            EventKind::ChildDown => "child-down",
            EventKind::ChildRekeyed => "child-rekeyed",
            EventKind::Failed => "failed",
            EventKind::NatFound => "nat-found",
            EventKind::PeerMoved => "peer-moved",
            EventKind::Warning => "warning",
        }
    }
}

/// An event of a connection, or of the endpoint if `connection` is None.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Now,
    /// Connection.
    pub connection: Option<Arc<str>>,
    /// Child.
    pub child: Option<Arc<str>>,
    /// What.
    pub kind: EventKind,
    /// Why, for everything that is bad.
    pub failure: Option<Failure>,
    /// Names and values.
    pub text: String,
    /// How often it was caused by somebody who has not proved who he is, so by anybody; 0 for all else. The log sums
    /// such events up.
    pub strangers: u64,
}

impl Event {
    /// Whether the log shows both as one line.
    pub(crate) fn is_same_noise(&self, other: &Event) -> bool {
        let reason = |event: &Event| event.failure.as_ref().map(|failure| failure.reason);
        self.strangers > 0 && other.strangers > 0 && self.kind == other.kind && reason(self) == reason(other)
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.code())?;
        if let Some(child) = &self.child {
            write!(f, " {child}")?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        self.failure.as_ref().map_or(Ok(()), |x| write!(f, ": [{}] {x}", x.reason.code()))
    }
}
