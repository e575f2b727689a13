//! What can be wrong with tunnels: outer addresses, selectors, interfaces and lab keys. A parsed configuration enters,
//! complaints leave. The overlap of selectors (RFC 4301 section 4.4.1) is checked in the order of the prefixes, so
//! that 100,000 tunnels take no time.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use penstock_tables::tunnel::MAX_SELECTORS;

use super::check::{
    Found, MTU, Machine, bad_interface, bad_name, bad_own_address, bad_station, bad_window, overlap,
};
use super::scalar::{InterfaceAddress, Peer};
use super::secret::{read_key, read_secret};
use super::types::{Config, Encapsulation, FixedKey, LabKeys, Tunnel};

/// SPIs below this are reserved (RFC 4303 section 2.1).
const FIRST_SPI: u32 = 256;

/// Checks all tunnels.
pub(super) fn check(config: &Config, machine: &Machine, found: &mut Found) {
    let mut seen = Seen::default();
    seen.reached = Reached::new(config);
    for (name, tunnel) in &config.tunnels {
        let path = format!("tunnels.{name}");
        if let Some(wrong) = bad_name(name, 32) {
            found.error(&path, wrong);
        }
        outer(config, &path, tunnel, found);
        selectors(config, &path, tunnel, &mut seen, found);
        numbers(config, &path, tunnel, found);
        interface(config, machine, &path, name, tunnel, &mut seen, found);
        keys(config, &path, name, tunnel, &mut seen, found);
        encapsulation(config, &path, name, tunnel, &mut seen, found);
    }
    overlaps(config, found);
    two_lines(config, found);
}

/// What ports, interfaces of tunnels and routes of the file lead to, but for routes to everywhere: ranges of addresses, apart
/// from each other and ascending.
#[derive(Default)]
struct Reached(Vec<(u32, u32)>);

impl Reached {
    fn new(config: &Config) -> Reached {
        let ports = config.ports.values().flat_map(|port| &port.addresses);
        let tunnels = config.tunnels.values().flat_map(|tunnel| &tunnel.interface_addresses);
        let networks = ports.chain(tunnels).map(InterfaceAddress::network);
        let routes = config.routes.iter().map(|route| route.to.0).filter(|to| to.prefix_len() > 0);
        let ends = |net: Ipv4Net| (net.network().to_bits(), net.broadcast().to_bits());
        let mut all: Vec<(u32, u32)> = networks.chain(routes).map(ends).collect();
        all.sort_unstable();
        all.dedup_by(|next, last| {
            let joined = next.0 <= last.1;
            last.1 = if joined { last.1.max(next.1) } else { last.1 };
            joined
        });
        Reached(all)
    }

    fn overlaps(&self, net: Ipv4Net) -> bool {
        let before = self.0.partition_point(|(first, _)| *first <= net.broadcast().to_bits());
        before > 0 && self.0[before - 1].1 >= net.network().to_bits()
    }
}

/// What must be unique among tunnels, and who has it; and what is said once for all of them.
#[derive(Default)]
struct Seen<'a> {
    reached: Reached,
    unreached: HashSet<Ipv4Net>,
    interfaces: HashMap<&'a str, &'a str>,
    encapsulations: HashMap<(Ipv4Addr, Ipv4Addr), (Encapsulation, &'a str)>,
    inbound_spis: HashMap<u32, &'a str>,
    outbound_spis: HashMap<(Ipv4Addr, u32), &'a str>,
    keys: HashMap<Vec<u8>, String>,
    derived: HashMap<(Ipv4Addr, Ipv4Addr, PathBuf, &'a str), &'a str>,
    secrets: HashMap<PathBuf, Option<String>>,
}

fn outer(config: &Config, path: &str, tunnel: &Tunnel, found: &mut Found) {
    let Some(peer) = tunnel.towards() else {
        // Where another tunnel's peer is shared, its own section says what is wrong.
        if tunnel.ike.as_ref().is_none_or(|ike| ike.share.is_none()) {
            found.error(path, "the key `peer` is missing: add it");
        }
        return;
    };
    let is_network = matches!(tunnel.peer, Some(Peer::Network(_)));
    if is_network && tunnel.ike.is_none() {
        found.error(
            format!("{path}.peer"),
            "lab keys need the peer's own address, expected one such as 192.0.2.1",
        );
    } else if let Some(wrong) = bad_station(peer).filter(|_| !is_network) {
        found.error(format!("{path}.peer"), wrong);
    } else if !is_network && config.port_with_address(peer).is_some() {
        found.error(
            format!("{path}.peer"),
            format!("`{peer}` is this gateway's own address, expected the other gateway's"),
        );
    } else if config.port_towards(peer).is_none() {
        if tunnel.local.is_none() {
            let message = match tunnel.peer {
                Some(Peer::Network(network)) => {
                    format!(
                        "no port and no route leads to `{network}`: add a route to it, or write local as well"
                    )
                }
                _ => format!(
                    "no port and no route leads to `{peer}`: add a route to it, or write local as well"
                ),
            };
            found.error(format!("{path}.peer"), message);
        } else {
            found.warning(
                &format!("{path}.peer"),
                "no port and no route of the file leads there: the kernel must have one",
            );
        }
    } else if config.local_of(tunnel).is_none() {
        found.error(
            format!("{path}.peer"),
            "the port that leads there has no address: give it one or write local",
        );
    }
    if let Some(local) = tunnel.local
        && config.port_with_address(local.0).is_none()
    {
        found.error(
            format!("{path}.local"),
            format!("`{local}` is not an address of any port: add it to one"),
        );
    }
}

fn selectors(config: &Config, path: &str, tunnel: &Tunnel, seen: &mut Seen<'_>, found: &mut Found) {
    for (key, list) in
        [("local_prefixes", &tunnel.local_prefixes), ("remote_prefixes", &tunnel.remote_prefixes)]
    {
        if list.is_empty() && tunnel.interface.is_none() {
            found.error(
                format!("{path}.{key}"),
                "is missing or empty: list prefixes, or give the tunnel an interface",
            );
        }
        if list.len() > MAX_SELECTORS {
            let message =
                format!("has {} prefixes, expected at most {MAX_SELECTORS}: use wider ones", list.len());
            found.error(format!("{path}.{key}"), message);
        }
        for (index, prefix) in list.iter().enumerate() {
            if let Some(other) = list[..index].iter().find(|other| overlap(other.0, prefix.0)) {
                let message =
                    format!("`{prefix}` overlaps `{other}` of the same list: write the wider one alone");
                found.error(format!("{path}.{key}[{index}]"), message);
            }
        }
    }
    for (index, prefix) in tunnel.local_prefixes.iter().enumerate() {
        if prefix.0.prefix_len() > 0 && !seen.reached.overlaps(prefix.0) && seen.unreached.insert(prefix.0) {
            let message = format!(
                "no port and no route of the file has an address of `{prefix}`: the kernel must have a route to it, or nothing \
                 behind this gateway is reached"
            );
            found.warning(&format!("{path}.local_prefixes[{index}]"), &message);
        }
    }
    for (index, prefix) in tunnel.remote_prefixes.iter().enumerate() {
        let at = format!("{path}.remote_prefixes[{index}]");
        if tunnel.local_prefixes.contains(prefix) {
            found.error(at, format!("`{prefix}` is one of local_prefixes too: a network is on one side"));
            continue;
        }
        let peer = match tunnel.peer {
            Some(Peer::Network(_)) | None => None,
            _ => tunnel.towards(),
        };
        // Any to any has it by its nature.
        if let Some(peer) = peer.filter(|peer| prefix.0.prefix_len() > 0 && prefix.0.contains(peer)) {
            let message = format!(
                "`{prefix}` holds the peer's own address {peer}: what this gateway itself sends there (IKE, ESP, ping) stays \
                 outside of the tunnel"
            );
            found.warning(&at, &message);
        }
        for (name, port) in &config.ports {
            let on_link = port
                .addresses
                .iter()
                .find(|own| prefix.0.prefix_len() > 0 && overlap(prefix.0, own.network()));
            if let Some(own) = on_link.filter(|own| own.network().contains(&prefix.0)) {
                let message = format!(
                    "`{prefix}` lies in `{}`, the network of port {name}: it is not behind the peer",
                    own.network()
                );
                found.error(&at, message);
            }
        }
    }
}

fn numbers(config: &Config, path: &str, tunnel: &Tunnel, found: &mut Found) {
    if let Some(window) = tunnel.replay_window {
        let most = config.capacity.replay_window;
        if let Some(wrong) = bad_window(window) {
            found.error(format!("{path}.replay_window"), wrong);
        } else if window > most {
            let message = format!("`{window}` is more than capacity.replay_window, {most}: raise that too");
            found.error(format!("{path}.replay_window"), message);
        }
    }
    if let Some(mtu) = tunnel.mtu {
        let port = tunnel.towards().and_then(|peer| config.port_towards(peer));
        match port {
            _ if !MTU.contains(&mtu) => {
                found.error(format!("{path}.mtu"), format!("`{mtu}`, expected 576 to 9216 octets"));
            }
            Some((name, port)) if mtu > port.mtu => {
                let message =
                    format!("`{mtu}` is more than the {} octets of port {name}: raise that too", port.mtu);
                found.error(format!("{path}.mtu"), message);
            }
            _ => (),
        }
    }
}

fn interface<'a>(
    config: &Config,
    machine: &Machine,
    path: &str,
    name: &'a str,
    tunnel: &'a Tunnel,
    seen: &mut Seen<'a>,
    found: &mut Found,
) {
    for (index, address) in tunnel.interface_addresses.iter().enumerate() {
        if let Some(wrong) = bad_own_address(address) {
            found.error(format!("{path}.interface_addresses[{index}]"), wrong);
        }
    }
    let at = format!("{path}.interface");
    let Some(interface) = &tunnel.interface else {
        if !tunnel.interface_addresses.is_empty() {
            found.error(format!("{path}.interface_addresses"), "belong to an interface: give the tunnel one");
        }
        return;
    };
    if let Some(wrong) = bad_interface(interface, machine) {
        found.error(at, wrong);
    } else if config.ports.contains_key(interface) {
        found.error(at, format!("`{interface}` is the name of a port: give the tunnel's interface another"));
    } else if let Some(other) = seen.interfaces.insert(interface, name) {
        found.error(
            at,
            format!("`{interface}` is already the interface of tunnel {other}: one tunnel has one interface"),
        );
    }
}

/// NAT traversal belongs to the pair of gateways (RFC 3948 section 4), not to one of their tunnels.
fn encapsulation<'a>(
    config: &Config,
    path: &str,
    name: &'a str,
    tunnel: &Tunnel,
    seen: &mut Seen<'a>,
    found: &mut Found,
) {
    let Some(local) = config.local_of(tunnel).filter(|_| tunnel.ike.is_none()) else { return };
    let (first, other) =
        *seen.encapsulations.entry((local, tunnel.peer_address())).or_insert((tunnel.encapsulation(), name));
    if first != tunnel.encapsulation() {
        let message =
            format!("tunnel {other} between the same two gateways has another one: use one for both");
        found.error(format!("{path}.encapsulation"), message);
    }
}

fn keys<'a>(
    config: &Config,
    path: &str,
    name: &'a str,
    tunnel: &'a Tunnel,
    seen: &mut Seen<'a>,
    found: &mut Found,
) {
    let keys = match (&tunnel.lab_keys, &tunnel.ike) {
        (Some(keys), None) => keys,
        (None, Some(_)) => return,
        (None, None) => return found.error(path, "has no keys: write ike, or lab_keys (and lab: true)"),
        (Some(_), Some(_)) => {
            return found.error(format!("{path}.lab_keys"), "the tunnel has ike too: keep one of them");
        }
    };
    let path = format!("{path}.lab_keys");
    if !config.lab {
        found.error(&path, "keys without IKEv2 are for the lab: write lab: true, or remove them");
    }
    match (keys, keys.outbound.is_some() || keys.inbound.is_some()) {
        (LabKeys { secret_file: None, .. }, false) => {
            found.error(&path, "expected either secret_file, or outbound and inbound");
        }
        (LabKeys { secret_file: Some(_), .. }, true) => {
            found.error(&path, "has both secret_file and fixed keys: keep one of them");
        }
        (_, false) => derived(config, &path, name, tunnel, keys, seen, found),
        (_, true) => fixed(&path, name, tunnel, keys, seen, found),
    }
}

fn derived<'a>(
    config: &Config,
    path: &str,
    name: &'a str,
    tunnel: &Tunnel,
    keys: &'a LabKeys,
    seen: &mut Seen<'a>,
    found: &mut Found,
) {
    let Some(file) = &keys.secret_file else { return };
    if keys.generation == Some(0) {
        found.error(format!("{path}.generation"), "`0`, expected 1 or more");
    }
    let wrong = seen
        .secrets
        .entry(file.clone())
        .or_insert_with(|| read_secret(file).err().map(|error| error.to_string()));
    if let Some(wrong) = wrong {
        found.error(format!("{path}.secret_file"), format!("`{}` {wrong}", file.display()));
    }
    let Some(local) = config.local_of(tunnel) else { return };
    let context = keys.context.as_deref().unwrap_or_default();
    if let Some(other) = seen.derived.insert((local, tunnel.peer_address(), file.clone(), context), name) {
        let message = format!(
            "tunnel {other} has the same gateways, secret and context, so the same keys: add a context"
        );
        found.error(path, message);
    }
}

fn fixed<'a>(
    path: &str,
    name: &'a str,
    tunnel: &Tunnel,
    keys: &LabKeys,
    seen: &mut Seen<'a>,
    found: &mut Found,
) {
    for (key, written) in [("context", keys.context.is_some()), ("generation", keys.generation.is_some())] {
        if written {
            found.error(format!("{path}.{key}"), "belongs to secret_file: remove it");
        }
    }
    for (direction, key) in [("outbound", &keys.outbound), ("inbound", &keys.inbound)] {
        let at = format!("{path}.{direction}");
        let Some(key) = key else {
            found.error(path, format!("{direction} is missing: a tunnel needs a key for each direction"));
            continue;
        };
        let other = match direction {
            "inbound" => seen.inbound_spis.insert(key.spi, name),
            _ => seen.outbound_spis.insert((tunnel.peer_address(), key.spi), name),
        };
        if key.spi < FIRST_SPI {
            found
                .error(format!("{at}.spi"), format!("`{}` is reserved, expected 256 to 4294967295", key.spi));
        } else if let Some(other) = other {
            let message = format!(
                "`{:#x}` is already the {direction} SPI of tunnel {other}: each has its own",
                key.spi
            );
            found.error(format!("{at}.spi"), message);
        }
        key_material(&at, tunnel, key, seen, found);
    }
}

fn key_material(path: &str, tunnel: &Tunnel, key: &FixedKey, seen: &mut Seen<'_>, found: &mut Found) {
    let (at, material) = match (&key.key, &key.key_file) {
        (Some(written), None) => (format!("{path}.key"), written.clone()),
        (None, Some(file)) => match read_key(file) {
            Ok(read) => (format!("{path}.key_file"), read),
            Err(error) => {
                return found.error(format!("{path}.key_file"), format!("`{}` {error}", file.display()));
            }
        },
        _ => return found.error(path, "expected either key or key_file"),
    };
    let expected = tunnel.cipher().key_len() + 4;
    if material.octets().len() != expected {
        let (cipher, len) = (tunnel.cipher().word(), material.octets().len());
        let message = format!(
            "has {len} octets, expected {expected} for {cipher}: {} of key and 4 of salt",
            expected - 4
        );
        return found.error(at, message);
    }
    if let Some(other) = seen.keys.insert(material.octets().to_vec(), at.clone()) {
        found.error(
            at,
            format!("is the same key as {other}, which repeats nonces: each direction needs its own"),
        );
    }
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        for (mut key, _) in self.keys.drain() {
            zeroize::Zeroize::zeroize(&mut key);
        }
    }
}

/// All packets to one peer leave by the port that the route to it names, so a second line to it is none.
fn two_lines(config: &Config, found: &mut Found) {
    let mut first: HashMap<Ipv4Addr, (&str, &str)> = HashMap::new();
    for (name, tunnel) in &config.tunnels {
        let peer = tunnel.towards().filter(|_| !matches!(tunnel.peer, Some(Peer::Network(_))));
        let port = tunnel.local.and_then(|local| Some(config.port_with_address(local.0)?.0));
        let (Some(peer), Some(port)) = (peer, port) else { continue };
        let (other, other_port) = *first.entry(peer).or_insert((name, port));
        if port != other_port {
            let message = format!(
                "is an address of port {port}, and tunnel {other} to the same peer uses port {other_port}: all packets to \
                 {peer} leave by one port, the one that the route to it names"
            );
            found.warning(&format!("tunnels.{name}.local"), &message);
        }
    }
}

/// The data plane picks a tunnel by the longest remote prefix that holds the destination, and then checks the source.
/// So equal prefixes are refused, and a narrower one must take every source that the wider one's tunnel takes.
fn overlaps(config: &Config, found: &mut Found) {
    let mut all: Vec<(Ipv4Net, &str, usize)> = Vec::new();
    for (name, tunnel) in &config.tunnels {
        all.extend(
            tunnel.remote_prefixes.iter().enumerate().map(|(index, prefix)| (prefix.0, name.as_str(), index)),
        );
    }
    all.sort_by_key(|(net, ..)| (net.addr(), net.prefix_len()));
    // The prefixes around the present one, of which there are at most 33, for equal ones are refused.
    let mut around: Vec<(Ipv4Net, &str)> = Vec::new();
    for (net, name, index) in all {
        around.retain(|(outer, _)| outer.contains(&net));
        let at = format!("tunnels.{name}.remote_prefixes[{index}]");
        if let Some((_, other)) = around.iter().find(|(outer, other)| *outer == net && *other != name) {
            found.error(
                at,
                format!("`{net}` is a remote prefix of tunnel {other} too: a network is behind one peer"),
            );
            continue;
        }
        for (outer, other) in around.iter().filter(|(_, other)| *other != name) {
            if let Some(wrong) = inside(config, (net, name), (*outer, other)) {
                found.error(&at, wrong);
            }
        }
        around.push((net, name));
    }
}

/// What is wrong with a prefix of one tunnel inside a wider one of another.
fn inside(config: &Config, (net, name): (Ipv4Net, &str), (outer, other): (Ipv4Net, &str)) -> Option<String> {
    let negotiated = |name: &str| config.tunnels.get(name).is_some_and(|tunnel| tunnel.ike.is_some());
    // What one peer is promised as selectors another one must not have; any to any is left to the routes.
    if (negotiated(name) || negotiated(other)) && outer.prefix_len() > 0 {
        return Some(format!(
            "`{net}` is inside `{outer}` of tunnel {other}: selectors that two peers agree upon must not overlap; make them \
             disjoint, or give tunnel {other} an interface instead of prefixes and let routes choose"
        ));
    }
    let source = uncovered(config, name, other)?;
    Some(format!(
        "`{net}` is inside `{outer}` of tunnel {other}, but its local_prefixes lack {source}, which {other} has: packets from \
         there would be dropped; add it or make the prefixes disjoint"
    ))
}

/// A local prefix of tunnel `wide` that no local prefix of tunnel `narrow` covers.
fn uncovered(config: &Config, narrow: &str, wide: &str) -> Option<Ipv4Net> {
    let narrow = &config.tunnels.get(narrow)?.local_prefixes;
    let wide = &config.tunnels.get(wide)?.local_prefixes;
    if narrow.is_empty() {
        return None;
    }
    let any = [super::scalar::Prefix(Ipv4Net::default())];
    let wide = if wide.is_empty() { &any[..] } else { &wide[..] };
    wide.iter().map(|prefix| prefix.0).find(|source| !narrow.iter().any(|own| own.0.contains(source)))
}
