//! The words of the local socket: a [`Request`] enters as one line of JSON, a [`Response`] leaves as one. Server, client and
//! `--json` output share these types, so what a script reads is what stands here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::page::{MAX_ROWS, Page, Select};
use crate::publish::live::Traffic;
use crate::publish::rekey::Stepped;
use crate::publish::tunnels::Changes;

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
    /// What happened to a tunnel lately.
    Log {
        /// Name of the tunnel.
        tunnel: String,
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

/// One event of IKEv2.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// A stable code: `ike-up`, `child-rekeyed`, `failed`, ...
    pub event: String,
    /// The tunnel, where it is of one child and not of the IKE SA.
    pub child: Option<String>,
    /// A reason of `docs/reasons.md`, for what went wrong or ended.
    pub reason: Option<String>,
    /// For people.
    pub text: String,
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
    /// Until it is tried again.
    pub retry_in_seconds: Option<u64>,
    /// End of validity of the peer's certificate, in seconds since 1970.
    pub certificate_end: Option<u64>,
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
    /// IKEv2, where a tunnel has it.
    pub ike: Option<IkeSummary>,
    /// Routes in the data plane.
    pub routes: usize,
    /// Frames since the data plane started.
    pub frames: Frames,
    /// What is not as it should be.
    pub problems: Vec<String>,
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
    /// What is wrong.
    pub problem: Option<String>,
}

/// Whether packets pass through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its index.
    pub worker: usize,
    /// The core that it is pinned to, where the configuration says so.
    pub core: Option<u16>,
    /// How its frames ended.
    pub frames: Frames,
    /// Cycles in loops that had frames, since it started.
    pub busy_cycles: u64,
    /// All its cycles.
    pub total_cycles: u64,
    /// Longest time between two polls since it started, in microseconds.
    pub longest_gap_micros: u64,
    /// The same of the last ten to twenty seconds.
    pub recent_gap_micros: u64,
    /// Loops.
    pub polls: u64,
    /// Loops that had frames.
    pub busy_polls: u64,
    /// Frames that it received and handed to other workers to be sealed or opened; they come back and are in `frames` then.
    pub handed: u64,
    /// Frames that it sealed or opened for other workers.
    pub helped: u64,
}

impl WorkerStatus {
    /// What it did since `earlier`; all where it was started anew in between. The gaps stay.
    #[must_use]
    pub fn since(&self, earlier: &WorkerStatus) -> WorkerStatus {
        let (now, then) = (&self.frames, &earlier.frames);
        let parts = || {
            Some(WorkerStatus {
                frames: Frames {
                    received: now.received.checked_sub(then.received)?,
                    sent: now.sent.checked_sub(then.sent)?,
                    punted: now.punted.checked_sub(then.punted)?,
                    dropped: now.dropped.checked_sub(then.dropped)?,
                },
                busy_cycles: self.busy_cycles.checked_sub(earlier.busy_cycles)?,
                total_cycles: self.total_cycles.checked_sub(earlier.total_cycles)?,
                polls: self.polls.checked_sub(earlier.polls)?,
                busy_polls: self.busy_polls.checked_sub(earlier.busy_polls)?,
                handed: self.handed.checked_sub(earlier.handed)?,
                helped: self.helped.checked_sub(earlier.helped)?,
                ..self.clone()
            })
        };
        parts().unwrap_or_else(|| self.clone())
    }

    /// Part of its cycles in loops that had frames, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        ratio(self.busy_cycles, self.total_cycles).unwrap_or(0.0)
    }

    /// Frames of a loop that had some.
    pub fn frames_per_burst(&self) -> Option<f64> {
        ratio(self.frames.received, self.busy_polls)
    }

    /// Cycles that a frame took.
    pub fn cycles_per_frame(&self) -> Option<f64> {
        ratio(self.busy_cycles, self.frames.received)
    }

    /// How many times the load the worker could carry, if a frame took as long: fuller bursts take less.
    pub fn headroom(&self) -> Option<f64> {
        ratio(self.total_cycles, self.busy_cycles)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
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

    #[test]
    fn a_worker_says_what_it_has_done_since() {
        let worker = |received, busy_cycles, total_cycles, busy_polls| WorkerStatus {
            worker: 0,
            core: None,
            frames: Frames { received, sent: received, ..Frames::default() },
            busy_cycles,
            total_cycles,
            longest_gap_micros: 9,
            recent_gap_micros: 3,
            polls: busy_polls * 2,
            busy_polls,
            handed: 0,
            helped: 0,
        };
        let since = worker(300, 50_000, 200_000, 15).since(&worker(100, 10_000, 100_000, 10));
        assert_eq!((since.frames.received, since.busy_share(), since.headroom()), (200, 0.4, Some(2.5)));
        assert_eq!((since.frames_per_burst(), since.cycles_per_frame()), (Some(40.0), Some(200.0)));
        assert_eq!((since.longest_gap_micros, since.recent_gap_micros), (9, 3));
        // Started anew in between: everything that it has done.
        assert_eq!(worker(5, 1, 2, 1).since(&worker(100, 1, 1, 1)).frames.received, 5);
        let idle = worker(0, 0, 0, 0);
        assert_eq!((idle.busy_share(), idle.headroom(), idle.frames_per_burst()), (0.0, None, None));
    }
}
