//! What the kernel's routes and neighbours mean to the data plane: the mirror enters, a [`KernelView`] leaves. Of several
//! equal hops the first is taken; a packet is forwarded as RFC 1812 section 5.2.4 says.

use std::collections::HashMap;

use ipnet::Ipv4Net;

use super::routes::{KernelView, Neighbour, Target};
use crate::netlink::{self, Kernel};

/// Which interfaces of the kernel are twins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TwinIndex {
    /// Index of the port by index of the interface.
    ports: HashMap<u32, u8>,
    /// Name of a tunnel's interface by index of the interface.
    tunnels: HashMap<u32, String>,
}

impl TwinIndex {
    /// Finds the twins of `ports` (in their order) and the interfaces of tunnels.
    pub fn find<'a>(
        kernel: &Kernel,
        ports: impl Iterator<Item = &'a String>,
        interfaces: impl Iterator<Item = &'a String>,
    ) -> TwinIndex {
        let by_name: HashMap<&str, u32> =
            kernel.links().iter().map(|(index, link)| (link.name.as_str(), *index)).collect();
        let found = |name: &String| by_name.get(name.as_str()).copied();
        let numbered =
            ports.enumerate().filter_map(|(port, name)| Some((found(name)?, u8::try_from(port).ok()?)));
        let named = interfaces.filter_map(|name| Some((found(name)?, name.clone())));
        TwinIndex { ports: numbered.collect(), tunnels: named.collect() }
    }

    /// The interface of port `port`.
    pub fn interface_of(&self, port: u8) -> Option<u32> {
        self.ports.iter().find(|(_, one)| **one == port).map(|(index, _)| *index)
    }

    /// The neighbours on the ports' links, in whatever state.
    pub fn neighbours<'a>(
        &'a self,
        kernel: &'a Kernel,
    ) -> impl Iterator<Item = (Neighbour, netlink::Neighbour)> + 'a {
        let all = kernel.neighbours().iter();
        all.filter_map(|((interface, address), entry)| {
            Some(((*self.ports.get(interface)?, *address), *entry))
        })
    }

    /// The ports' interfaces, with the ports.
    pub fn ports(&self) -> impl Iterator<Item = (u32, u8)> {
        self.ports.iter().map(|(index, port)| (*index, *port))
    }

    /// The tunnels' interfaces, with their names.
    pub fn tunnels(&self) -> impl Iterator<Item = (u32, &str)> {
        self.tunnels.iter().map(|(index, name)| (*index, name.as_str()))
    }

    /// The kernel as the data plane should see it.
    pub fn view(&self, kernel: &Kernel) -> KernelView {
        let mut view = KernelView::default();
        for (net, route) in kernel.routes() {
            view.routes.insert(*net, self.target(&route.target));
        }
        for own in kernel.addresses() {
            let net = own.address;
            view.routes.insert(Ipv4Net::from(net.addr()), Target::Local);
            let to_all = net.broadcast();
            if net.prefix_len() <= 30 && self.ports.contains_key(&own.ifindex) {
                view.routes.insert(Ipv4Net::from(to_all), Target::Local);
            }
        }
        view.neighbours
            .extend(self.neighbours(kernel).filter_map(|(hop, entry)| Some((hop, entry.usable()?))));
        view
    }

    fn target(&self, target: &netlink::Target) -> Target {
        let hop = match target {
            netlink::Target::Local => return Target::Local,
            netlink::Target::Via(hops) => hops.first(),
            netlink::Target::Blackhole | netlink::Target::Unreachable | netlink::Target::Prohibit => None,
        };
        let Some(hop) = hop else { return Target::Discard };
        match (self.ports.get(&hop.ifindex), self.tunnels.get(&hop.ifindex), hop.gateway) {
            (Some(port), _, Some(gateway)) => Target::Gateway(*port, gateway),
            (Some(port), _, None) => Target::Link(*port),
            (None, Some(name), _) => Target::Interface(name.clone()),
            (None, None, _) => Target::Kernel,
        }
    }
}
