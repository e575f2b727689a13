//! The next hops of a tunnel in words: towards its peer, and towards the hosts on this side. What enters is what the kernel knows
//! (routes, neighbours, links) and what the data plane reports of its ports. RFC 826 is the resolution that is told of.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::gateway::Gateway;
use crate::netlink::Nud;
use crate::publish::live::Live;
use crate::publish::routes::{Neighbour, Target};

/// Lines of the private side at most.
const LINES: usize = 4;
/// Silent hosts that a line names at most.
const NAMED: usize = 4;

impl Gateway {
    /// What is wrong with the way to the peer, where its address is known: a code of `why` and words.
    pub(crate) fn blocked(&self, live: &Live) -> Option<(&'static str, String)> {
        let peer = live.peer();
        if peer.is_unspecified() {
            return None;
        }
        match self.view.next_hop(peer) {
            None => Some(self.no_route(live, peer)),
            Some(hop) if !self.view.neighbours.contains_key(&hop) => Some(self.no_neighbour(hop)),
            Some(_) => None,
        }
    }

    /// Where the route to a peer leads that no port is at the end of.
    fn no_route(&self, live: &Live, peer: Ipv4Addr) -> (&'static str, String) {
        let advice = format!("add one by a port under routes, or see `ip route get {peer}`");
        let found = self.view.lookup().route(peer).map(|(net, target)| (net, target.clone()));
        let Some((net, target)) = found else {
            return ("no-route", format!("no route leads to its peer {peer}: {advice}"));
        };
        match target {
            Target::Interface(interface) if interface == live.spec().interface => (
                "route-into-itself",
                format!(
                    "the route to its peer {peer} ({net} by {interface}) leads into the tunnel itself: {advice}"
                ),
            ),
            Target::Interface(interface) => (
                "no-route",
                format!(
                    "the route to its peer {peer} ({net} by {interface}) leads into another tunnel, which carries no ESP \
                     of this gateway: {advice}"
                ),
            ),
            Target::Local => ("no-route", format!("its peer {peer} is an address of this gateway itself")),
            Target::Discard => (
                "no-route",
                format!(
                    "the route to its peer {peer} ({net}) drops packets (blackhole, unreachable, prohibit): {advice}"
                ),
            ),
            Target::Kernel | Target::Link(_) | Target::Gateway(..) => (
                "no-route",
                format!(
                    "the route to its peer {peer} ({net}) leads by an interface that is no port of this gateway: {advice}"
                ),
            ),
        }
    }

    /// Why a next hop has no MAC address.
    fn no_neighbour(&self, (port, hop): Neighbour) -> (&'static str, String) {
        let index = usize::from(port);
        let Some((name, config)) = self.config().ports.iter().nth(index) else {
            return ("no-neighbour", format!("{hop} does not answer ARP"));
        };
        let report = self.state.as_ref().and_then(|state| state.ports().get(index)?.get());
        let Some(report) = report else {
            return ("port-closed", format!("port {name} is not open: see `penstock show ports`"));
        };
        if report.link_up {
            let text = format!("{hop} on port {name} does not answer ARP: check address, cable and VLAN");
            return ("no-neighbour", text);
        }
        match kernel_end(&config.device) {
            Some(end) if !self.neighbours.has_link(&end) => (
                "no-neighbour",
                format!(
                    "{hop} on port {name} does not answer ARP. The kernel end {end} of this soft NIC is not in this network \
                     namespace, so the state of its link cannot be seen: is it up where it was moved to, and what stands \
                     behind it?"
                ),
            ),
            Some(end) => (
                "link-down",
                format!("the link of port {name} is down: its kernel end {end} is: `ip link set {end} up`"),
            ),
            None => ("link-down", format!("the link of port {name} is down")),
        }
    }

    /// The next hops on both sides of a tunnel that is up, a line each.
    pub(crate) fn next_hops(&self, live: &Live) -> Vec<String> {
        let outer = self.view.next_hop(live.peer());
        let outer = outer.map(|hop| format!("towards the peer: {}", self.state_of_hop(hop)));
        outer.into_iter().chain(self.private_side(live).into_iter().take(LINES)).collect()
    }

    /// The routes that lead to hosts of the tunnel on this side.
    fn private_side(&self, live: &Live) -> Vec<String> {
        let (spec, public) = (live.spec(), self.config().public_ports());
        let ours = |net: &Ipv4Net| {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let mut own = spec.local.iter().filter(|own| (own.first, own.last) != (0, u32::MAX));
            own.any(|own| own.first <= last && first <= own.last)
        };
        let routes = self.view.routes.iter().filter(|(net, _)| net.prefix_len() > 0 && ours(net));
        routes
            .filter_map(|(net, target)| match target {
                Target::Gateway(port, via) if !public.get(usize::from(*port)).copied().unwrap_or(true) => {
                    Some(format!("towards {net}: {}", self.state_of_hop((*port, *via))))
                }
                Target::Link(port) if !public.get(usize::from(*port)).copied().unwrap_or(true) => {
                    Some(self.hosts_on(*port, net))
                }
                _ => None,
            })
            .collect()
    }

    /// The hosts of a network on a port's link.
    fn hosts_on(&self, port: u8, net: &Ipv4Net) -> String {
        let known =
            self.view.neighbours.keys().filter(|(on, address)| *on == port && net.contains(address)).count();
        let silent = self.neighbours.silent(port).into_iter().filter(|address| net.contains(address));
        let silent: Vec<String> = silent.map(|address| address.to_string()).collect();
        let more = silent.len().saturating_sub(NAMED);
        let silent = match silent.get(..silent.len() - more) {
            None | Some([]) => String::new(),
            Some(named) if more > 0 => format!("; {} and {more} more do not answer ARP", named.join(", ")),
            Some([one]) => format!("; {one} does not answer ARP"),
            Some(named) => format!("; {} do not answer ARP", named.join(", ")),
        };
        let hosts = if known == 1 { "1 host".into() } else { format!("{known} hosts") };
        format!("towards {net}: on port {}, {hosts} known{silent}", self.port_name(port))
    }

    fn port_name(&self, port: u8) -> &str {
        self.config().ports.keys().nth(usize::from(port)).map_or("?", String::as_str)
    }

    fn state_of_hop(&self, hop: Neighbour) -> String {
        let entry = self.neighbours.entry(hop);
        let state = match entry.map(|entry| entry.state) {
            Some(Nud::Reachable) => "reachable",
            Some(Nud::Stale | Nud::Delay | Nud::Probe) => "known, being confirmed",
            Some(Nud::Permanent | Nud::NoArp) => "set by hand",
            Some(Nud::Failed) => "does not answer ARP",
            Some(Nud::Incomplete | Nud::None) | None => "asked for by ARP, no answer yet",
        };
        format!("{} on port {}, {state}", hop.1, self.port_name(hop.0))
    }
}

/// The kernel end of a device that is a soft NIC.
fn kernel_end(device: &str) -> Option<String> {
    let (driver, options) = device.split_once(',').unwrap_or((device, ""));
    let number = driver.strip_prefix("net_tap")?;
    let named = options.split(',').find_map(|option| option.strip_prefix("iface="));
    Some(named.map_or_else(|| format!("dtap{number}"), str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_nic_has_a_kernel_end() {
        assert_eq!(kernel_end("net_tap1,mac=02:00:00:00:00:01,iface=twan").as_deref(), Some("twan"));
        assert_eq!(kernel_end("net_tap1").as_deref(), Some("dtap1"));
        assert_eq!(kernel_end("0000:01:00.0"), None);
    }
}
