//! New keys every second under traffic below capacity: no datagram is lost, none is taken for a replay (RFC 4301 section
//! 4.5: a new SA before the old one ends). 20 s, or 60 s in the nightly form.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use penstock_suite::capture::{Capture, esp_packets, repeated_nonces};
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::flow;
use penstock_suite::gateway::{self, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_rekey_a_second_loses_nothing() {
    let rekeys: u32 = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 60 } else { 20 };
    let lab = Lab::make();
    let [a, b] = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "proto 50");
    // Both ways, so that each end sees the other's new keys in use.
    let flows = Site::BOTH.map(|from| {
        let (rate, octets) = if from == Site::A { (500, 1300) } else { (100, 64) };
        let (to, address) = (lab.host(from.other()), from.other().host());
        flow::Flow::start(flow::Plan { from: lab.host(from), to, address, rate, octets })
    });
    let start = Instant::now();
    for number in 0..rekeys {
        // On a busy machine the peer's answer may take longer than a second, and a step before it is refused.
        let followed = || {
            let tunnel = &a.json(&["show", "tunnels"])[0];
            tunnel["generation"] == tunnel["peer_generation"]
        };
        assert!(until(Duration::from_secs(60), followed), "{:#}", a.json(&["show", "tunnels"]));
        a.run(&["rekey", "site"]);
        let next = start + Duration::from_secs(u64::from(number) + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // The last keys are used too.
    let sent: Vec<u64> = flows.iter().map(|flow| flow.sent() + 50).collect();
    let more = || flows.iter().zip(&sent).all(|(flow, sent)| flow.arrived() >= *sent);
    assert!(until(Duration::from_secs(60), more));
    let reports = flows.map(flow::Flow::stop);
    for report in &reports {
        assert_eq!(report.lost, [0; 0], "of {} datagrams", report.sent);
    }
    let least = 300 * u64::from(rekeys);
    assert!(reports[0].sent > least, "only {} datagrams were sent", reports[0].sent);
    let (file, counts) = capture.stop();
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
