//! Two gateways from two files: packets pass both ways, counters add up, and only ESP is on the wire (RFC 4301, 4303, 3948).

use penstock_suite::capture::{Capture, Seen, frames, see};
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{self, Gateway, Setup, secret_tunnel};
use penstock_suite::iperf;
use penstock_suite::lab::{Lab, Site};

fn sites_talk_and_the_wire_sees_esp_only(hugepages: &str, options: &str, in_udp: bool) {
    let lab = Lab::make();
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "");
    let [a, b] = gateway::pair(&lab, |site| Setup {
        memory: format!("{{hugepages: {hugepages}, megabytes: 128}}"),
        ..Setup::new(site, secret_tunnel(&lab, site, options))
    });
    assert_eq!(lab.ping(Site::A, "10.2.0.2", 10), 10);
    assert_eq!(lab.ping(Site::B, "10.1.0.2", 10), 10);
    let server = iperf::Server::start(&lab.host(Site::B));
    for direction in ["", "-R"] {
        let rate = iperf::tcp(&lab.host(Site::A), "10.2.0.2", 3, direction);
        assert!(rate > 1.0, "{rate} Mbit/s");
    }
    let (sent, lost) = iperf::udp(&lab.host(Site::A), "10.2.0.2", 3, "10M");
    assert!(sent > 1000 && lost == 0, "{lost} of {sent} datagrams were lost");
    drop(server);
    let (file, counts) = capture.stop();
    assert_eq!(counts.missed, 0);
    let mut esp = 0;
    for frame in frames(&file) {
        match see(&frame) {
            Seen::Esp(packet) => {
                assert_eq!(packet.in_udp, in_udp);
                esp += 1;
            }
            Seen::Arp => {}
            other => panic!("on the wire: {other:x?}"),
        }
    }
    assert!(esp > 1000, "{esp} ESP packets");
    for gateway in [a, b] {
        let counters = Counters::read(&gateway);
        counters.must_add_up();
        counters.must_have_opened_all();
        gateway.stop();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn plain_esp_without_huge_pages() {
    sites_talk_and_the_wire_sees_esp_only("off", "", false);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn udp_4500_with_256_bit_keys() {
    sites_talk_and_the_wire_sees_esp_only("off", "encapsulation: udp\ncipher: aes256gcm16\nesn: false", true);
}

#[test]
#[ignore = "needs root, TAP devices and huge pages: scripts/test runs it"]
fn plain_esp_on_huge_pages() {
    sites_talk_and_the_wire_sees_esp_only("on", "", false);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn without_the_other_gateway_nothing_leaves_in_the_clear() {
    let lab = Lab::make();
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "");
    let a = Gateway::start(&lab, &Setup::new(Site::A, secret_tunnel(&lab, Site::A, "")));
    assert_eq!(lab.ping(Site::A, "10.2.0.2", 5), 0);
    let (file, counts) = capture.stop();
    assert!(counts.captured > 0, "not even ARP for the peer was seen");
    for frame in frames(&file) {
        assert!(matches!(see(&frame), Seen::Arp | Seen::Esp(_)), "on the wire: {:x?}", see(&frame));
    }
    Counters::read(&a).must_add_up();
    a.stop();
}
