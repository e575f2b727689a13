//! Hosts that only the data plane uses keep their neighbour entries, whoever else fills the kernel's table, and are reached
//! again when somebody deletes them (RFC 826).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock_suite::command::{inside, output, succeed, text, until};
use penstock_suite::counters::Counters;
use penstock_suite::flow::{Flow, Plan};
use penstock_suite::gateway::{self, Gateway, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};

/// More than the kernel keeps before it collects those that nobody used for five seconds (gc_thresh2 is 512).
const STRANGERS: u16 = 4000;

/// A capture file of ARP requests for gateway B, each from another station and another address.
fn requests(lab: &Lab) -> PathBuf {
    let mut file =
        [0xa1b2_c3d4_u32.to_le_bytes(), [2, 0, 4, 0], [0; 4], [0; 4], [0xff, 0xff, 0, 0], [1, 0, 0, 0]]
            .concat();
    for number in 0..STRANGERS {
        let [high, low] = number.to_be_bytes();
        let mut frame = [0xff; 6].to_vec();
        frame.extend([2, 0, 0, 9, high, low, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 9, high, low, 10, 66, high, low, 0, 0, 0, 0, 0, 0, 192, 0, 2, 2]);
        frame.resize(60, 0);
        let length = (frame.len() as u32).to_le_bytes();
        file.extend([[0; 4], [0; 4], length, length].concat());
        file.extend(frame);
    }
    let path = lab.file("requests.pcap");
    fs::write(&path, file).expect("the lab's folder is ours");
    path
}

/// Sends them into the wire, for some eight seconds.
fn strangers_ask(lab: &Lab) {
    let send = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/send.py");
    let mut sender = inside(&lab.wire(), "python3");
    succeed(sender.arg(send).arg(requests(lab)).args(["wire", "500"]));
}

fn neighbours(gateway: &Gateway, device: &str) -> String {
    text(&output(inside(gateway.namespace(), "ip").args(["-4", "neigh", "show", "dev", device])).stdout)
}

/// Whether more than a few of the datagrams arrive from now on.
fn flows(flow: &Flow) -> bool {
    let before = flow.arrived();
    until(Duration::from_secs(30), || flow.arrived() > before + 20)
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_host_that_only_the_data_plane_uses_stays_and_comes_back() {
    let lab = Lab::make();
    let gateways = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let [_, b] = &gateways;
    // Entries grow stale within a second or two.
    let fast = "for f in lan wan; do echo 1000 >/proc/sys/net/ipv4/neigh/$f/base_reachable_time_ms; done";
    succeed(inside(b.namespace(), "sh").args(["-c", fast]));
    let flow = |rate| {
        let (from, to) = (lab.host(Site::A), lab.host(Site::B));
        Flow::start(Plan { from, to, address: Site::B.host(), rate, octets: 200 })
    };
    let beside = flow(200);
    strangers_ask(&lab);
    let heard = neighbours(b, "wan").lines().filter(|line| line.starts_with("10.66.")).count();
    assert!(heard > 100, "the kernel listened to {heard} strangers only, which proves nothing");
    assert!(flows(&beside), "the host is gone: {}", neighbours(b, "lan"));
    let report = beside.stop();
    assert!(report.lost.is_empty(), "lost {} of {}: {:?}", report.lost.len(), report.sent, report.lost);
    // The first packets to a host that nobody asked for yet wait for it.
    for low in 77..80 {
        let address = format!("10.2.0.{low}");
        succeed(inside(&lab.host(Site::B), "ip").args([
            "addr",
            "add",
            &format!("{address}/24"),
            "dev",
            "tlan",
        ]));
        assert_eq!(lab.ping(Site::A, &address, 2), 2, "the first packet to {address} is lost");
    }
    // Nobody but the gateway itself brings it back: there is no traffic but this.
    let on = flow(50);
    for line in ["neigh del 10.2.0.2 dev lan", "neigh flush dev lan", "neigh flush all"] {
        assert!(flows(&on), "nothing arrives");
        succeed(inside(b.namespace(), "ip").args(line.split(' ')));
        assert!(flows(&on), "{line}: {}\n{}", neighbours(b, "lan"), b.run(&["show", "routes"]));
    }
    drop(on.stop());
    for gateway in gateways {
        Counters::read(&gateway).must_add_up();
        gateway.stop();
    }
}

fn why(gateway: &Gateway) -> (String, String) {
    let said = gateway.json(&["why", "site"]);
    let word = |name: &str| said[name].as_str().unwrap_or_default().to_string();
    (word("code"), word("text"))
}

/// Waits until `why` has this code and these words.
fn says(gateway: &Gateway, code: &str, words: &[&str]) {
    let fits = || {
        let (is, text) = why(gateway);
        is == code && words.iter().all(|word| text.contains(word))
    };
    assert!(until(Duration::from_secs(30), fits), "expected {code} and {words:?}, got {:?}", why(gateway));
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn why_names_what_stands_between_packets_and_their_next_hops() {
    let lab = Lab::make();
    let setup = |site| Setup::new(site, secret_tunnel(&lab, site, "interface: vti"));
    // The other gateway is not there, and the kernel end of the port is elsewhere, so its link cannot be seen.
    let a = Gateway::start(&lab, &setup(Site::A));
    says(&a, "no-neighbour", &["192.0.2.2 on port wan does not answer ARP", "kernel end twan"]);
    let ip = |line: &str| succeed(inside(a.namespace(), "ip").args(line.split(' ')));
    ip("route add 192.0.2.2/32 dev vti");
    says(&a, "route-into-itself", &["192.0.2.2/32 by vti", "into the tunnel itself"]);
    ip("route del 192.0.2.2/32 dev vti");
    ip("route add blackhole 192.0.2.2/32");
    says(&a, "no-route", &["192.0.2.2/32", "blackhole"]);
    ip("route del blackhole 192.0.2.2/32");
    let b = Gateway::start(&lab, &setup(Site::B));
    says(&a, "up", &["towards the peer: 192.0.2.2 on port wan"]);
    // Somebody sends to a host of site B that is not there.
    let mut ping =
        inside(&lab.host(Site::A), "ping").args(["-q", "-i", "0.2", "10.2.0.99"]).spawn().expect("ping");
    says(
        &b,
        "up",
        &[
            "towards the peer: 192.0.2.1 on port wan",
            "towards 10.2.0.0/24: on port lan",
            "10.2.0.99 does not answer ARP",
        ],
    );
    ping.kill().expect("it is our child");
    ping.wait().expect("it is our child");
    for gateway in [a, b] {
        gateway.stop();
    }
}
