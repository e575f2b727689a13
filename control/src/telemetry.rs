//! Prometheus metrics: a snapshot of counters enters, text in one of two formats leaves.

mod collect;
pub mod series;
pub mod text;

use std::collections::BTreeMap;
use std::io::{self, Write};

use penstock_ike::Reason;
use penstock_tables::worker::Tally;
use penstock_tables::{Note, Verdict};

use crate::api::types::{CertificateEnd, PortStatus, TunnelState, TwinStatus};
use crate::ike::IkeMetrics;
use crate::publish::live::{Refused, Traffic};
pub(crate) use collect::Round;
pub use collect::Scrape;
use series as s;
use text::{Format, Writer};

/// Everything that is told.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Name of the gateway.
    pub name: String,
    /// When control started, in seconds since 1970.
    pub started: u64,
    /// Whether the data plane runs.
    pub dataplane: bool,
    /// Starts of the data plane after its first.
    pub restarts: u32,
    /// Routes in the data plane.
    pub routes: usize,
    /// What became of configurations that were read.
    pub applied: AppliedTimes,
    /// Tunnels by state.
    pub states: BTreeMap<TunnelState, u64>,
    /// Tunnels that send and get nothing back.
    pub unanswered: u64,
    /// Each tunnel; `None` where that is switched off.
    pub tunnels: Option<Vec<TunnelSample>>,
    /// Certificates in use.
    pub certificates: Vec<CertificateEnd>,
    /// The ports.
    pub ports: Vec<PortStatus>,
    /// The interfaces of all tunnels together.
    pub interfaces: TwinStatus,
    /// The workers.
    pub workers: Vec<Tally>,
    /// Hints of workers that were overwritten unread.
    pub events_lost: u64,
    /// IKEv2.
    pub ike: IkeMetrics,
}

/// What became of configurations that were read, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppliedTimes {
    /// When one was read last.
    pub last: u64,
    /// When one was applied last.
    pub last_good: u64,
    /// Whether the last one was.
    pub good: bool,
}

/// One tunnel.
#[derive(Debug, Default)]
pub struct TunnelSample {
    /// Its name.
    pub name: String,
    /// Since when it is in its state, in seconds since 1970.
    pub since: u64,
    /// Why it is not up.
    pub down: Option<String>,
    /// Failures of its connection, where it is the one that owns it.
    pub failures: Vec<(Reason, u64)>,
    /// Generation of its lab keys; 0 where it has none.
    pub generation: u32,
    /// When its keys are replaced, in seconds since 1970.
    pub rekey_at: Option<u64>,
    /// When its keys end, where a rekey was refused, in seconds since 1970.
    pub ends_at: Option<u64>,
    /// Sent.
    pub sent: Traffic,
    /// Received.
    pub received: Traffic,
    /// When it sent and received last, in seconds since 1970.
    pub last: (Option<u64>, Option<u64>),
    /// Packets that were sent since one was received.
    pub unanswered_packets: u64,
    /// Whether that is worth telling.
    pub unanswered: bool,
    /// What its SAs refused.
    pub refused: Refused,
}

impl Snapshot {
    /// Writes everything.
    ///
    /// # Errors
    /// Where nobody reads any more.
    pub fn write(&self, format: Format, out: impl Write) -> io::Result<()> {
        let mut out = Writer::new(out, format);
        out.family(&s::INFO, [([env!("CARGO_PKG_VERSION"), &self.name], 1)])?;
        out.single(&s::START_TIME, self.started)?;
        out.single(&s::APPLY_GOOD, self.applied.good.into())?;
        out.single(&s::APPLY_TIME, self.applied.last)?;
        out.single(&s::APPLY_GOOD_TIME, self.applied.last_good)?;
        out.single(&s::DATAPLANE_UP, self.dataplane.into())?;
        out.single(&s::DATAPLANE_RESTARTS, self.restarts.into())?;
        out.single(&s::ROUTES, self.routes as u64)?;
        out.single(&s::EVENTS_LOST, self.events_lost)?;
        self.write_workers(&mut out)?;
        out.family(&s::TUNNELS, self.states.iter().map(|(state, count)| ([state.code()], *count)))?;
        out.single(&s::TUNNELS_UNANSWERED, self.unanswered)?;
        if let Some(tunnels) = &self.tunnels {
            write_tunnels(&mut out, tunnels)?;
            write_traffic(&mut out, tunnels)?;
        }
        self.write_ike(&mut out)?;
        self.write_ports(&mut out)?;
        out.finish()
    }

    fn write_workers<W: Write>(&self, out: &mut Writer<W>) -> io::Result<()> {
        let workers: Vec<(String, &Tally)> =
            self.workers.iter().enumerate().map(|(worker, tally)| (worker.to_string(), tally)).collect();
        let each = |value: fn(&Tally) -> u64| {
            workers.iter().map(move |(worker, tally)| ([worker.as_str()], value(tally)))
        };
        out.family(&s::FRAMES_RECEIVED, each(|tally| tally.received))?;
        let verdicts = Verdict::ALL.iter().flat_map(|verdict| {
            workers.iter().map(|(worker, tally)| ([worker.as_str(), verdict.name()], tally.of(*verdict)))
        });
        out.family(&s::FRAMES, verdicts)?;
        let notes = Note::ALL.iter().flat_map(|note| {
            workers.iter().map(|(worker, tally)| ([worker.as_str(), note.name()], tally.noted(*note)))
        });
        out.family(&s::NOTES, notes)?;
        out.family(&s::BUSY_CYCLES, each(|tally| tally.busy_cycles))?;
        out.family(&s::CYCLES, each(|tally| tally.total_cycles))
    }

    fn write_ike<W: Write>(&self, out: &mut Writer<W>) -> io::Result<()> {
        let ike = &self.ike;
        out.single(&s::IKE_SAS, ike.sas)?;
        out.single(&s::IKE_HALF_OPEN, ike.half_open)?;
        out.single(&s::IKE_CHILD_SAS, ike.children)?;
        out.family(&s::IKE_REKEYS, [(["ike"], ike.rekeys.0), (["child"], ike.rekeys.1)])?;
        out.family(&s::IKE_FAILURES, ike.failures.iter().map(|(reason, count)| ([reason.code()], *count)))?;
        let ends = self.certificates.iter();
        let ends = ends.map(|one| ([&one.tunnel, &one.role, &one.subject], one.not_after));
        out.family(&s::CERTIFICATE_EXPIRY, ends)
    }

    fn write_ports<W: Write>(&self, out: &mut Writer<W>) -> io::Result<()> {
        let each = |value: fn(&PortStatus) -> u64| {
            self.ports.iter().map(move |port| ([port.name.as_str()], value(port)))
        };
        let both = |sent: fn(&PortStatus) -> u64, received: fn(&PortStatus) -> u64| {
            directions(&self.ports, |port| &port.name, sent, received)
        };
        out.family(&s::PORT_LINK_UP, each(|port| port.link_up.into()))?;
        out.family(&s::PORT_PACKETS, both(|port| port.sent.packets, |port| port.received.packets))?;
        out.family(&s::PORT_BYTES, both(|port| port.sent.bytes, |port| port.received.bytes))?;
        out.family(&s::PORT_ERRORS, both(|port| port.send_errors, |port| port.receive_errors))?;
        out.family(&s::PORT_MISSED, each(|port| port.missed))?;
        out.family(&s::PORT_MULTISEGMENT, each(|port| port.multisegment))?;
        let tunnels = ("tunnels", &self.interfaces);
        let twins = self.ports.iter().map(|port| (port.name.as_str(), &port.twin)).chain([tunnels]);
        let ends =
            twins.flat_map(|(device, twin)| twin.by_end().map(|(end, frames)| ([device, end], frames)));
        out.family(&s::TWIN_FRAMES, ends)?;
        out.family(&s::BUFFERS_IN_USE, each(|port| port.buffers_in_use))
    }
}

/// How the tunnels are.
fn write_tunnels<W: Write>(out: &mut Writer<W>, tunnels: &[TunnelSample]) -> io::Result<()> {
    let each = |value: fn(&TunnelSample) -> Option<u64>| {
        tunnels.iter().filter_map(move |one| Some(([one.name.as_str()], value(one)?)))
    };
    out.family(&s::TUNNEL_UP, each(|one| Some(one.down.is_none().into())))?;
    out.family(&s::TUNNEL_STATE_CHANGE, each(|one| Some(one.since)))?;
    let down = tunnels.iter().filter_map(|one| Some(([&one.name, one.down.as_deref()?], 1)));
    out.family(&s::TUNNEL_DOWN, down)?;
    let failures = tunnels.iter().flat_map(|one| {
        one.failures.iter().map(|(reason, count)| ([one.name.as_str(), reason.code()], *count))
    });
    out.family(&s::TUNNEL_FAILURES, failures)?;
    out.family(&s::TUNNEL_GENERATION, each(|one| Some(one.generation.into()).filter(|now| *now > 0)))?;
    out.family(&s::TUNNEL_REKEY, each(|one| one.rekey_at))?;
    out.family(&s::TUNNEL_END, each(|one| one.ends_at))
}

/// What the tunnels carry.
fn write_traffic<W: Write>(out: &mut Writer<W>, tunnels: &[TunnelSample]) -> io::Result<()> {
    let each =
        |value: fn(&TunnelSample) -> u64| tunnels.iter().map(move |one| ([one.name.as_str()], value(one)));
    let both = |sent: fn(&TunnelSample) -> u64, received: fn(&TunnelSample) -> u64| {
        directions(tunnels, |one| &one.name, sent, received)
    };
    out.family(&s::TUNNEL_PACKETS, both(|one| one.sent.packets, |one| one.received.packets))?;
    out.family(&s::TUNNEL_BYTES, both(|one| one.sent.bytes, |one| one.received.bytes))?;
    let last = tunnels.iter().flat_map(|one| {
        let both = [("sent", one.last.0), ("received", one.last.1)];
        both.into_iter().filter_map(|(direction, at)| Some(([one.name.as_str(), direction], at?)))
    });
    out.family(&s::TUNNEL_LAST_PACKET, last)?;
    out.family(&s::TUNNEL_UNANSWERED_PACKETS, each(|one| one.unanswered_packets))?;
    out.family(&s::TUNNEL_UNANSWERED, each(|one| one.unanswered.into()))?;
    let drops = tunnels.iter().flat_map(|one| {
        let reasons = one.refused.by_reason();
        reasons.into_iter().map(|(reason, count)| ([one.name.as_str(), reason], count))
    });
    out.family(&s::TUNNEL_DROPS, drops)
}

/// Two samples of each: what was sent, what was received.
fn directions<T>(
    all: &[T],
    name: fn(&T) -> &str,
    sent: fn(&T) -> u64,
    received: fn(&T) -> u64,
) -> impl Iterator<Item = ([&str; 2], u64)> {
    all.iter()
        .flat_map(move |one| [([name(one), "sent"], sent(one)), ([name(one), "received"], received(one))])
}
