//! What no type can say about a configuration: values out of range, things that contradict each other or the machine.
//! A parsed configuration enters, complaints with the path of their key leave. Tunnels have their own file.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use penstock_tables::adjacency::MAX_PORTS;

use super::scalar::InterfaceAddress;
use super::types::{Config, Listen, Metrics, Port};
use super::{check_ike, check_tunnels};

/// What the machine has, as far as a configuration can contradict it.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: Vec<u16>,
    /// Network interfaces that are neither TUN nor TAP: no twin can have such a name.
    pub interfaces: Vec<String>,
}

impl Machine {
    /// This machine.
    pub fn this() -> Machine {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let foreign = entries.filter(|entry| !entry.path().join("tun_flags").exists());
        Machine {
            cores: cores.iter().filter_map(|core| u16::try_from(core.id).ok()).collect(),
            interfaces: foreign.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        }
    }
}

/// What the checks found, each with the path of its key.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) errors: Vec<(String, String)>,
    pub(super) warnings: Vec<String>,
}

impl Found {
    pub(super) fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push((path.into(), message.into()));
    }

    pub(super) fn warning(&mut self, path: &str, message: &str) {
        self.warnings.push(format!("{path}: {message}"));
    }
}

/// Octets of the largest packet that a port or a tunnel may have.
pub(super) const MTU: std::ops::RangeInclusive<u16> = 576..=9216;

/// Checks everything.
pub(super) fn check(config: &Config, machine: &Machine, found: &mut Found) {
    general(config, found);
    cores(config, machine, found);
    capacity(config, found);
    ports(config, machine, found);
    routes(config, found);
    check_tunnels::check(config, machine, found);
    check_ike::check(config, found);
}

fn general(config: &Config, found: &mut Found) {
    if let Some(wrong) = bad_name(&config.name, 32) {
        found.error("name", wrong);
    }
    if config.memory.megabytes < 64 {
        let message = format!("`{}`, expected at least 64 megabytes", config.memory.megabytes);
        found.error("memory.megabytes", message);
    }
    for (path, place) in
        [("memory.directory", &config.memory.directory), ("state_directory", &config.state_directory)]
    {
        if place.path().is_some_and(|path| !path.is_absolute()) {
            let message =
                format!("`{}`, expected auto or a path that begins with /", String::from(place.clone()));
            found.error(path, message);
        }
    }
    metrics(&config.metrics, found);
}

fn metrics(metrics: &Metrics, found: &mut Found) {
    match metrics.listen {
        Listen::At(address) if !address.ip().is_loopback() && metrics.allow.is_empty() => {
            let message = format!(
                "`{address}` is not a loopback address: name the networks that are answered in metrics.allow, or write \
                 127.0.0.1:{}",
                address.port()
            );
            found.error("metrics.listen", message);
        }
        Listen::At(address) if address.ip().is_loopback() && !metrics.allow.is_empty() => {
            let message = format!(
                "nobody of these networks reaches the loopback address `{address}`: change metrics.listen"
            );
            found.error("metrics.allow", message);
        }
        _ => {}
    }
}

fn cores(config: &Config, machine: &Machine, found: &mut Found) {
    let dataplane = &config.dataplane;
    let list = machine.cores.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let lacking = |core| format!("this machine has no core {core} for this process, expected some of {list}");
    match dataplane.cores.len() {
        0 => found.error("dataplane.cores", "is empty, expected at least one core"),
        many @ 65.. => found.error("dataplane.cores", format!("lists {many} cores, expected at most 64")),
        _ => (),
    }
    for (index, core) in dataplane.cores.iter().enumerate() {
        let path = format!("dataplane.cores[{index}]");
        if dataplane.cores[..index].contains(core) {
            found.error(path, format!("core {core} is listed twice: write each core once"));
        } else if !machine.cores.contains(core) {
            found.error(path, lacking(core));
        } else if *core == dataplane.control_core {
            let message =
                "this core moves packets and is also the control_core: give housekeeping a core of its own";
            found.warning(&path, message);
        }
    }
    if !machine.cores.contains(&dataplane.control_core) {
        found.error("dataplane.control_core", lacking(&dataplane.control_core));
    }
}

fn capacity(config: &Config, found: &mut Found) {
    let capacity = &config.capacity;
    if let Some(wrong) = bad_window(capacity.replay_window) {
        found.error("capacity.replay_window", wrong);
    }
    let prefixes: usize = config.tunnels.values().map(|tunnel| tunnel.remote_prefixes.len()).sum();
    let own: usize = config.ports.values().map(|port| port.addresses.len()).sum();
    let needs = [
        ("tunnels", capacity.tunnels, config.tunnels.len(), 1_000_000, "tunnels that the file has"),
        (
            "routes",
            capacity.routes,
            prefixes + config.routes.len() + 2 * own,
            4_000_000,
            "routes that the file makes",
        ),
        (
            "neighbours",
            capacity.neighbours,
            config.tunnels.len().min(1) + own,
            1_000_000,
            "neighbours it needs at least",
        ),
    ];
    for (key, written, needed, most, what) in needs {
        let path = format!("capacity.{key}");
        if written == 0 || written > most {
            found.error(path, format!("`{written}`, expected 1 to {most}"));
        } else if (written as usize) < needed {
            found.error(path, format!("`{written}` is less than the {needed} {what}: raise it"));
        }
    }
}

fn ports(config: &Config, machine: &Machine, found: &mut Found) {
    if config.ports.is_empty() {
        found.error("ports", "has no port, expected at least one");
    }
    if config.ports.len() > MAX_PORTS {
        found.error("ports", format!("has {} ports, expected at most {MAX_PORTS}", config.ports.len()));
    }
    let mut devices: HashMap<&str, &str> = HashMap::new();
    for (name, port) in &config.ports {
        let path = format!("ports.{name}");
        if let Some(wrong) = bad_interface(name, machine) {
            found.error(&path, wrong);
        }
        one_port(&path, port, found);
        if port.device.split(',').skip(1).any(|argument| argument == format!("iface={name}")) {
            let message =
                format!("`iface={name}` is the name of the port's twin: name the device's end otherwise");
            found.error(format!("{path}.device"), message);
        }
        let device = port.device.split(',').next().unwrap_or_default();
        if let Some(other) = devices.insert(device, name) {
            let message =
                format!("`{device}` is already the device of port {other}: one port has one device");
            found.error(format!("{path}.device"), message);
        }
    }
    addresses(config, found);
}

fn one_port(path: &str, port: &Port, found: &mut Found) {
    if port.device.trim().is_empty() || port.device.contains(char::is_whitespace) {
        let message = "is not a device, expected a PCI address such as 0000:3b:00.1 or a virtual device such as \
                       net_tap0,iface=tlan";
        found.error(format!("{path}.device"), message);
    }
    if !MTU.contains(&port.mtu) {
        found.error(format!("{path}.mtu"), format!("`{}`, expected 576 to 9216 octets", port.mtu));
    } else if let Some((driver, most)) = most_of_driver(&port.device).filter(|(_, most)| port.mtu > *most) {
        let message = format!("`{}` is more than {driver} can have, {most}: use that or less", port.mtu);
        found.error(format!("{path}.mtu"), message);
    }
    if let Some(vlan) = port.vlan
        && !(1..=4094).contains(&vlan)
    {
        found.error(format!("{path}.vlan"), format!("`{vlan}`, expected a VLAN from 1 to 4094"));
    }
    for (index, address) in port.addresses.iter().enumerate() {
        if let Some(wrong) = bad_own_address(address) {
            found.error(format!("{path}.addresses[{index}]"), wrong);
        }
    }
}

/// The largest MTU of a virtual device whose driver has a bound of its own (as DPDK 22.11 tells it). What a NIC can have is
/// known once it is opened.
fn most_of_driver(device: &str) -> Option<(&'static str, u16)> {
    let drivers = [("net_tap", 1504), ("net_memif", 1500)];
    drivers.into_iter().find(|(driver, _)| {
        device
            .strip_prefix(driver)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == ','))
    })
}

/// No two networks of ports and tunnel interfaces may overlap: the kernel would not know which way.
fn addresses(config: &Config, found: &mut Found) {
    let ports = config.ports.iter().map(|(name, port)| (format!("ports.{name}.addresses"), &port.addresses));
    let tunnels = config.tunnels.iter();
    let tunnels = tunnels
        .map(|(name, tunnel)| (format!("tunnels.{name}.interface_addresses"), &tunnel.interface_addresses));
    let mut all = Vec::new();
    for (path, list) in ports.chain(tunnels) {
        for (index, address) in list.iter().enumerate() {
            all.push((address.network(), address, path.clone(), index));
        }
    }
    all.sort_by_key(|(network, ..)| (network.addr(), network.prefix_len()));
    // Sorted, a network that overlaps any earlier one overlaps the widest that has not ended yet.
    let mut widest: Option<usize> = None;
    for this in 0..all.len() {
        let (network, address, path, index) = &all[this];
        if let Some((other_network, other, other_path, _)) = widest.map(|at| &all[at])
            && other_network.contains(network)
        {
            let same = path == other_path;
            if !same || address.address() == other.address() || network != other_network {
                let owner =
                    other_path.trim_end_matches(".addresses").trim_end_matches(".interface_addresses");
                let message = format!("`{address}` overlaps `{other}` of {owner}: give each its own network");
                found.error(format!("{path}[{index}]"), message);
            }
        } else {
            widest = Some(this);
        }
    }
}

fn routes(config: &Config, found: &mut Found) {
    let mut seen = HashSet::new();
    for (index, route) in config.routes.iter().enumerate() {
        let path = format!("routes[{index}]");
        let via = route.via.0;
        if config.port_with_address(via).is_some() {
            found.error(
                format!("{path}.via"),
                format!("`{via}` is this gateway's own address, expected a neighbour"),
            );
        } else if config.port_on_link(via).is_none() {
            let message = format!("`{via}` is in no port's network: give a port an address in its network");
            found.error(format!("{path}.via"), message);
        }
        if !seen.insert(route.to.0) {
            found.error(
                format!("{path}.to"),
                format!("`{}` has a route already: write one route for it", route.to),
            );
        }
    }
}

/// What is wrong with `name` as a name of at most `longest` characters.
pub(super) fn bad_name(name: &str, longest: usize) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let fits = (1..=longest).contains(&name.len());
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    (!fits || !begins || !name.chars().all(good)).then(|| {
        format!("`{name}` is not a name, expected 1 to {longest} letters, digits, - or _, beginning with a letter or digit")
    })
}

/// What is wrong with `name` as the name of a twin.
pub(super) fn bad_interface(name: &str, machine: &Machine) -> Option<String> {
    if let Some(wrong) = bad_name(name, 15) {
        return Some(wrong);
    }
    let reserved = ["lo", "all", "default"].contains(&name);
    (reserved || machine.interfaces.iter().any(|taken| taken == name)).then(|| {
        format!(
            "`{name}` is a network interface of the kernel: give it another name, for its twin takes the same"
        )
    })
}

/// What is wrong with `window` as a replay window.
pub(super) fn bad_window(window: u32) -> Option<String> {
    (!window.is_power_of_two() || !(64..=65536).contains(&window))
        .then(|| format!("`{window}`, expected a power of two from 64 to 65536 packets"))
}

/// What is wrong with `address` as an address of this or another gateway.
pub(super) fn bad_station(address: Ipv4Addr) -> Option<String> {
    let odd = address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || address.octets()[0] == 0;
    (odd || address.is_broadcast()).then(|| format!("`{address}` is not an address that a station can have"))
}

/// What is wrong with `address` as an address of a twin.
pub(super) fn bad_own_address(address: &InterfaceAddress) -> Option<String> {
    let (own, network) = (address.address(), address.network());
    if let Some(wrong) = bad_station(own) {
        return Some(wrong);
    }
    if network.prefix_len() == 0 {
        return Some(format!(
            "`{address}` has prefix length 0, expected 1 to 32: write the default route under routes"
        ));
    }
    if network.prefix_len() <= 30 && (own == network.network() || own == network.broadcast()) {
        return Some(format!(
            "`{address}` is the network's own or its broadcast address, expected one between them"
        ));
    }
    None
}

/// Whether two networks share an address.
pub(super) fn overlap(one: ipnet::Ipv4Net, other: ipnet::Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}
