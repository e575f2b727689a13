//! Prometheus metrics: a snapshot of counters enters, OpenMetrics text leaves.

use std::fmt::{self, Debug};

use penstock_tables::worker::Tally;
use penstock_tables::{Note, Verdict};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::api::types::{CertificateEnd, PortStatus, Status, TunnelState, TunnelStatus};
use crate::ike::IkeMetrics;

/// Everything that is told, at one time.
#[derive(Debug)]
pub struct Snapshot {
    /// The gateway.
    pub status: Status,
    /// The tunnels.
    pub tunnels: Vec<TunnelStatus>,
    /// The ports.
    pub ports: Vec<PortStatus>,
    /// The workers.
    pub workers: Vec<Tally>,
    /// Hints of workers that were overwritten unread.
    pub events_lost: u64,
    /// IKEv2.
    pub ike: IkeMetrics,
}

/// Labels and value of one sample.
type Sample = (Vec<(&'static str, String)>, u64);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let status = &self.status;
        let info = vec![("version", status.version.clone()), ("name", status.name.clone())];
        gauge(encoder, "penstock_info", "Version and name of the gateway", vec![(info, 1)])?;
        let single = |value: u64| vec![(Vec::new(), value)];
        let running = single(u64::from(status.dataplane.running));
        gauge(encoder, "penstock_dataplane_up", "Whether the data plane runs", running)?;
        let restarts = single(u64::from(status.dataplane.restarts));
        counter(
            encoder,
            "penstock_dataplane_restarts",
            "Starts of the data plane after its first",
            restarts,
        )?;
        gauge(encoder, "penstock_routes", "Routes in the data plane", single(status.routes as u64))?;
        counter(
            encoder,
            "penstock_events_lost",
            "Hints of workers that were overwritten unread",
            single(self.events_lost),
        )?;
        self.encode_workers(encoder)?;
        self.encode_tunnels(encoder)?;
        self.encode_ike(encoder)?;
        self.encode_ports(encoder)
    }
}

impl Snapshot {
    fn encode_workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let each = |value: &dyn Fn(&Tally) -> u64| -> Vec<Sample> {
            let numbered = self.workers.iter().enumerate();
            numbered.map(|(worker, tally)| (vec![("worker", worker.to_string())], value(tally))).collect()
        };
        counter(
            encoder,
            "penstock_frames_received",
            "Frames taken from ports and twins",
            each(&|tally| tally.received),
        )?;
        let verdicts = Verdict::ALL
            .iter()
            .flat_map(|verdict| with(each(&|tally| tally.of(*verdict)), "verdict", verdict.name()));
        counter(
            encoder,
            "penstock_frames",
            "Frames by how they ended; sums up to those received",
            verdicts.collect(),
        )?;
        let notes =
            Note::ALL.iter().flat_map(|note| with(each(&|tally| tally.noted(*note)), "note", note.name()));
        counter(encoder, "penstock_notes", "What happened to frames besides their end", notes.collect())?;
        counter(
            encoder,
            "penstock_busy_cycles",
            "TSC cycles of loops that had frames",
            each(&|tally| tally.busy_cycles),
        )?;
        counter(encoder, "penstock_cycles", "TSC cycles of workers", each(&|tally| tally.total_cycles))
    }

    fn encode_tunnels(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let each = |value: &dyn Fn(&TunnelStatus) -> u64| -> Vec<Sample> {
            self.tunnels.iter().map(|tunnel| (vec![("tunnel", tunnel.name.clone())], value(tunnel))).collect()
        };
        let both =
            |sent: &dyn Fn(&TunnelStatus) -> u64, received: &dyn Fn(&TunnelStatus) -> u64| -> Vec<Sample> {
                let mut samples = with(each(sent), "direction", "sent");
                samples.extend(with(each(received), "direction", "received"));
                samples
            };
        let up = each(&|tunnel| u64::from(tunnel.state == TunnelState::Up));
        gauge(encoder, "penstock_tunnel_up", "Whether the tunnel has an SA and a way to its peer", up)?;
        let generation = each(&|tunnel| u64::from(tunnel.generation));
        gauge(encoder, "penstock_tunnel_generation", "Generation of the tunnel's lab keys", generation)?;
        let packets = both(&|tunnel| tunnel.sent.packets, &|tunnel| tunnel.received.packets);
        counter(encoder, "penstock_tunnel_packets", "Packets through the tunnel", packets)?;
        let bytes = both(&|tunnel| tunnel.sent.bytes, &|tunnel| tunnel.received.bytes);
        counter(encoder, "penstock_tunnel_bytes", "Inner octets through the tunnel", bytes)
    }

    fn encode_ike(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ike = &self.ike;
        let single = |value: u64| vec![(Vec::new(), value)];
        gauge(encoder, "penstock_ike_sas", "IKE SAs, without half-open ones", single(ike.sas))?;
        let help = "IKE SAs that a peer began and that are not authenticated yet";
        gauge(encoder, "penstock_ike_half_open", help, single(ike.half_open))?;
        let help = "Child SAs in use or draining";
        gauge(encoder, "penstock_ike_child_sas", help, single(ike.children))?;
        let rekeys = [("ike", ike.rekeys.0), ("child", ike.rekeys.1)];
        let rekeys = rekeys.map(|(kind, count)| (vec![("kind", kind.to_string())], count));
        counter(encoder, "penstock_ike_rekeys", "SAs that were replaced by new ones", rekeys.into())?;
        let failures = ike.failures.iter();
        let failures = failures.map(|(reason, count)| (vec![("reason", reason.code().to_string())], *count));
        let help = "Negotiations that failed and SAs that ended, by reason (docs/reasons.md)";
        counter(encoder, "penstock_ike_failures", help, failures.collect())?;
        let labels = |one: &CertificateEnd| {
            vec![("tunnel", one.tunnel.clone()), ("role", one.role.clone()), ("subject", one.subject.clone())]
        };
        let ends = ike.certificates.iter().map(|one| (labels(one), one.not_after)).collect();
        let help = "End of validity of certificates in use, in seconds since 1970";
        gauge(encoder, "penstock_certificate_end_seconds", help, ends)
    }

    fn encode_ports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let each = |value: &dyn Fn(&PortStatus) -> u64| -> Vec<Sample> {
            self.ports.iter().map(|port| (vec![("port", port.name.clone())], value(port))).collect()
        };
        let both =
            |sent: &dyn Fn(&PortStatus) -> u64, received: &dyn Fn(&PortStatus) -> u64| -> Vec<Sample> {
                let mut samples = with(each(sent), "direction", "sent");
                samples.extend(with(each(received), "direction", "received"));
                samples
            };
        let link = each(&|port| u64::from(port.link_up));
        gauge(encoder, "penstock_port_link_up", "Whether the port's link is up", link)?;
        let packets = both(&|port| port.sent.packets, &|port| port.received.packets);
        counter(encoder, "penstock_port_packets", "Packets that the device counted", packets)?;
        let bytes = both(&|port| port.sent.bytes, &|port| port.received.bytes);
        counter(encoder, "penstock_port_bytes", "Octets that the device counted", bytes)?;
        let errors = both(&|port| port.send_errors, &|port| port.receive_errors);
        counter(
            encoder,
            "penstock_port_errors",
            "Packets that the device failed to send or received damaged",
            errors,
        )?;
        counter(
            encoder,
            "penstock_port_missed",
            "Packets that no worker fetched in time",
            each(&|port| port.missed),
        )?;
        gauge(encoder, "penstock_buffers_in_use", "Packet buffers in use", each(&|port| port.buffers_in_use))
    }
}

/// Adds a label to every sample.
fn with(samples: Vec<Sample>, label: &'static str, value: &str) -> Vec<Sample> {
    let add = |(mut labels, number): Sample| {
        labels.push((label, value.to_string()));
        (labels, number)
    };
    samples.into_iter().map(add).collect()
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, samples: Vec<Sample>) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
    for (labels, value) in samples {
        let value = ConstCounter::new(value);
        match labels.is_empty() {
            true => return value.encode(metric),
            false => value.encode(metric.encode_family(&labels)?)?,
        }
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, samples: Vec<Sample>) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
    for (labels, value) in samples {
        let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        match labels.is_empty() {
            true => return value.encode(metric),
            false => value.encode(metric.encode_family(&labels)?)?,
        }
    }
    Ok(())
}

/// The text of a snapshot.
pub fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a string cannot fail; an empty answer would look like a gateway without counters.
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}
