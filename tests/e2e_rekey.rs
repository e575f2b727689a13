//! New keys every second under traffic below capacity: no datagram is lost, none is taken for a replay (RFC 4301 section
//! 4.5: a new SA before the old one ends). 20 s, or 60 s in the nightly form.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use penstock_suite::capture::{Capture, esp_packets, repeated_nonces};
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{self, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::{flow, iperf};

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_rekey_a_second_loses_nothing() {
    let rekeys = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 60 } else { 20 };
    let lab = Lab::make();
    let [a, b] = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "proto 50");
    let server = iperf::Server::start(&lab.host(Site::B));
    // A few packets a second the other way too: the peer's new keys are seen in use.
    let (from, to, address) = (lab.host(Site::B), lab.host(Site::A), Site::A.host());
    let back = flow::Flow::start(flow::Plan { from, to, address, rate: 100, octets: 64 });
    let host = lab.host(Site::A);
    let client = thread::spawn(move || iperf::udp(&host, "10.2.0.2", rekeys + 4, "20M"));
    thread::sleep(Duration::from_secs(2));
    let start = Instant::now();
    for number in 0..rekeys {
        a.run(&["rekey", "site"]);
        let next = start + Duration::from_secs(u64::from(number) + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (sent, lost) = client.join().expect("iperf3 ran");
    let report = back.stop();
    drop(server);
    let (file, counts) = capture.stop();
    assert!(sent > 1000 * u64::from(rekeys), "only {sent} datagrams were sent");
    assert_eq!(lost, 0, "of {sent} datagrams");
    assert_eq!(report.lost, [0; 0], "of {} datagrams the other way", report.sent);
    assert_eq!(counts.missed, 0, "the capture has gaps and proves nothing");
    let packets = esp_packets(&file);
    assert_eq!(repeated_nonces(&packets), []);
    for source in [[192, 0, 2, 1], [192, 0, 2, 2]] {
        let spis: HashSet<u32> =
            packets.iter().filter(|esp| esp.source == source).map(|esp| esp.spi).collect();
        assert_eq!(spis.len(), rekeys as usize + 1, "keys that {source:?} used: {spis:x?}");
    }
    for gateway in [a, b] {
        let counters = Counters::read(&gateway);
        counters.must_add_up();
        counters.must_have_opened_all();
        gateway.stop();
    }
}
