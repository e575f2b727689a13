//! Devices with the kernel behind them: net_tap, net_af_packet, net_af_xdp. The case has a network namespace of its own.

use std::net::UdpSocket;
use std::thread;

use penstock_dataplane::dpdk::{Carrier, Choice, Device, DeviceConfig, Eal, Error, Pool, Rules};
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::port::{Burst, Frame, Port};

use crate::lab;

const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x42];

/// An ARP request (RFC 826) from 192.0.2.`host` for the kernel's 192.0.2.1.
fn arp_request(host: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 6];
    octets.extend(OUR_MAC);
    octets.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    octets.extend(OUR_MAC);
    octets.extend([192, 0, 2, host, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    octets.resize(60, 0);
    octets
}

/// Whether this is the kernel's answer to [`arp_request`], to whichever host.
fn is_arp_reply(octets: &[u8]) -> bool {
    let starts = octets.starts_with(&OUR_MAC) && octets[12..14] == [0x08, 0x06] && octets[20..22] == [0, 2];
    starts && octets[28..32] == [192, 0, 2, 1]
}

/// Gives the kernel's end an address, and a neighbour that is us.
fn address_the_kernel(interface: &str) {
    lab::run(&format!(
        "ip address add 192.0.2.1/24 dev {interface}; ip link set {interface} up;
         ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:42 dev {interface}"
    ));
}

fn tap(queues: u16) -> (Eal, Pool, Device, Vec<DpdkPort>) {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, ports) = lab::start(&eal, &pool, "net_tap0,iface=dtap0", queues);
    address_the_kernel("dtap0");
    (eal, pool, device, ports)
}

pub fn tap_talks_to_the_kernel() {
    let (_eal, pool, device, mut ports) = tap(1);
    let info = device.info().unwrap();
    assert_eq!(info.driver, "net_tap");
    let index = lab::run("ip -o link show dtap0").split(':').next().unwrap().parse().ok();
    assert_eq!(info.interface_index, index);
    let mac = info.mac.map(|octet| format!("{octet:02x}")).join(":");
    assert!(
        lab::run("ip -o link show dtap0").contains(&mac),
        "the kernel's end has the port's MAC address {mac}"
    );

    lab::send_all(&mut ports[0], &[arp_request(2)]);
    let replies = lab::receive(&mut ports[0], 1, is_arp_reply);
    assert_eq!(replies[0][6..12], info.mac);

    let socket = UdpSocket::bind("192.0.2.1:4500").unwrap();
    socket.send_to(b"out of the kernel", "192.0.2.2:4501").unwrap();
    let is_ours = |octets: &[u8]| octets.ends_with(b"out of the kernel") && octets.starts_with(&OUR_MAC);
    assert_eq!(lab::receive(&mut ports[0], 1, is_ours)[0].len(), 14 + 20 + 8 + 17);

    let stats = device.stats().unwrap();
    assert!(stats.rx_packets >= 2 && stats.tx_packets == 1 && stats.tx_bytes == 60, "{stats:?}");
    let xstats = device.xstats().unwrap();
    let value = |name| xstats.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    assert_eq!(value("tx_good_packets"), Some(1), "{xstats:?}");
    assert_eq!(value("rx_good_packets"), Some(stats.rx_packets), "{xstats:?}");
    drop((device, ports));
    assert_eq!(pool.in_use(), 0);
}

pub fn tap_runs_two_queues_on_two_workers() {
    const REQUESTS: usize = 500;
    let (eal, pool, device, ports) = tap(2);
    assert_eq!(ports.len(), 2);
    let replies = std::sync::atomic::AtomicUsize::new(0);
    let done = || replies.load(std::sync::atomic::Ordering::Relaxed) >= 2 * REQUESTS;
    let work = |core: usize, mut port: DpdkPort| {
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: core }));
        let _registered = eal.register_thread().unwrap();
        for request in 0..REQUESTS {
            lab::send_all(&mut port, &[arp_request(2 + (request % 200) as u8)]);
            // The kernel chooses the queue: an answer may be the other worker's.
            let mut burst = Burst::new();
            port.receive(&mut burst);
            count_replies(&burst, &replies);
        }
        lab::wait("all answers are here", || {
            let mut burst = Burst::new();
            port.receive(&mut burst);
            count_replies(&burst, &replies);
            done()
        });
    };
    thread::scope(|scope| {
        for (core, port) in ports.into_iter().enumerate() {
            let work = &work;
            scope.spawn(move || work(core, port));
        }
    });
    assert_eq!(replies.into_inner(), 2 * REQUESTS);
    let xstats = device.xstats().unwrap();
    for queue in 0..2 {
        let name = format!("tx_q{queue}_packets");
        let sent = xstats.iter().find(|(key, _)| *key == name);
        assert_eq!(sent.map(|(_, value)| *value), Some(REQUESTS as u64), "{xstats:?}");
    }
    drop(device);
    assert_eq!(pool.in_use(), 0);
}

/// The driver has flow rules, but none for ESP.
pub fn tap_refuses_rules_for_esp_and_receives() {
    let (_eal, pool, mut device, mut ports) = tap(2);
    let words = lab::steering(&mut device, 2).words(2);
    assert!(words.contains("(no RSS by SPI; no flow rule by SPI's last bits: "), "{words}");
    assert!(words.contains("Operation not supported"), "{words}");
    for choice in [Choice::HashOverTable, Choice::HashOverList, Choice::LowBits] {
        for carrier in [Carrier::Ip, Carrier::Udp, Carrier::UdpOfParser] {
            device.steer(Rules { choice, carrier }).unwrap_err();
        }
    }
    lab::send_all(&mut ports[0], &[arp_request(2)]);
    let mut replies = 0;
    lab::wait("the kernel's answer is in one of the queues", || {
        for port in &mut ports {
            let mut burst = Burst::new();
            port.receive(&mut burst);
            replies += burst.iter().filter(|frame| is_arp_reply(frame.data())).count();
        }
        replies == 1
    });
    drop((device, ports));
    assert_eq!(pool.in_use(), 0);
}

fn count_replies(burst: &Burst<penstock_dataplane::dpdk::Mbuf>, replies: &std::sync::atomic::AtomicUsize) {
    let here = burst.iter().filter(|frame| is_arp_reply(frame.data())).count();
    replies.fetch_add(here, std::sync::atomic::Ordering::Relaxed);
}

pub fn tap_follows_the_link() {
    let (_eal, _pool, device, _ports) = tap(1);
    lab::wait("the link is up", || device.link().unwrap().up);
    lab::run("ip link set dtap0 down");
    lab::wait("the link is down", || !device.link().unwrap().up);
    lab::run("ip link set dtap0 up");
    lab::wait("the link is up again", || device.link().unwrap().up);
    assert!(device.link().unwrap().full_duplex);
}

pub fn tap_tells_the_kernel_its_mtu() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let mut device = lab::open(&eal, "net_tap0,iface=dtap0");
    let most = device.info().unwrap().max_mtu;
    let config = |mtu| DeviceConfig { mtu: Some(mtu), ..DeviceConfig::default() };
    if most < 1900 {
        let error = device.configure(&config(1900), &pool).unwrap_err();
        assert!(matches!(error, Error::Mtu { wanted: 1900, .. }), "{error}");
    }
    device.configure(&config(1400), &pool).unwrap();
    let queues = device.start().unwrap();
    assert_eq!((queues.len(), device.mtu().unwrap()), (1, 1400));
    assert!(lab::run("ip -o link show dtap0").contains("mtu 1400"));
    device.set_mtu(1280).unwrap();
    assert_eq!(device.mtu().unwrap(), 1280);
    assert!(lab::run("ip -o link show dtap0").contains("mtu 1280"));
    let error = device.set_mtu(20).unwrap_err();
    assert!(matches!(error, Error::Mtu { wanted: 20, .. }), "{error}");
    assert_eq!(device.mtu().unwrap(), 1280);
}

pub fn tap_becomes_promiscuous() {
    let (_eal, _pool, mut device, _ports) = tap(1);
    for on in [true, false, true] {
        device.set_promiscuous(on).unwrap();
        assert_eq!(device.promiscuous().unwrap(), on);
        assert_eq!(lab::run("ip -o link show dtap0").contains("PROMISC"), on);
    }
}

/// Two devices on the two ends of a veth pair: what one sends, the other receives. Returns how many frames the devices
/// hold before they carry anything, while they are idle afterwards, and when they are closed.
fn over_a_wire(left: &str, right: &str) -> [usize; 3] {
    lab::run("ip link add wire0 type veth peer name wire1; ip link set wire0 up; ip link set wire1 up");
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (one, mut left) = lab::start(&eal, &pool, left, 1);
    let (two, mut right) = lab::start(&eal, &pool, right, 1);
    let before = pool.in_use();
    let frames = lab::numbered_frames(2000);
    for some in frames.chunks(50) {
        lab::send_all(&mut left[0], some);
        assert_eq!(lab::receive(&mut right[0], some.len(), lab::is_numbered), some);
        lab::send_all(&mut right[0], some);
        assert_eq!(lab::receive(&mut left[0], some.len(), lab::is_numbered), some);
    }
    assert!(one.stats().unwrap().rx_packets >= 2000 && two.stats().unwrap().tx_packets >= 2000);
    let idle = pool.in_use();
    drop((one, left, two, right));
    [before, idle, pool.in_use()]
}

pub fn af_packet_over_a_wire() {
    let [before, idle, closed] = over_a_wire("net_af_packet0,iface=wire0", "net_af_packet1,iface=wire1");
    assert_eq!((before, idle, closed), (0, 0, 0));
}

pub fn af_xdp_over_a_wire() {
    let [before, idle, closed] =
        over_a_wire("net_af_xdp0,iface=wire0,force_copy=1", "net_af_packet1,iface=wire1");
    // This driver never takes back what it lent to the kernel: 2,048 descriptors, and what was being sent. It must not
    // become more with the traffic, which is 4,000 frames here.
    assert!(idle <= before + 256 && closed <= idle, "{before} frames held, then {idle}, then {closed}");
}
