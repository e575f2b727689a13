//! Every series that metrics may hold: name, kind, labels, meaning. docs/metrics.md is made from them.

/// How a series changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up, until the process that counts starts anew.
    Counter,
    /// Up and down.
    Gauge,
}

impl Kind {
    /// Prometheus' word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

/// One series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Its name; that of a counter ends with `_total`.
    pub name: &'static str,
    /// How it changes.
    pub kind: Kind,
    /// Labels of its samples.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Series {
    /// Whether it has samples for each tunnel, which `metrics.tunnels` switches off.
    pub fn is_per_tunnel(&self) -> bool {
        self.name.starts_with("penstock_tunnel_")
    }
}

macro_rules! series {
    ($($ident:ident, $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: Series =
                Series { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// Every series, in the order in which they are told.
        pub const ALL: &[Series] = &[$($ident),*];
    };
}

series! {
    INFO, Gauge, "penstock_info", ["version", "name"],
        "Version and name of the gateway; always 1";
    START_TIME, Gauge, "penstock_start_time_seconds", [],
        "When control started, in seconds since 1970";
    APPLY_GOOD, Gauge, "penstock_config_last_apply_successful", [],
        "Whether the configuration that was read last could be applied; that of the start counts too";
    APPLY_TIME, Gauge, "penstock_config_last_apply_timestamp_seconds", [],
        "When a configuration was read last, in seconds since 1970";
    APPLY_GOOD_TIME, Gauge, "penstock_config_last_apply_success_timestamp_seconds", [],
        "When a configuration was applied last, in seconds since 1970";
    DATAPLANE_UP, Gauge, "penstock_dataplane_up", [],
        "Whether the data plane runs";
    DATAPLANE_RESTARTS, Counter, "penstock_dataplane_restarts_total", [],
        "Starts of the data plane after its first";
    ROUTES, Gauge, "penstock_routes", [],
        "Routes in the data plane";
    EVENTS_LOST, Counter, "penstock_events_lost_total", [],
        "Hints of workers that were overwritten unread";
    FRAMES_RECEIVED, Counter, "penstock_frames_received_total", ["worker"],
        "Frames taken from ports and twins";
    FRAMES, Counter, "penstock_frames_total", ["worker", "verdict"],
        "Frames by how they ended; sums up to those received";
    NOTES, Counter, "penstock_notes_total", ["worker", "note"],
        "What happened to frames besides their end";
    BUSY_CYCLES, Counter, "penstock_busy_cycles_total", ["worker"],
        "TSC cycles of loops that had frames";
    CYCLES, Counter, "penstock_cycles_total", ["worker"],
        "TSC cycles of workers";
    TUNNELS, Gauge, "penstock_tunnels", ["state"],
        "Tunnels by state: up, no_sa, no_route, no_neighbour";
    TUNNELS_UNANSWERED, Gauge, "penstock_tunnels_unanswered", [],
        "Tunnels that are up, send, and get nothing back: black-holed, or one-way traffic";
    TUNNEL_UP, Gauge, "penstock_tunnel_up", ["tunnel"],
        "Whether the tunnel has an SA and a way to its peer";
    TUNNEL_STATE_CHANGE, Gauge, "penstock_tunnel_state_change_timestamp_seconds", ["tunnel"],
        "Since when the tunnel is in its state, in seconds since 1970; at the earliest the start of control";
    TUNNEL_DOWN, Gauge, "penstock_tunnel_down", ["tunnel", "reason"],
        "1 for each tunnel that is not up, with the code that `penstock why` has for it";
    TUNNEL_FAILURES, Counter, "penstock_tunnel_failures_total", ["tunnel", "reason"],
        "Negotiations with the tunnel's peer that failed and SAs that ended, by reason (docs/reasons.md)";
    TUNNEL_GENERATION, Gauge, "penstock_tunnel_generation", ["tunnel"],
        "Generation of the tunnel's lab keys; only of tunnels that have them";
    TUNNEL_REKEY, Gauge, "penstock_tunnel_next_rekey_timestamp_seconds", ["tunnel"],
        "When IKEv2 replaces the tunnel's keys next, in seconds since 1970";
    TUNNEL_END, Gauge, "penstock_tunnel_refused_rekey_expiry_timestamp_seconds", ["tunnel"],
        "When the keys of a tunnel end whose rekey was refused; without a sample where none was, or a new IKE SA has taken over";
    TUNNEL_PACKETS, Counter, "penstock_tunnel_packets_total", ["tunnel", "direction"],
        "Packets through the tunnel";
    TUNNEL_BYTES, Counter, "penstock_tunnel_bytes_total", ["tunnel", "direction"],
        "Inner octets through the tunnel";
    TUNNEL_LAST_PACKET, Gauge, "penstock_tunnel_last_packet_timestamp_seconds", ["tunnel", "direction"],
        "When the tunnel carried a packet last, in seconds since 1970, to a second; none before the first";
    TUNNEL_UNANSWERED_PACKETS, Gauge, "penstock_tunnel_unanswered_packets", ["tunnel"],
        "Packets sent since the last one was received";
    TUNNEL_UNANSWERED, Gauge, "penstock_tunnel_unanswered", ["tunnel"],
        "Whether the tunnel is up, sends, and gets nothing back: black-holed, or one-way traffic";
    TUNNEL_DROPS, Counter, "penstock_tunnel_dropped_packets_total", ["tunnel", "reason"],
        "Packets for the tunnel that were dropped by what its SAs say: replay, auth_failed";
    IKE_SAS, Gauge, "penstock_ike_sas", [],
        "IKE SAs, without half-open ones";
    IKE_HALF_OPEN, Gauge, "penstock_ike_half_open", [],
        "IKE SAs that a peer began and that are not authenticated yet";
    IKE_CHILD_SAS, Gauge, "penstock_ike_child_sas", [],
        "Child SAs in use or draining";
    IKE_REKEYS, Counter, "penstock_ike_rekeys_total", ["kind"],
        "SAs that were replaced by new ones";
    IKE_FAILURES, Counter, "penstock_ike_failures_total", ["reason"],
        "Negotiations that failed and SAs that ended, by reason (docs/reasons.md)";
    CERTIFICATE_EXPIRY, Gauge, "penstock_certificate_expiry_timestamp_seconds", ["tunnel", "role", "subject"],
        "End of validity of certificates in use, in seconds since 1970";
    PORT_LINK_UP, Gauge, "penstock_port_link_up", ["port"],
        "Whether the port's link is up";
    PORT_PACKETS, Counter, "penstock_port_packets_total", ["port", "direction"],
        "Packets that the device counted";
    PORT_BYTES, Counter, "penstock_port_bytes_total", ["port", "direction"],
        "Octets that the device counted";
    PORT_ERRORS, Counter, "penstock_port_errors_total", ["port", "direction"],
        "Packets that the device failed to send or received damaged";
    PORT_MISSED, Counter, "penstock_port_missed_total", ["port"],
        "Packets that no worker fetched in time";
    PORT_MULTISEGMENT, Counter, "penstock_port_multisegment_total", ["port"],
        "Packets in several segments that could not be joined, lost before they counted as received";
    TWIN_FRAMES, Counter, "penstock_twin_frames_total", ["device", "end"],
        "Frames between data plane and kernel by their end; device is a port, or `tunnels`: the interfaces of all tunnels. \
         What was punted ends as `to_kernel`, `detached` or `refused`";
    BUFFERS_IN_USE, Gauge, "penstock_buffers_in_use", ["port"],
        "Packet buffers in use";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = ALL.iter().map(|one| one.name).collect();
        for one in ALL {
            assert_eq!(one.name.ends_with("_total"), one.kind == Kind::Counter, "{}", one.name);
            assert!(!one.help.is_empty() && !one.help.contains(['\n', '\\']), "{}", one.name);
            assert!(one.name.starts_with("penstock_"), "{}", one.name);
            assert_eq!(
                one.is_per_tunnel(),
                one.name != "penstock_certificate_expiry_timestamp_seconds" && one.labels.contains(&"tunnel"),
                "{}",
                one.name
            );
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len(), "a name is there twice");
    }
}
