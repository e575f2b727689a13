//! One tunnel on two workers, one of which receives: real processes on net_tap, datagrams both ways at once. What the peers'
//! windows of 64 packets refuse is nothing, the books of every worker balance, and the start says who receives and why.

use std::thread;

use penstock_suite::counters::{Counters, figure};
use penstock_suite::gateway::{self, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::{flow, iperf};

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn two_workers_on_one_tunnel_keep_its_order() {
    let lab = Lab::make();
    let [a, b] = gateway::pair(&lab, |site| {
        let tunnel = secret_tunnel(&lab, site, "replay_window: 64");
        Setup { cores: Some("[0, 1], spread: on"), ..Setup::new(site, tunnel) }
    });
    for gateway in [&a, &b] {
        let said = gateway.said();
        assert!(said.contains("software spreading over workers 0-1: worker 0 receives"), "{said}");
    }
    let server = iperf::Server::start(&lab.host(Site::B));
    let (from, to, address) = (lab.host(Site::B), lab.host(Site::A), Site::A.host());
    let back = flow::Flow::start(flow::Plan { from, to, address, rate: 500, octets: 300 });
    let host = lab.host(Site::A);
    let client = thread::spawn(move || iperf::udp(&host, "10.2.0.2", 6, "2G"));
    let (sent, _) = client.join().expect("iperf3 ran");
    let report = back.stop();
    drop(server);
    assert!(sent > 1000 && report.sent > 1000, "{sent} and {} datagrams", report.sent);
    for gateway in [a, b] {
        let counters = Counters::read(&gateway);
        counters.must_add_up();
        for name in ["replayed", "too_old", "auth_failed", "no_sa"] {
            assert_eq!(counters.of(name), 0, "{name}");
        }
        // How much is handed over depends on how full the bursts are; what is, comes back.
        let workers = gateway.json(&["show", "workers"]);
        let (handed, helped) = (figure(&workers[0], "handed"), figure(&workers[1], "helped"));
        assert_eq!(handed, helped, "{workers:#}");
        eprintln!("{handed} frames of {} were handed over", counters.sent());
        gateway.stop();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_device_that_cannot_tell_spis_apart_leaves_it_to_software() {
    let lab = Lab::make();
    let [a, b] = gateway::pair(&lab, |site| {
        let tunnel = secret_tunnel(&lab, site, "replay_window: 64");
        Setup { cores: Some("[0, 1]"), ..Setup::new(site, tunnel) }
    });
    for gateway in [&a, &b] {
        let said = gateway.said();
        for words in [
            "private port lan",
            "(net_tap): queues 0-1 get packets by their addresses",
            "public port wan",
            "(net_tap): queues 0-1, all SPIs between two addresses get the same queue (no RSS by SPI; no flow rule by SPI's last \
             bits: Operation not supported",
            "software spreading over workers 0-1: a worker that receives more ESP than it can open hands bursts",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
    let (sent, _) = {
        let _server = iperf::Server::start(&lab.host(Site::B));
        iperf::udp(&lab.host(Site::A), "10.2.0.2", 2, "100M")
    };
    assert!(sent > 1000, "{sent} datagrams");
    for gateway in [a, b] {
        Counters::read(&gateway).must_add_up();
        gateway.stop();
    }
}
