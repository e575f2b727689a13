//! The kernel's ends of ports and tunnels: persistent TAP and TUN devices, their addresses and settings, and the
//! routes of the configuration. What should be enters, the kernel is made to be so; doing it again changes nothing.
//!
//! The devices are persistent, so that addresses and FRR's routes survive a restart of the data plane, which attaches
//! by name. They carry the alias `penstock:INSTANCE`, addresses and routes the protocol number [`PROTOCOL`], so that
//! only what is ours is changed or removed. RFC 1122 section 3.3.1 (a host that is no router) is what the kernel is
//! on them: it never forwards.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::{AddressAttribute, AddressProtocol};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;
use tun_rs::{DeviceBuilder, Layer};

use crate::netlink::{Address, Kernel, Link, Mirror, MirrorError, TWIN};

/// The number that marks our addresses (IFA_PROTO) and routes (RTPROT_*); write `112 penstock` into
/// /etc/iproute2/rt_protos to see it by name.
pub const PROTOCOL: u8 = 112;

/// What a twin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TwinKind {
    /// Carries Ethernet frames: the twin of a port.
    Tap,
    /// Carries IP packets: the twin of a tunnel.
    Tun,
}

/// A twin as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwinSpec {
    /// The interface's name, 1 to 15 octets.
    pub name: String,
    /// TAP or TUN.
    pub kind: TwinKind,
    /// The port's MAC address; without it the kernel's choice stays.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in octets.
    pub mtu: u16,
    /// The gateway's addresses with their networks.
    pub addresses: Vec<Ipv4Net>,
}

/// A route as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub to: Ipv4Net,
    /// The gateway; without it the destination is on the link.
    pub via: Option<Ipv4Addr>,
    /// The twin it goes out by; without it, the one in whose network the gateway is.
    pub twin: Option<String>,
    /// The metric; lower wins.
    pub metric: u32,
}

/// Why twins could not be made as they should be. What was done before stays; try again when the cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// Not privileged.
    #[error("no permission to configure {0}: run as root or with CAP_NET_ADMIN")]
    Permission(String),
    /// No tun driver.
    #[error(
        "there is no /dev/net/tun: load the module (`modprobe tun`), and give the device to the container if this is one"
    )]
    NoTunDriver,
    /// Somebody else's interface.
    #[error(
        "the interface {name} exists and is not ours ({what}): rename the port or tunnel, or remove it with `ip link del {name}`"
    )]
    Foreign {
        /// The interface.
        name: String,
        /// What it is.
        what: String,
    },
    /// Attached by another process while it should be made anew.
    #[error("the interface {0} is in use by another process: stop that first")]
    Busy(String),
    /// A sysctl.
    #[error("cannot write {value} to {path}: {source}: make /proc/sys writable, or set it beforehand")]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No twin for a route.
    #[error("the route to {0} leads over no twin: its gateway must be in the network of one of the ports")]
    NoTwin(Ipv4Net),
    /// A route of somebody else stands where ours should.
    #[error(
        "a route to {to} with metric {metric} is there, and not ours: remove it with `ip route del {to} metric {metric}`"
    )]
    RouteTaken {
        /// Destination.
        to: Ipv4Net,
        /// Metric.
        metric: u32,
    },
    /// The kernel refused something else.
    #[error("the kernel refuses to {what}: {source}")]
    Refused {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The kernel could not be read.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// What [`Twins::apply`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Made.
    pub created: Vec<String>,
    /// Found from before, kept.
    pub adopted: Vec<String>,
    /// Removed.
    pub removed: Vec<String>,
    /// Addresses, settings and routes that were changed.
    pub changes: usize,
    /// The interfaces' indices by name.
    pub ifindices: BTreeMap<String, u32>,
}

/// Settings of each twin (sysctl net.ipv4.conf.TWIN.*).
///
/// - `forwarding` 0: the data plane forwards. If the kernel did, it would send in clear what belongs into a tunnel.
/// - `arp_ignore` 1, `arp_announce` 2: each port speaks for its own addresses only, also where two ports share a
///   segment.
/// - `promote_secondaries` 1: removing one address does not take others of its network away.
/// - `accept_redirects` 0: routes come from the configuration and from FRR.
/// - `ignore_routes_with_linkdown` 1: a route over a port without a link or a tunnel without an SA gives way to the next.
const SETTINGS: [(&str, &str); 6] = [
    ("ignore_routes_with_linkdown", "1"),
    ("forwarding", "0"),
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
    ("promote_secondaries", "1"),
    ("accept_redirects", "0"),
];

/// Makes and removes twins.
pub struct Twins {
    mark: String,
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Twins {
    /// Leaves the kernel as it is: twins outlive this process until [`Twins::remove`].
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Twins {
    /// Opens a netlink connection. `instance` is the gateway's name: twins of another one are foreign. Within a tokio
    /// runtime.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(instance: &str) -> Result<Twins, TwinError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(MirrorError::Open)?;
        let connection = tokio::spawn(connection);
        Ok(Twins { mark: format!("{TWIN}{instance}"), handle, connection })
    }

    /// Makes the kernel have exactly these twins and routes of ours. Those that are there stay up and keep what
    /// others added; twins and routes of ours that are not listed are removed.
    ///
    /// # Errors
    /// See [`TwinError`].
    pub async fn apply(&self, twins: &[TwinSpec], routes: &[RouteSpec]) -> Result<Applied, TwinError> {
        let kernel = Mirror::open().await?.kernel().clone();
        let mut applied = Applied::default();
        let refused = twins.iter().filter_map(|spec| self.foreign(&kernel, spec));
        if let Some(error) = refused.min_by_key(ToString::to_string) {
            return Err(error);
        }
        for (&ifindex, link) in kernel.links().iter().filter(|(_, link)| self.is_ours(link)) {
            if !twins.iter().any(|spec| spec.name == link.name && spec.kind == kind(link)) {
                self.delete(ifindex, &link.name).await?;
                applied.removed.push(link.name.clone());
            }
        }
        for spec in twins {
            let old =
                kernel.links().iter().find(|(_, link)| link.name == spec.name && kind(link) == spec.kind);
            let ifindex = match old {
                Some((&ifindex, link)) => {
                    self.settings(spec, &mut applied)?;
                    self.link(spec, ifindex, link, &mut applied).await?;
                    applied.adopted.push(spec.name.clone());
                    ifindex
                }
                None => {
                    let ifindex = self.create(spec, &mut applied).await?;
                    applied.created.push(spec.name.clone());
                    ifindex
                }
            };
            let old: Vec<Address> =
                old.map_or(Vec::new(), |_| kernel.addresses_of(ifindex).copied().collect());
            self.addresses(spec, ifindex, &old, &mut applied).await?;
            applied.ifindices.insert(spec.name.clone(), ifindex);
        }
        self.routes(twins, routes, &mut applied).await?;
        Ok(applied)
    }

    /// Removes our routes and twins; with the twins go their addresses and all routes over them.
    ///
    /// # Errors
    /// No permission.
    pub async fn remove(&self) -> Result<Applied, TwinError> {
        self.apply(&[], &[]).await
    }

    /// Turns forwarding off again on twins where something turned it on: writing net.ipv4.ip_forward does that to all
    /// interfaces. To be called now and then. Returns the names of those where it was on.
    ///
    /// # Errors
    /// /proc/sys cannot be written.
    pub fn hold_forwarding<'a>(
        &self,
        twins: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<String>, TwinError> {
        let mut found = Vec::new();
        for name in twins {
            if sysctl("ipv4", name, "forwarding", "0")? {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }

    /// Gives a twin its carrier, or takes it. The kernel gives one only to a device that the data plane is attached to.
    ///
    /// # Errors
    /// The kernel refuses (it is older than 5.0).
    pub async fn set_carrier(&self, ifindex: u32, on: bool) -> Result<(), TwinError> {
        let message = LinkUnspec::new_with_index(ifindex).carrier(on).build();
        let set = self.handle.link().change(message).execute().await;
        let what = || format!("set the carrier of interface {ifindex}");
        done(set, what, &[libc::EPERM, libc::ENODEV]).map(drop)
    }

    fn is_ours(&self, link: &Link) -> bool {
        link.kind.as_deref() == Some("tun") && link.alias.as_ref() == Some(&self.mark)
    }

    fn foreign(&self, kernel: &Kernel, spec: &TwinSpec) -> Option<TwinError> {
        let link = kernel.links().values().find(|link| link.name == spec.name && !self.is_ours(link))?;
        let kind = link.kind.as_deref().unwrap_or("a device");
        let what = match &link.alias {
            Some(alias) => format!("{kind} with the alias {alias}"),
            None => kind.to_owned(),
        };
        Some(TwinError::Foreign { name: spec.name.clone(), what })
    }

    async fn delete(&self, ifindex: u32, name: &str) -> Result<(), TwinError> {
        let deleted = self.handle.link().del(ifindex).execute().await;
        done(deleted, || format!("remove the interface {name}"), &[libc::ENODEV]).map(drop)
    }

    /// Makes a device. It becomes persistent only when it carries our mark, so that a crash leaves no stray.
    async fn create(&self, spec: &TwinSpec, applied: &mut Applied) -> Result<u32, TwinError> {
        let layer = match spec.kind {
            TwinKind::Tap => Layer::L2,
            TwinKind::Tun => Layer::L3,
        };
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TwinError::Permission(spec.name.clone()),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TwinError::NoTunDriver,
            Some(libc::EBUSY) => TwinError::Busy(spec.name.clone()),
            _ => TwinError::Refused { what: format!("make the interface {}", spec.name), source },
        };
        let device = DeviceBuilder::new().name(&spec.name).layer(layer).inherit_enable_state();
        let device = device.build_sync().map_err(failed)?;
        let ifindex = device.if_index().map_err(failed)?;
        self.settings(spec, applied)?;
        self.link(spec, ifindex, &Link::default(), applied).await?;
        device.persist().map_err(failed)?;
        Ok(ifindex)
    }

    fn settings(&self, spec: &TwinSpec, applied: &mut Applied) -> Result<(), TwinError> {
        for (key, value) in SETTINGS {
            applied.changes += usize::from(sysctl("ipv4", &spec.name, key, value)?);
        }
        // What was decrypted for the gateway itself has a source that the kernel may have no route to: no reverse
        // path filter. The data plane has checked the selectors. The stricter of this and `all` holds, but 2 (loose)
        // outdoes 1 (strict).
        let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
        let filter = if matches!(all.trim(), "" | "0") { "0" } else { "2" };
        applied.changes += usize::from(sysctl("ipv4", &spec.name, "rp_filter", filter)?);
        // No router solicitation, no duplicate address detection, no multicast reports: this release carries IPv4.
        applied.changes += usize::from(sysctl("ipv6", &spec.name, "disable_ipv6", "1")?);
        Ok(())
    }

    /// Changes what differs of mark, MAC address, MTU and state.
    async fn link(
        &self,
        spec: &TwinSpec,
        ifindex: u32,
        old: &Link,
        applied: &mut Applied,
    ) -> Result<(), TwinError> {
        let mut message = LinkUnspec::new_with_index(ifindex);
        let mut changes = 0;
        if old.alias.as_ref() != Some(&self.mark) {
            (message, changes) = (message.alias(&self.mark), changes + 1);
        }
        if let Some(mac) = spec.mac.filter(|&mac| spec.kind == TwinKind::Tap && old.mac != Some(mac)) {
            (message, changes) = (message.address(mac.to_vec()), changes + 1);
        }
        if old.mtu != u32::from(spec.mtu) {
            (message, changes) = (message.mtu(u32::from(spec.mtu)), changes + 1);
        }
        if !old.up {
            (message, changes) = (message.up(), changes + 1);
        }
        if changes > 0 {
            let changed = self.handle.link().change(message.build()).execute().await;
            done(changed, || format!("configure the interface {}", spec.name), &[])?;
        }
        applied.changes += changes;
        Ok(())
    }

    /// Adds what lacks, then removes what is ours and too much: a network that stays does not flap.
    async fn addresses(
        &self,
        spec: &TwinSpec,
        ifindex: u32,
        old: &[Address],
        applied: &mut Applied,
    ) -> Result<(), TwinError> {
        for net in spec.addresses.iter().filter(|net| !old.iter().any(|old| old.address == **net)) {
            let mut request = self.handle.address().add(ifindex, IpAddr::V4(net.addr()), net.prefix_len());
            let protocol = AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL));
            request.message_mut().attributes.push(protocol);
            let what = || format!("give {net} to {}", spec.name);
            applied.changes += usize::from(done(request.execute().await, what, &[libc::EEXIST])?);
        }
        let ours = old.iter().filter(|old| old.protocol == PROTOCOL);
        for address in ours.filter(|old| !spec.addresses.contains(&old.address)) {
            let net = address.address;
            let message = AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex);
            let message = message.address(net.addr(), net.prefix_len()).build();
            let what = || format!("take {net} from {}", spec.name);
            let deleted = self.handle.address().del(message).execute().await;
            applied.changes += usize::from(done(deleted, what, &[libc::EADDRNOTAVAIL])?);
        }
        Ok(())
    }

    async fn routes(
        &self,
        twins: &[TwinSpec],
        routes: &[RouteSpec],
        applied: &mut Applied,
    ) -> Result<(), TwinError> {
        let kernel = Mirror::open().await?.kernel().clone();
        let ifindices: Vec<u32> = applied.ifindices.values().copied().collect();
        // Another gateway in this namespace has the same number and other interfaces.
        let ours = kernel.candidates().filter(|(_, one)| one.protocol == PROTOCOL && one.is_by(&ifindices));
        let wanted = |to, metric| routes.iter().any(|route| (route.to.trunc(), route.metric) == (to, metric));
        for (to, metric) in ours.map(|(to, one)| (to, one.metric)).filter(|&(to, metric)| !wanted(to, metric))
        {
            let message =
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.addr(), to.prefix_len());
            let message = message.priority(metric).protocol(RouteProtocol::Other(PROTOCOL));
            let deleted = self.handle.route().del(message.scope(RouteScope::NoWhere).build()).execute().await;
            let what = || format!("remove the route to {to}");
            applied.changes += usize::from(done(deleted, what, &[libc::ESRCH])?);
        }
        for route in routes {
            let name = route.twin.clone().or_else(|| twin_of(twins, route.via?));
            let ifindex =
                name.and_then(|name| applied.ifindices.get(&name)).ok_or(TwinError::NoTwin(route.to))?;
            applied.changes += usize::from(self.route(&kernel, route, *ifindex).await?);
        }
        Ok(())
    }

    /// Installs one route; false where it was there.
    async fn route(&self, kernel: &Kernel, route: &RouteSpec, ifindex: u32) -> Result<bool, TwinError> {
        let (to, metric) = (route.to.trunc(), route.metric);
        let mut same = kernel.candidates().filter(|(prefix, one)| (*prefix, one.metric) == (to, metric));
        let replace = match same.next() {
            Some((_, one)) if one.protocol != PROTOCOL => return Err(TwinError::RouteTaken { to, metric }),
            Some((_, one)) if one.is_via(ifindex, route.via) => return Ok(false),
            there => there.is_some(),
        };
        let message = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.addr(), to.prefix_len());
        let message =
            message.output_interface(ifindex).priority(metric).protocol(RouteProtocol::Other(PROTOCOL));
        let message = match route.via {
            Some(gateway) => message.gateway(gateway),
            None => message.scope(RouteScope::Link),
        };
        let request = self.handle.route().add(message.build());
        let request = if replace { request.replace() } else { request };
        done(request.execute().await, || format!("install the route to {to}"), &[])
    }
}

fn kind(link: &Link) -> TwinKind {
    if link.mac.is_some() { TwinKind::Tap } else { TwinKind::Tun }
}

/// The twin in whose networks a gateway is.
fn twin_of(twins: &[TwinSpec], gateway: Ipv4Addr) -> Option<String> {
    let mut nets = twins.iter().flat_map(|spec| spec.addresses.iter().map(move |net| (net, &spec.name)));
    nets.find(|(net, _)| net.contains(&gateway)).map(|(_, name)| name.clone())
}

/// Makes a setting of an interface hold `value`. Returns whether it was another.
fn sysctl(family: &str, interface: &str, key: &str, value: &'static str) -> Result<bool, TwinError> {
    let path: PathBuf = ["/proc/sys/net", family, "conf", interface, key].iter().collect();
    match std::fs::read_to_string(&path) {
        Ok(old) if old.trim() == value => return Ok(false),
        // A kernel without IPv6 needs no telling.
        Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => return Ok(false),
        _ => (),
    }
    std::fs::write(&path, value).map_err(|source| TwinError::Sysctl { path, value, source })?;
    Ok(true)
}

/// The kernel's answer: false where it is one of the `harmless` error numbers.
fn done(
    answer: Result<(), rtnetlink::Error>,
    what: impl Fn() -> String,
    harmless: &[i32],
) -> Result<bool, TwinError> {
    let source = match answer {
        Ok(()) => return Ok(true),
        Err(rtnetlink::Error::NetlinkError(message)) => message.to_io(),
        Err(other) => io::Error::other(other),
    };
    match source.raw_os_error() {
        Some(errno) if harmless.contains(&errno) => Ok(false),
        Some(libc::EPERM | libc::EACCES) => Err(TwinError::Permission(what())),
        _ => Err(TwinError::Refused { what: what(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, addresses: &[&str]) -> TwinSpec {
        let addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        TwinSpec { name: name.into(), kind: TwinKind::Tap, mac: None, mtu: 1500, addresses }
    }

    #[test]
    fn a_gateway_finds_its_twin() {
        let twins = [spec("lan", &["10.1.0.1/16"]), spec("wan", &["192.0.2.1/30", "198.51.100.1/24"])];
        let twin = |gateway: &str| twin_of(&twins, gateway.parse().unwrap());
        assert_eq!(twin("10.1.2.3").as_deref(), Some("lan"));
        assert_eq!(twin("198.51.100.254").as_deref(), Some("wan"));
        assert_eq!(twin("192.0.2.4"), None);
    }

    #[test]
    fn answers_of_the_kernel_are_told_apart() {
        let answer = |errno: i32| {
            let mut message = rtnetlink::packet_core::ErrorMessage::default();
            message.code = std::num::NonZeroI32::new(-errno);
            done(Err(rtnetlink::Error::NetlinkError(message)), || "jump".into(), &[libc::EEXIST])
        };
        assert!(!answer(libc::EEXIST).unwrap());
        assert!(matches!(answer(libc::EPERM), Err(TwinError::Permission(what)) if what == "jump"));
        let refused = answer(libc::EINVAL).unwrap_err().to_string();
        assert!(refused.starts_with("the kernel refuses to jump: Invalid argument"), "{refused}");
        assert!(done(Ok(()), String::new, &[]).unwrap());
    }

    #[test]
    fn a_setting_of_no_interface_names_the_file() {
        let error = sysctl("ipv4", "no such thing", "forwarding", "0").unwrap_err().to_string();
        assert!(error.contains("/proc/sys/net/ipv4/conf/no such thing/forwarding"), "{error}");
        assert!(!sysctl("ipv6", "no such thing", "disable_ipv6", "1").unwrap());
    }
}
