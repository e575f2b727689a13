//! The Linux kernel's own ESP (RFC 4303, 4106, 3948) in the place of gateway B: static keys, ping and iperf3 both ways.

use std::time::Duration;

use penstock_suite::capture::{Capture, Seen, frames, see};
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::decrypt::Sealing;
use penstock_suite::gateway::{Gateway, Setup, tunnel};
use penstock_suite::iperf;
use penstock_suite::lab::{Lab, Site, ping};
use penstock_suite::peer::LinuxPeer;

/// Keys from Penstock to Linux and back.
const KEYS_128: [&str; 2] =
    ["000102030405060708090a0b0c0d0e0fa0a1a2a3", "101112131415161718191a1b1c1d1e1fb0b1b2b3"];
const KEYS_256: [&str; 2] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa0a1a2a3",
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3fb0b1b2b3",
];

fn linux_and_penstock_talk(keys: [&str; 2], udp: bool, esn: bool) {
    let lab = Lab::make();
    let sealing = |key: &str, spi| Sealing { key: key.into(), spi, esn, udp };
    let (outbound, inbound) = (sealing(keys[0], 0x1001), sealing(keys[1], 0x1002));
    let cipher = if keys == KEYS_128 { "aes128gcm16" } else { "aes256gcm16" };
    let key = |sealing: &Sealing| format!("{{spi: {}, key: {}}}", sealing.spi, sealing.key);
    let keys = format!("lab_keys: {{outbound: {}, inbound: {}}}", key(&outbound), key(&inbound));
    let options =
        format!("encapsulation: {}\nesn: {esn}\ncipher: {}", if udp { "udp" } else { "esp" }, cipher,);
    let capture =
        Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "host 192.0.2.1 and host 192.0.2.2");
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, tunnel(Site::A, &keys, &options)));
    let peer = LinuxPeer::start(&lab, &outbound, &inbound);
    let host = lab.host(Site::A);
    assert!(until(Duration::from_secs(20), || ping(&host, "10.2.0.1", 1) == 1), "Linux does not answer");
    assert_eq!(ping(&host, "10.2.0.1", 10), 10);
    for direction in ["", "-R"] {
        let rate = iperf::tcp(&host, "10.2.0.1", 4, direction);
        eprintln!("TCP {direction}: {rate:.0} Mbit/s");
        assert!(rate > 1.0, "TCP {direction}: {rate} Mbit/s");
    }
    let (sent, lost) = iperf::udp(&host, "10.2.0.1", 3, "5M");
    assert!(sent > 1000 && lost * 20 < sent, "{lost} of {sent} datagrams were lost");
    // Neither side saw a packet that it could not open.
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    counters.must_have_opened_all();
    let states = peer.run("ip -s xfrm state");
    assert_eq!(states.matches("replay-window 0 replay 0 failed 0").count(), 2, "{states}");
    drop(peer);
    let (file, _) = capture.stop();
    let mut both = [0; 2];
    for frame in frames(&file) {
        match see(&frame) {
            Seen::Esp(packet) => {
                assert_eq!(packet.in_udp, udp);
                both[usize::from(packet.source == [192, 0, 2, 2])] += 1;
            }
            Seen::Arp | Seen::Keepalive => {}
            other => panic!("on the wire: {other:x?}"),
        }
    }
    assert!(both.iter().all(|packets| *packets > 1000), "ESP packets by direction: {both:?}");
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices and user-mode Linux: scripts/test runs it"]
fn plain_esp() {
    linux_and_penstock_talk(KEYS_128, false, false);
}

#[test]
#[ignore = "needs root, TAP devices and user-mode Linux: scripts/test runs it"]
fn extended_sequence_numbers() {
    linux_and_penstock_talk(KEYS_128, false, true);
}

#[test]
#[ignore = "needs root, TAP devices and user-mode Linux: scripts/test runs it"]
fn udp_4500_with_256_bit_keys() {
    linux_and_penstock_talk(KEYS_256, true, false);
}
