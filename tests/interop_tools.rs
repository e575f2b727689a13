//! Independent eyes: what scapy seals, Penstock opens, octet for octet; what Penstock seals, tshark and scapy open (RFC 4303,
//! 4106, 3948). Real gateways, real ports, keys known to all.

use std::net::UdpSocket;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use penstock_suite::capture::{Capture, frames};
use penstock_suite::command::{inside, succeed, until};
use penstock_suite::counters::Counters;
use penstock_suite::decrypt::{Dissected, Sealing};
use penstock_suite::flow::within;
use penstock_suite::gateway::{self, Gateway, Setup, mac, tunnel};
use penstock_suite::lab::{Lab, Site};

const KEY_OUT: &str = "000102030405060708090a0b0c0d0e0fa0a1a2a3";
const KEY_BACK: &str = "101112131415161718191a1b1c1d1e1fb0b1b2b3";

/// How both directions between the sites are sealed: from A to B, from B to A.
fn sealings(esn: bool, udp: bool) -> [Sealing; 2] {
    [(KEY_OUT, 0x1001), (KEY_BACK, 0x1002)].map(|(key, spi)| Sealing { key: key.into(), spi, esn, udp })
}

fn setup(site: Site, [there, back]: &[Sealing; 2]) -> Setup {
    let (outbound, inbound) = if site == Site::A { (there, back) } else { (back, there) };
    let key = |sealing: &Sealing| format!("{{spi: {}, key: {}}}", sealing.spi, sealing.key);
    let keys = format!("lab_keys: {{outbound: {}, inbound: {}}}", key(outbound), key(inbound));
    let encapsulation = if there.udp { "udp" } else { "esp" };
    Setup::new(site, tunnel(site, &keys, &format!("encapsulation: {encapsulation}\nesn: {}", there.esn)))
}

/// The IPv4 packet in a frame, without Ethernet's padding.
fn packet(frame: &[u8]) -> &[u8] {
    let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    &frame[14..14 + length]
}

/// The packet as a router hands it on: a hop less, the checksum anew (RFC 1812 section 5.3.1).
fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    let mut next = packet.to_vec();
    next[8] -= 1;
    next[10..12].fill(0);
    let words = next[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    next[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    next
}

fn scapy_is_opened(esn: bool, udp: bool) {
    let lab = Lab::make();
    let sealings = sealings(esn, udp);
    let gateway = Gateway::start(&lab, &setup(Site::B, &sealings));
    let host = lab.host(Site::B);
    assert!(until(Duration::from_secs(20), || lab.ping(Site::B, "10.2.0.1", 1) == 1), "no gateway");
    let largest = if udp { 1438 } else { 1446 };
    let (file, inner) =
        sealings[0].make_by_scapy(lab.folder(), &mac(Site::A, "wan"), &mac(Site::B, "wan"), largest);
    assert!(inner.iter().map(Vec::len).eq(20..=largest), "scapy made other sizes");
    let capture = Capture::whole(&host, "tlan", &lab.file("inside.pcap"), "src 10.1.0.2 and dst 10.2.0.2");
    let send = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/send.py");
    let mut sender = inside(&lab.wire(), "/usr/bin/python3");
    let sent = succeed(sender.arg(send).arg(&file).args(["wire", "2000"]));
    assert_eq!(sent.trim(), inner.len().to_string());
    sleep(Duration::from_secs(1));
    let (file, _) = capture.stop();
    let expected: Vec<Vec<u8>> = inner.iter().map(|packet| one_hop_on(packet)).collect();
    let opened: Vec<Vec<u8>> = frames(&file).iter().map(|frame| packet(frame).to_vec()).collect();
    assert_eq!(opened.len(), expected.len(), "{:?}", Counters::read(&gateway));
    for (opened, expected) in opened.iter().zip(&expected) {
        assert_eq!(opened, expected, "an inner packet of {} octets", expected.len());
    }
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    counters.must_have_opened_all();
    gateway.stop();
}

fn tshark_and_scapy_open(esn: bool, udp: bool) {
    let lab = Lab::make();
    let sealings = sealings(esn, udp);
    let gateways = gateway::pair(&lab, |site| setup(site, &sealings));
    let inside = Capture::whole(&lab.host(Site::A), "tlan", &lab.file("inside.pcap"), "dst 10.2.0.2");
    let wire = Capture::whole(&lab.wire(), "wire", &lab.file("wire.pcap"), "host 192.0.2.1 and not arp");
    let sizes = 0..=1400;
    let count = sizes.clone().count();
    let sender = within(&lab.host(Site::A), move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for size in sizes {
            // It begins with zeros, so that tshark takes it for no protocol.
            let payload: Vec<u8> =
                (0..size).map(|at| if at < 8 { 0 } else { (at * 31 + size) as u8 }).collect();
            socket.send_to(&payload, "10.2.0.2:9").expect("sent");
            sleep(Duration::from_micros(500));
        }
    });
    sender.join().expect("sent");
    sleep(Duration::from_secs(1));
    let ((inside, _), (wire, counts)) = (inside.stop(), wire.stop());
    assert_eq!(counts.missed, 0);
    let expected: Vec<Vec<u8>> = frames(&inside).iter().map(|frame| one_hop_on(packet(frame))).collect();
    assert_eq!(expected.len(), count, "host A did not send what it was told to");
    let opened = sealings[0].open_by_scapy(&wire);
    assert_eq!(opened.len(), expected.len());
    for (opened, expected) in opened.iter().zip(&expected) {
        assert_eq!(opened, expected, "an inner packet of {} octets", expected.len());
    }
    let dissected = sealings[0].open_by_tshark(&wire, "192.0.2.1", "192.0.2.2");
    assert_eq!(dissected.len(), expected.len());
    for (dissected, packet) in dissected.iter().zip(&expected) {
        let right = Dissected {
            // tshark 4.0 leaves the high half out of what the tag covers.
            tag_is_right: !esn,
            is_ipv4: true,
            source: "10.1.0.2".into(),
            destination: "10.2.0.2".into(),
            length: packet.len().to_string(),
            ttl: "63".into(),
        };
        assert_eq!(*dissected, right);
    }
    gateways.into_iter().for_each(Gateway::stop);
}

macro_rules! modes {
    ($($opens:ident $seals:ident $esn:literal $udp:literal,)*) => {
        $(
            #[test]
            #[ignore = "needs root, TAP devices and scapy: scripts/test runs it"]
            fn $opens() {
                scapy_is_opened($esn, $udp);
            }

            #[test]
            #[ignore = "needs root, TAP devices, tshark and scapy: scripts/test runs it"]
            fn $seals() {
                tshark_and_scapy_open($esn, $udp);
            }
        )*
    };
}

modes! {
    opens_what_scapy_seals_plain seals_what_tshark_and_scapy_open_plain false false,
    opens_what_scapy_seals_esn seals_what_tshark_and_scapy_open_esn true false,
    opens_what_scapy_seals_udp seals_what_tshark_and_scapy_open_udp false true,
    opens_what_scapy_seals_udp_esn seals_what_tshark_and_scapy_open_udp_esn true true,
}
