//! Either process dies under traffic and comes back: no packet is lost without control, the data plane is back within two
//! seconds, and no key is ever used twice with a nonce (RFC 4106 section 3.1).

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use penstock_suite::capture::{Capture, esp_packets, repeated_nonces};
use penstock_suite::command::until;
use penstock_suite::counters::{Counters, figure};
use penstock_suite::flow::{Flow, Plan};
use penstock_suite::gateway::{self, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};

const RATE: u32 = 1000;

fn flow(lab: &Lab, from: Site) -> Flow {
    let (to, address) = (lab.host(from.other()), from.other().host());
    Flow::start(Plan { from: lab.host(from), to, address, rate: RATE, octets: 200 })
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn control_dies_and_no_packet_is_lost() {
    let lab = Lab::make();
    let [mut a, b] = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let flows = Site::BOTH.map(|site| flow(&lab, site));
    let dataplane = a.dataplane();
    let sas = |gateway: &gateway::Gateway| -> HashSet<u64> {
        let sas = gateway.json(&["show", "sa"]);
        sas.as_array().expect("a list").iter().map(|sa| figure(sa, "spi")).collect()
    };
    let before = sas(&a);
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        a.kill_control();
        sleep(Duration::from_secs(1));
        a.restart_control();
        assert_eq!(a.dataplane(), dataplane, "the restarted control did not adopt the data plane");
        assert_eq!(sas(&a), before, "the restarted control did not adopt the SAs");
    }
    // What happened before each kill is known afterwards.
    let log = a.run(&["log"]);
    assert_eq!(log.matches(" control-up: ").count(), 4, "{log}");
    // The adopted tunnel is alive: it can be rekeyed, and the other side follows.
    a.run(&["rekey", "site"]);
    assert!(until(Duration::from_secs(10), || {
        let tunnels = b.json(&["show", "tunnels"]);
        figure(&tunnels[0], "generation") == 2
    }));
    sleep(Duration::from_secs(1));
    for flow in flows {
        let report = flow.stop();
        assert!(report.sent > u64::from(RATE) * 5, "only {} datagrams were sent", report.sent);
        assert!(report.lost.is_empty(), "lost {} of {}: {:?}", report.lost.len(), report.sent, report.lost);
        assert_eq!(report.doubled, 0);
    }
    for gateway in [a, b] {
        let counters = Counters::read(&gateway);
        counters.must_add_up();
        counters.must_have_opened_all();
        gateway.stop();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn data_plane_dies_and_is_back_within_two_seconds_without_a_nonce_twice() {
    let lab = Lab::make();
    let [mut a, b] = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "proto 50");
    let outward = flow(&lab, Site::A);
    let inward = flow(&lab, Site::B);
    let mut crashes = vec![];
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        let (killed, _) = a.kill_dataplane();
        lab.plug(Site::A);
        crashes.push((killed, std::time::Instant::now()));
        let arrived = [outward.arrived(), inward.arrived()];
        let moving = || outward.arrived() > arrived[0] && inward.arrived() > arrived[1];
        assert!(until(Duration::from_secs(30), moving), "no traffic after the crash");
    }
    sleep(Duration::from_secs(1));
    for (name, flow) in [("outward", outward), ("inward", inward)] {
        let report = flow.stop();
        for (killed, plugged) in &crashes {
            // The lab's part, putting the soft NICs back, is no part of the two seconds; the rest of the start is.
            let back = report.first_after(*plugged).expect("traffic after the crash");
            let silence = back - *plugged;
            eprintln!(
                "{name}: ports in place {:?} after the kill, traffic {silence:?} later",
                *plugged - *killed
            );
            assert!(silence < Duration::from_secs(2), "{name}: traffic was back only after {silence:?}");
        }
        assert_eq!(report.doubled, 0, "{name}: datagrams arrived twice");
    }
    let (file, counts) = capture.stop();
    assert_eq!(counts.missed, 0, "the capture has gaps and proves nothing");
    let packets = esp_packets(&file);
    let sealed_by_a = packets.iter().filter(|esp| esp.source == [192, 0, 2, 1]);
    let spis: HashSet<u32> = sealed_by_a.map(|esp| esp.spi).collect();
    assert_eq!(spis.len(), 1, "the same key was to be used across the crashes, not {spis:x?}");
    assert!(packets.len() > 3 * RATE as usize, "only {} ESP packets were seen", packets.len());
    assert_eq!(repeated_nonces(&packets), []);
    for gateway in [a, b] {
        Counters::read(&gateway).must_add_up();
        gateway.stop();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_tunnel_that_gets_no_answer_is_told_until_it_gets_one() {
    let lab = Lab::make();
    let [a, b] = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let outward = flow(&lab, Site::A);
    let code = || a.json(&["why", "site"])["code"].as_str().expect("a code").to_owned();
    assert_eq!(code(), "up", "not at once");
    assert!(until(Duration::from_secs(60), || code() == "unanswered"), "{}", a.run(&["why", "site"]));
    let said = a.run(&["why", "site"]);
    assert!(said.contains(" packets sent, none received for ") && said.contains("site is up"), "{said}");
    assert!(a.run(&["status"]).contains("nothing comes back through tunnel site"), "{}", a.run(&["status"]));
    assert!(a.run(&["show", "tunnels"]).contains("up, unanswered"));
    assert_eq!(b.json(&["why", "site"])["code"], "up", "who only receives asks nothing");
    let inward = flow(&lab, Site::B);
    assert!(until(Duration::from_secs(10), || code() == "up"), "{}", a.run(&["why", "site"]));
    let tunnel = &a.json(&["show", "tunnels"])[0];
    assert!(figure(tunnel, "last_received") >= figure(tunnel, "state_since"), "{tunnel}");
    drop((outward.stop(), inward.stop()));
    for gateway in [a, b] {
        gateway.stop();
    }
}
