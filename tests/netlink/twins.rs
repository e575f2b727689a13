//! Twins are made, kept and removed, and frames pass between them and the rings of the workers.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use penstock_control::netlink::Mirror;
use penstock_control::twins::{PROTOCOL, RouteSpec, TwinError, TwinKind, TwinSpec, Twins};
use penstock_dataplane::path::punt::{Twin, Twins as Rings};
use penstock_dataplane::port::Frame;
use penstock_dataplane::port::memory::{MemoryFrame, MemoryPool};
use penstock_dataplane::twin::{TwinBooks, TwinThread};
use penstock_tables::TwinReport;

use crate::lab::{NEVER, addr, block_on, ip, net, run};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

fn lan() -> TwinSpec {
    let addresses = vec![net("192.0.2.1/24"), net("198.51.100.1/30")];
    TwinSpec { name: "plan".into(), kind: TwinKind::Tap, mac: Some(MAC), mtu: 1400, addresses }
}

fn tunnel() -> TwinSpec {
    let addresses = vec![net("10.9.0.1/30")];
    TwinSpec { name: "ptun".into(), kind: TwinKind::Tun, mac: None, mtu: 1380, addresses }
}

fn setting(twin: &str, key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{}", key.replace("TWIN", twin))).unwrap().trim().to_owned()
}

pub fn are_made_adopted_changed_and_removed() {
    block_on(async {
        let twins = Twins::open("test").unwrap();
        let first = twins.apply(&[lan(), tunnel()], &[]).await.unwrap();
        assert_eq!(first.created, ["plan", "ptun"]);
        let mirror = Mirror::open().await.unwrap();
        for spec in [lan(), tunnel()] {
            let ifindex = first.ifindices[&spec.name];
            let link = &mirror.kernel().links()[&ifindex];
            assert_eq!((&link.name, link.mac, link.mtu), (&spec.name, spec.mac, u32::from(spec.mtu)));
            assert_eq!((link.up, link.carrier, link.alias.as_deref()), (true, false, Some("penstock:test")));
            let addresses: BTreeSet<_> = mirror.kernel().addresses_of(ifindex).map(|it| it.address).collect();
            assert_eq!(addresses, spec.addresses.into_iter().collect());
            assert_eq!(setting(&spec.name, "ipv4/conf/TWIN/forwarding"), "0");
            assert_eq!(setting(&spec.name, "ipv4/conf/TWIN/arp_ignore"), "1");
            assert_eq!(setting(&spec.name, "ipv4/conf/TWIN/ignore_routes_with_linkdown"), "1");
            assert_eq!(setting(&spec.name, "ipv4/conf/TWIN/rp_filter"), "0");
            assert_eq!(setting(&spec.name, "ipv6/conf/TWIN/disable_ipv6"), "1");
        }
        // A restart: everything is found as it should be, and what others added stays.
        ip(&["route add 10.2.0.0/16 via 192.0.2.2", "addr add 192.0.2.100/24 dev plan"]);
        drop(twins);
        let twins = Twins::open("test").unwrap();
        let second = twins.apply(&[lan(), tunnel()], &[]).await.unwrap();
        assert_eq!((second.adopted.len(), second.created.len(), second.changes), (2, 0, 0), "{second:?}");
        assert_eq!(second.ifindices, first.ifindices);
        // A changed file: one address goes, one comes, the MTU changes; the route over the rest stays.
        let mut changed = lan();
        changed.mtu = 1300;
        changed.addresses = vec![net("192.0.2.1/24"), net("203.0.113.1/24")];
        let third = twins.apply(&[changed], &[]).await.unwrap();
        assert_eq!((third.removed, third.changes), (vec!["ptun".to_owned()], 3));
        let mirror = Mirror::open().await.unwrap();
        let kernel = mirror.kernel();
        let addresses: BTreeSet<_> = kernel.addresses().iter().map(|it| it.address).collect();
        assert_eq!(addresses, ["192.0.2.1/24", "192.0.2.100/24", "203.0.113.1/24"].map(net).into());
        // The mirror takes no route over a twin without a carrier.
        let stays = std::process::Command::new("ip").args(["route", "show", "10.2.0.0/16"]).output().unwrap();
        assert!(String::from_utf8_lossy(&stays.stdout).contains("via 192.0.2.2 dev plan"));
        assert!(!kernel.routes().contains_key(&net("10.2.0.0/16")));
        assert_eq!(
            (kernel.ifindex("plan"), kernel.ifindex("ptun")),
            (first.ifindices.get("plan").copied(), None)
        );
        assert_eq!(twins.remove().await.unwrap().removed, ["plan"]);
        assert_eq!(Mirror::open().await.unwrap().kernel().ifindex("plan"), None);
    });
}

pub fn of_others_are_left_alone() {
    ip(&["tuntap add ptun mode tun", "link add plan type veth peer name other"]);
    block_on(async {
        let twins = Twins::open("test").unwrap();
        for spec in [lan(), tunnel()] {
            let error = twins.apply(std::slice::from_ref(&spec), &[]).await.unwrap_err();
            assert!(matches!(&error, TwinError::Foreign { name, .. } if *name == spec.name), "{error}");
            assert!(error.to_string().contains("ip link del"), "{error}");
        }
        ip(&["link del plan", "link del ptun"]);
        let another = Twins::open("another").unwrap();
        another.apply(&[lan()], &[]).await.unwrap();
        let error = twins.apply(&[lan()], &[]).await.unwrap_err().to_string();
        assert!(error.contains("penstock:another"), "{error}");
        twins.apply(&[tunnel()], &[]).await.unwrap();
        assert_eq!(twins.remove().await.unwrap().removed, ["ptun"]);
        assert!(Mirror::open().await.unwrap().kernel().ifindex("plan").is_some());
        // The same name and another kind: made anew.
        let changed = TwinSpec { kind: TwinKind::Tun, mac: None, ..lan() };
        let applied = another.apply(&[changed], &[]).await.unwrap();
        assert_eq!((applied.removed.len(), applied.created.len()), (1, 1));
    });
}

pub fn routes_are_installed_changed_and_removed() {
    block_on(async {
        let twins = Twins::open("test").unwrap();
        let route = |to: &str, via: &str, metric| RouteSpec {
            to: net(to),
            via: via.parse().ok(),
            twin: None,
            metric,
        };
        let by_tunnel = RouteSpec { twin: Some("ptun".into()), ..route("10.20.0.0/16", "", 0) };
        let routes = [route("10.2.0.0/16", "192.0.2.2", 0), route("0.0.0.0/0", "198.51.100.2", 5), by_tunnel];
        let specs = [lan(), tunnel()];
        let applied = twins.apply(&specs, &routes).await.unwrap();
        let (plan, ptun) = (applied.ifindices["plan"], applied.ifindices["ptun"]);
        let attached = Running::new(64);
        attached.attached(2);
        let hop = async |to: &str| {
            let mirror = Mirror::open().await.unwrap();
            let route = mirror.kernel().routes().get(&net(to)).filter(|route| route.protocol == PROTOCOL);
            route.map(|route| (route.target.hops()[0].ifindex, route.target.hops()[0].gateway, route.metric))
        };
        assert_eq!(hop("10.2.0.0/16").await, Some((plan, Some(addr("192.0.2.2")), 0)));
        assert_eq!(hop("0.0.0.0/0").await, Some((plan, Some(addr("198.51.100.2")), 5)));
        assert_eq!(hop("10.20.0.0/16").await, Some((ptun, None, 0)));
        assert_eq!(twins.apply(&specs, &routes).await.unwrap().changes, 0);
        // One changes, two go, those of others stay.
        ip(&["route add 10.30.0.0/16 via 192.0.2.3", "route add 10.31.0.0/16 dev ptun metric 20 proto 186"]);
        let applied = twins.apply(&specs, &[route("10.2.0.0/16", "192.0.2.9", 0)]).await.unwrap();
        assert_eq!(applied.changes, 3);
        assert_eq!(hop("10.2.0.0/16").await, Some((plan, Some(addr("192.0.2.9")), 0)));
        assert_eq!((hop("0.0.0.0/0").await, hop("10.20.0.0/16").await), (None, None));
        let mirror = Mirror::open().await.unwrap();
        assert!(
            ["10.30.0.0/16", "10.31.0.0/16"]
                .map(net)
                .iter()
                .all(|to| mirror.kernel().routes().contains_key(to))
        );
        let taken = twins.apply(&specs, &[route("10.30.0.0/16", "192.0.2.4", 0)]).await.unwrap_err();
        assert!(matches!(taken, TwinError::RouteTaken { metric: 0, .. }), "{taken}");
        let nowhere = twins.apply(&specs, &[route("10.40.0.0/16", "172.16.0.1", 0)]).await.unwrap_err();
        assert!(matches!(nowhere, TwinError::NoTwin(to) if to == net("10.40.0.0/16")), "{nowhere}");
    });
}

pub fn have_the_carrier_that_is_set() {
    block_on(async {
        let twins = Twins::open("test").unwrap();
        let applied = twins.apply(&[lan(), tunnel()], &[]).await.unwrap();
        let (plan, ptun) = (applied.ifindices["plan"], applied.ifindices["ptun"]);
        let carriers = async || {
            let mirror = Mirror::open().await.unwrap();
            [plan, ptun].map(|index| mirror.kernel().links()[&index].carrier)
        };
        // Without the data plane there is none, whoever asks for it.
        twins.set_carrier(ptun, true).await.unwrap();
        assert_eq!(carriers().await, [false, false]);
        let running = Running::new(64);
        running.attached(2);
        assert_eq!(carriers().await, [true, true]);
        ip(&[
            "route add 10.20.0.0/16 dev ptun metric 10",
            "route add 10.20.0.0/16 via 192.0.2.7 metric 20",
            "route add 10.21.0.0/16 dev ptun",
        ]);
        let target = async |to: &str| {
            let mirror = Mirror::open().await.unwrap();
            mirror.kernel().routes().get(&net(to)).map(|route| route.target.hops()[0].ifindex)
        };
        assert_eq!((target("10.20.0.0/16").await, target("10.21.0.0/16").await), (Some(ptun), Some(ptun)));
        // The tunnel goes down: the worse route takes over; what has no other stays in the tunnel, never in the clear.
        twins.set_carrier(ptun, false).await.unwrap();
        assert_eq!(carriers().await, [true, false]);
        assert_eq!((target("10.20.0.0/16").await, target("10.21.0.0/16").await), (Some(plan), Some(ptun)));
        // So does the kernel, which says which one it takes; its own flags follow within a second.
        let kernel_takes = || {
            let said = std::process::Command::new("ip").args(["route", "get", "10.20.0.9"]).output().unwrap();
            String::from_utf8_lossy(&said.stdout).contains("dev plan").then_some(())
        };
        wait_for("the kernel's choice", kernel_takes);
        twins.set_carrier(ptun, true).await.unwrap();
        assert_eq!((carriers().await, target("10.20.0.0/16").await), ([true, true], Some(ptun)));
        twins.set_carrier(plan, false).await.unwrap();
        assert_eq!(carriers().await, [false, true]);
    });
}

pub fn never_forward() {
    run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
    block_on(async {
        let twins = Twins::open("test").unwrap();
        twins.apply(&[lan(), tunnel()], &[]).await.unwrap();
        assert_eq!(setting("plan", "ipv4/conf/TWIN/forwarding"), "0");
        assert_eq!(setting("plan", "ipv4/conf/TWIN/rp_filter"), "2");
        assert_eq!(twins.hold_forwarding(["plan", "ptun"]).unwrap(), [""; 0]);
        run("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/ip_forward");
        assert_eq!(setting("ptun", "ipv4/conf/TWIN/forwarding"), "1");
        assert_eq!(twins.hold_forwarding(["plan", "ptun"]).unwrap(), ["plan", "ptun"]);
        assert_eq!(setting("ptun", "ipv4/conf/TWIN/forwarding"), "0");
    });
}

/// The twins' thread on memory frames, stopped with this value.
struct Running {
    pool: MemoryPool,
    rings: Rings<MemoryFrame>,
    counters: TwinBooks,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(ring: usize) -> Running {
        let (pool, rings, stop) =
            (MemoryPool::new(256), Rings::new(ring, 100_000), Arc::new(AtomicBool::new(false)));
        let wanted = || vec![(Twin::Port(3), "plan".to_owned()), (Twin::Tunnel(70_000), "ptun".to_owned())];
        let (frames, stopped) = (pool.clone(), stop.clone());
        let mut twins = TwinThread::with(Box::new(wanted), rings.clone(), move || frames.allocate());
        let counters = twins.counters();
        let thread = Some(std::thread::spawn(move || twins.run(&stopped)));
        Running { pool, rings, counters, stop, thread }
    }

    /// Waits until as many devices were attached.
    fn attached(&self, times: u64) {
        wait_for("attached", || (self.all(|report| report.attached) >= times).then_some(()));
    }

    /// A figure of all twins together.
    fn all(&self, figure: impl Fn(&TwinReport) -> u64) -> u64 {
        let twins = (0..16).map(Some).chain([None]);
        twins.map(|port| figure(&self.counters.at(port).report())).sum()
    }

    fn send(&self, twin: Twin, octets: &[u8]) {
        assert!(self.rings.to_kernel.push((twin, self.pool.frame(octets).unwrap())).is_ok());
    }

    /// The next frame of a twin that is as wanted; others are dropped.
    fn receive(&self, twin: Twin, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        wait_for("a frame", || {
            let (from, frame) = self.rings.from_kernel.pop()?;
            (from == twin && is_wanted(frame.data())).then(|| frame.data().to_vec())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(begin.elapsed() < NEVER, "no {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn make() -> u32 {
    block_on(async {
        Twins::open("test").unwrap().apply(&[lan(), tunnel()], &[]).await.unwrap().ifindices["plan"]
    })
}

/// "Who has 192.0.2.1? Tell 192.0.2.50."
fn arp_request() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &STATION, &[8, 6]].concat();
    let asks = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &STATION, &[192, 0, 2, 50], &[0; 6], &[192, 0, 2, 1]].concat();
    [ethernet, asks].concat()
}

fn answers_arp(running: &Running) {
    running.send(Twin::Port(3), &arp_request());
    let reply = running.receive(Twin::Port(3), |frame| frame[12..14] == [8, 6] && frame[21] == 2);
    assert_eq!((&reply[..6], &reply[6..12], &reply[22..28]), (&STATION[..], &MAC[..], &MAC[..]));
}

/// An echo request from 10.9.0.2 to 10.9.0.1.
fn echo_request() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 1, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    packet.extend([8, 0, 0, 0, 0x12, 0x34, 0, 7, 0xab, 0xcd, 0xef, 0x01]);
    for (range, at) in [(0..20, 10), (20..32, 22)] {
        let words = packet[range].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

pub fn frames_pass_both_ways() {
    make();
    let running = Running::new(64);
    running.attached(2);
    answers_arp(&running);
    running.send(Twin::Tunnel(70_000), &echo_request());
    let reply = running.receive(Twin::Tunnel(70_000), |packet| packet.len() == 32 && packet[9] == 1);
    assert_eq!((&reply[12..20], reply[20]), (&[10, 9, 0, 1, 10, 9, 0, 2][..], 0));
    assert_eq!(reply[24..], echo_request()[24..]);
    // What is no frame and what has no device is lost, counted and given back.
    running.send(Twin::Port(3), b"short");
    running.send(Twin::Port(9), &arp_request());
    let of = |port| running.counters.at(port).report();
    wait_for("counts", || (of(Some(3)).refused == 1 && of(Some(9)).detached == 1).then_some(()));
    assert_eq!((of(Some(3)).to_kernel, of(Some(3)).detached, of(Some(3)).no_frame), (1, 0, 0));
    let tunnels = of(None);
    assert_eq!((tunnels.to_kernel, tunnels.refused + tunnels.detached + tunnels.no_frame), (1, 0));
    while running.rings.from_kernel.pop().is_some() {}
    wait_for("frames given back", || (running.pool.in_use() == 0).then_some(()));
}

pub fn devices_made_anew_are_attached_again() {
    let first = make();
    let running = Running::new(64);
    running.attached(2);
    answers_arp(&running);
    assert!(running.rings.is_present(Twin::Port(3)));
    ip(&["link del plan"]);
    // Lost, and no device is made by the attempt.
    running.send(Twin::Port(3), &arp_request());
    wait_for("loss", || (running.all(|report| report.refused + report.detached) == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!running.rings.is_present(Twin::Port(3)) && running.rings.is_present(Twin::Tunnel(70_000)));
    let links = run("ip -o link show type tun");
    assert!(links.contains("ptun") && !links.contains("plan"), "{links}");
    assert_ne!(make(), first);
    running.attached(3);
    answers_arp(&running);
    // A device that is down refuses, and is there again when it is up.
    ip(&["link set plan down"]);
    let refused = running.all(|report| report.refused);
    running.send(Twin::Port(3), &arp_request());
    wait_for("refusal", || (running.all(|report| report.refused) == refused + 1).then_some(()));
    ip(&["link set plan up"]);
    answers_arp(&running);
}

pub fn what_the_workers_do_not_take_waits() {
    make();
    let running = Running::new(8);
    running.attached(2);
    // So many that the ring is full and most wait with the kernel.
    let socket = UdpSocket::bind(("10.9.0.1", 0)).unwrap();
    for n in 0..100u8 {
        socket.send_to(&[n; 20], ("10.9.0.2", 9)).unwrap();
    }
    wait_for("a full ring", || running.rings.from_kernel.is_full().then_some(()));
    for n in 0..100u8 {
        let packet = running.receive(Twin::Tunnel(70_000), |packet| packet[9] == 17);
        assert_eq!(packet[28..], [n; 20]);
    }
    assert_eq!(running.all(|report| report.no_frame), 0);
    // With the pool empty, frames are lost and counted, and then it goes on.
    let held: Vec<_> = std::iter::from_fn(|| running.pool.allocate()).collect();
    socket.send_to(&[200; 20], ("10.9.0.2", 9)).unwrap();
    wait_for("a loss", || (running.counters.at(None).report().no_frame == 1).then_some(()));
    drop(held);
    socket.send_to(&[201; 20], ("10.9.0.2", 9)).unwrap();
    assert_eq!(running.receive(Twin::Tunnel(70_000), |packet| packet[9] == 17)[28..], [201; 20]);
}
