//! The words of the local socket: a [`Request`] enters as one line of JSON, a [`Response`] leaves as one. Server, client and
//! `--json` output share these types, so what a script reads is what stands here.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use penstock_tables::TwinReport;
use serde::{Deserialize, Serialize};

pub use super::ike::{
    CertificateEnd, IkeChild, IkeSaStatus, IkeSummary, LogEntry, NegotiatedStatus, RekeyRefused, WhyStatus,
};
pub use super::page::{MAX_ROWS, Page, Select};
pub use super::workers::WorkerStatus;
use crate::publish::live::{Refused, Traffic};
use crate::publish::rekey::Stepped;
use crate::publish::tunnels::Changes;
use crate::publish::watch::Unanswered;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The gateway as a whole.
    Status,
    /// Tunnels, by name.
    Tunnels {
        /// Which.
        #[serde(default)]
        select: Select,
    },
    /// Security associations, by tunnel.
    Sas {
        /// Only of this tunnel.
        #[serde(default)]
        tunnel: Option<String>,
        /// Which.
        #[serde(default)]
        select: Select,
    },
    /// The route table of the data plane, by address.
    Routes {
        /// Which.
        #[serde(default)]
        select: Select,
    },
    /// How frames ended, by name.
    Drops,
    /// Every port.
    Ports,
    /// Every worker.
    Workers,
    /// Read the configuration file again and make it so.
    Apply,
    /// Step the keys of every tunnel that has lab keys of a secret.
    RekeyAll {
        /// Those too whose peer may not have followed the last step.
        #[serde(default)]
        force: bool,
    },
    /// Replace the keys of a tunnel: negotiate new ones, or step its lab keys.
    Rekey {
        /// Name of the tunnel.
        tunnel: String,
        /// The generation to step to; the next one where it is not said. With lab keys only.
        #[serde(default)]
        generation: Option<u32>,
        /// Although the peer may not have followed the last step. With lab keys only.
        #[serde(default)]
        force: bool,
        /// The keys of the IKE SA instead.
        #[serde(default)]
        ike: bool,
    },
    /// Set a tunnel up.
    Initiate {
        /// Name of the tunnel.
        tunnel: String,
    },
    /// Take a tunnel down.
    Terminate {
        /// Name of the tunnel.
        tunnel: String,
        /// The IKE SA too, with all tunnels that share it.
        #[serde(default)]
        ike: bool,
    },
    /// Why packets do not pass through a tunnel.
    Why {
        /// Name of the tunnel.
        tunnel: String,
    },
    /// What happened lately, to the gateway or to one tunnel.
    Log {
        /// Name of the tunnel.
        #[serde(default)]
        tunnel: Option<String>,
        /// Only the last ones.
        #[serde(default)]
        lines: Option<usize>,
    },
    /// Every IKE SA.
    Ike {
        /// Only of this tunnel.
        #[serde(default)]
        tunnel: Option<String>,
    },
}

/// The answer to one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// What was asked for.
    Ok(Answer),
    /// A sentence that says what to do.
    Error(String),
}

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Tunnels`].
    Tunnels(Page<TunnelStatus>),
    /// To [`Request::Sas`].
    Sas(Page<SaStatus>),
    /// To [`Request::Routes`].
    Routes(Page<RouteStatus>),
    /// To [`Request::Drops`].
    Drops(Vec<Count>),
    /// To [`Request::Ports`].
    Ports(Vec<PortStatus>),
    /// To [`Request::Workers`].
    Workers(Vec<WorkerStatus>),
    /// To [`Request::Apply`].
    Applied(Applied),
    /// To [`Request::RekeyAll`].
    RekeyedAll(Stepped),
    /// To [`Request::Rekey`].
    Rekeyed {
        /// Name of the tunnel.
        tunnel: String,
        /// The generation that it seals with now.
        generation: u32,
    },
    /// To [`Request::Initiate`], [`Request::Terminate`], and [`Request::Rekey`] of negotiated keys: it was begun.
    Started {
        /// Name of the tunnel.
        tunnel: String,
        /// What was begun.
        what: String,
    },
    /// To [`Request::Why`].
    Why(WhyStatus),
    /// To [`Request::Log`], oldest first.
    Log(Vec<LogEntry>),
    /// To [`Request::Ike`].
    Ike(Vec<IkeSaStatus>),
}

/// The gateway as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Version of control.
    pub version: String,
    /// The configuration file.
    pub config: PathBuf,
    /// Process of control.
    pub pid: u32,
    /// Since control started, in seconds.
    pub uptime_seconds: u64,
    /// The data plane.
    pub dataplane: DataplaneStatus,
    /// Tunnels that are configured.
    pub tunnels: usize,
    /// Tunnels that have an SA and a way to their peer.
    pub tunnels_up: usize,
    /// Tunnels that are up, send, and get nothing back: the first eight.
    pub unanswered: Vec<String>,
    /// IKEv2, where a tunnel has it.
    pub ike: Option<IkeSummary>,
    /// Routes in the data plane.
    pub routes: usize,
    /// Frames since the data plane started.
    pub frames: Frames,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

/// The data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// Whether it runs.
    pub running: bool,
    /// Its process, of the last run where it does not.
    pub pid: Option<u32>,
    /// How often this control started it anew.
    pub restarts: u32,
    /// Its workers.
    pub workers: usize,
}

/// How frames ended: `received = sent + punted + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Taken from ports and twins.
    pub received: u64,
    /// Handed to a port.
    pub sent: u64,
    /// Handed to the kernel.
    pub punted: u64,
    /// All others; each has a name.
    pub dropped: u64,
}

/// One tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Its name.
    pub name: String,
    /// Whether packets pass.
    pub state: TunnelState,
    /// Outer address of this gateway.
    pub local: Ipv4Addr,
    /// Outer address of the other gateway.
    pub peer: Ipv4Addr,
    /// Name of its TUN.
    pub interface: Option<String>,
    /// Largest inner packet, in octets.
    pub inner_mtu: u16,
    /// Generation of its lab keys; 0 for fixed and for negotiated keys.
    pub generation: u32,
    /// Highest generation that the peer used.
    pub peer_generation: u32,
    /// What IKEv2 knows of it, where it negotiates the keys.
    pub ike: Option<NegotiatedStatus>,
    /// Sent, since this control knows the tunnel.
    pub sent: Traffic,
    /// Received, since this control knows the tunnel.
    pub received: Traffic,
    /// What its SAs refused.
    pub refused: Refused,
    /// Since when it is in its state, in seconds since 1970; at the earliest the start of control.
    pub state_since: u64,
    /// When it sent last, in seconds since 1970.
    pub last_sent: Option<u64>,
    /// When it received last, in seconds since 1970.
    pub last_received: Option<u64>,
    /// What it sent without an answer, where that is worth telling.
    pub unanswered: Option<Unanswered>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// Whether packets pass through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunnelState {
    /// They do.
    Up,
    /// It has no SA: they are dropped.
    NoSa,
    /// No route leads to the peer: they are dropped.
    NoRoute,
    /// The MAC address of the next hop towards the peer is not known: they are dropped.
    NoNeighbour,
}

impl TunnelState {
    /// Every state.
    pub const ALL: [TunnelState; 4] =
        [TunnelState::Up, TunnelState::NoSa, TunnelState::NoRoute, TunnelState::NoNeighbour];

    /// The word of metrics and JSON.
    pub fn code(self) -> &'static str {
        match self {
            TunnelState::Up => "up",
            TunnelState::NoSa => "no_sa",
            TunnelState::NoRoute => "no_route",
            TunnelState::NoNeighbour => "no_neighbour",
        }
    }

    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            TunnelState::Up => "up",
            TunnelState::NoSa => "no SA",
            TunnelState::NoRoute => "no route",
            TunnelState::NoNeighbour => "no neighbour",
        }
    }
}

/// One security association.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaStatus {
    /// Its tunnel.
    pub tunnel: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// SPI.
    pub spi: u32,
    /// Inbound SPI of the SA that was negotiated together with it; its own for an inbound one. 0 with lab keys.
    pub pair: u32,
    /// The worker that alone seals with it (RFC 9611), of an outbound SA.
    pub worker: Option<u32>,
    /// Its slot in the tables.
    pub slot: u32,
    /// Cipher, as the configuration calls it.
    pub cipher: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp: bool,
    /// Generation of its key; 0 for a fixed one.
    pub generation: u32,
    /// Last sequence number that was reserved (outbound) or opened (inbound).
    pub sequence: u64,
    /// Last sequence number that may be used, of an outbound SA.
    pub limit: Option<u64>,
    /// Replay window, in packets, of an inbound SA.
    pub window: Option<u32>,
    /// Replayed, too old, or with a wrong tag, in its slot; of an inbound SA.
    pub refused: Option<u64>,
    /// Since it was negotiated.
    pub age_seconds: Option<u64>,
    /// Until it is replaced, where IKEv2 does it.
    pub rekey_in_seconds: Option<u64>,
    /// What it carried since this control knows it.
    pub traffic: Traffic,
}

/// One route of the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Destination.
    pub prefix: String,
    /// Where it leads, in words.
    pub target: String,
}

/// A counter with its name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Count {
    /// The word of counters, metrics and command line.
    pub name: String,
    /// Frames since the data plane started.
    pub frames: u64,
    /// One line for people.
    pub meaning: String,
}

/// One port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name, which is also its twin's.
    pub name: String,
    /// The device as DPDK names it.
    pub device: String,
    /// DPDK's driver.
    pub driver: String,
    /// Whether the data plane has opened it.
    pub open: bool,
    /// Whether the link is up.
    pub link_up: bool,
    /// Link speed in Mbit/s, 0 where unknown.
    pub speed_mbit: u32,
    /// MAC address.
    pub mac: String,
    /// Addresses of the configuration.
    pub addresses: Vec<String>,
    /// Whether forwarded plaintext is kept off it.
    pub public: bool,
    /// Queue pairs.
    pub queues: u64,
    /// Largest IP packet, in octets.
    pub mtu: u64,
    /// Packets and octets received, as the device counts.
    pub received: Traffic,
    /// Packets and octets sent, as the device counts.
    pub sent: Traffic,
    /// Packets that no worker fetched in time.
    pub missed: u64,
    /// Packets that the device found damaged or lost for want of buffers.
    pub receive_errors: u64,
    /// Packets that the device failed to send.
    pub send_errors: u64,
    /// Packets that came in several segments and could not be joined: lost before they counted as received.
    pub multisegment: u64,
    /// What passed between the data plane and the port's twin, and was lost there.
    pub twin: TwinStatus,
    /// Packet buffers in use.
    pub buffers_in_use: u64,
    /// Those of them that hold frames between the workers and the kernel's twins.
    pub buffers_waiting: u64,
    /// How often the data plane has reported on the port since it opened it, ten times a second: two readings with the same
    /// number are one.
    pub reports: u64,
    /// Packet buffers.
    pub buffers: u64,
}

/// What passed between the data plane and a device of the kernel. What was punted ends as `to_kernel`, `detached` or
/// `refused`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TwinStatus {
    /// Frames that the kernel took.
    pub to_kernel: u64,
    /// Frames lost since the device was not there.
    pub detached: u64,
    /// Frames that the kernel did not take: the device is down, or its queue is full.
    pub refused: u64,
    /// Frames of the kernel that the data plane took.
    pub from_kernel: u64,
    /// Frames of the kernel lost for want of a packet buffer that holds them.
    pub no_frame: u64,
}

impl TwinStatus {
    /// Frames that died there, either way.
    pub fn lost(&self) -> u64 {
        self.detached + self.refused + self.no_frame
    }

    /// Each end of a frame with its count.
    pub fn by_end(&self) -> [(&'static str, u64); 5] {
        [
            ("to_kernel", self.to_kernel),
            ("detached", self.detached),
            ("refused", self.refused),
            ("from_kernel", self.from_kernel),
            ("no_frame", self.no_frame),
        ]
    }
}

impl From<TwinReport> for TwinStatus {
    fn from(report: TwinReport) -> TwinStatus {
        let TwinReport { to_kernel, detached, refused, from_kernel, no_frame, .. } = report;
        TwinStatus { to_kernel, detached, refused, from_kernel, no_frame }
    }
}

/// What a configuration that was read again did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// What it did to the tunnels.
    pub tunnels: Changes,
    /// What is allowed but odd about the file.
    pub warnings: Vec<String>,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_short_as_an_operator_would_type_it() {
        let request: Request = serde_json::from_str(r#"{"command":"rekey","tunnel":"a"}"#).expect("read");
        assert_eq!(
            request,
            Request::Rekey { tunnel: "a".into(), generation: None, force: false, ike: false }
        );
        assert!(serde_json::from_str::<Request>(r#"{"command":"reboot"}"#).is_err());
        let answer = Response::Ok(Answer::Rekeyed { tunnel: "a".into(), generation: 2 });
        assert_eq!(
            serde_json::to_string(&answer).expect("written"),
            r#"{"ok":{"rekeyed":{"tunnel":"a","generation":2}}}"#
        );
    }
}
