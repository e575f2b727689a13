//! Two gateways that negotiate their keys with each other (RFC 7296): nothing leaves in the clear before the first SA, rekeys
//! and the death of control lose no packet, a dead peer is noticed and found again, and what goes wrong is said exactly.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use penstock_suite::capture::{Capture, Seen, esp_packets, frames, repeated_nonces, see};
use penstock_suite::charon::{Auth, SECRET};
use penstock_suite::command::{self, until};
use penstock_suite::counters::Counters;
use penstock_suite::dump;
use penstock_suite::flow::{self, Flow, Plan, Report};
use penstock_suite::gateway::{self, Gateway, Setup};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::Negotiated;
use penstock_suite::pki;
use rustix::process::Signal;
use serde_json::Value;

/// Long enough for a negotiation on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn psk(start: &'static str) -> Negotiated {
    Negotiated::suite(Auth::Psk, std::path::Path::new("none"), start, "default")
}

/// Site A begins by itself, site B waits for it.
fn setup(lab: &Lab, site: Site, more: &str) -> Setup {
    let start = if site == Site::A { "now" } else { "wait" };
    Setup::new(site, psk(start).with(more).tunnel(lab, site))
}

fn why(gateway: &Gateway) -> String {
    gateway.run(&["why", "site"]).trim().into()
}

fn log(gateway: &Gateway) -> String {
    gateway.run(&["log", "site"])
}

fn is_up(gateway: &Gateway) -> bool {
    gateway.json(&["why", "site"])["code"] == "up"
}

/// SPIs of the SAs of one direction.
fn spis(gateway: &Gateway, direction: &str) -> HashSet<u64> {
    let sas = gateway.json(&["show", "sa"]);
    let of_it = |sa: &&Value| sa["direction"] == direction;
    sas.as_array().expect("a list").iter().filter(of_it).filter_map(|sa| sa["spi"].as_u64()).collect()
}

/// The SPIs of the one IKE SA that is up.
fn ike_spi(gateway: &Gateway) -> Option<String> {
    let all = gateway.json(&["show", "ike"]);
    let up: Vec<&Value> = all.as_array().expect("a list").iter().filter(|sa| sa["state"] == "up").collect();
    (up.len() == 1).then(|| up[0]["spi_initiator"].to_string() + &up[0]["spi_responder"].to_string())
}

/// What the gateway tells Prometheus.
fn metrics(gateway: &Gateway) -> String {
    let ask = || {
        let mut stream = TcpStream::connect("127.0.0.1:9464").expect("metrics are served");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("they may be asked for");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        text
    };
    flow::within(gateway.namespace(), ask).join().expect("an answer")
}

/// One number of them.
fn metric(gateway: &Gateway, name: &str) -> u64 {
    let text = metrics(gateway);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn flows(lab: &Lab) -> [Flow; 2] {
    Site::BOTH.map(|from| {
        let (to, address) = (lab.host(from.other()), from.other().host());
        Flow::start(Plan { from: lab.host(from), to, address, rate: 500, octets: 200 })
    })
}

fn must_be_whole(report: &Report) {
    assert!(report.lost.is_empty(), "lost {} of {}: {:?}", report.lost.len(), report.sent, report.lost);
    assert_eq!(report.doubled, 0);
}

/// Ends a gateway that has opened all that came.
fn must_add_up(gateway: Gateway) {
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    counters.must_have_opened_all();
    gateway.stop();
}

/// Only ARP, IKE and ESP are on the wire; returns how many ESP packets, and the payload of the largest IKE datagram.
fn must_be_sealed(file: &std::path::Path) -> (usize, usize) {
    let (mut esp, mut largest) = (0, 0);
    for frame in frames(file) {
        match see(&frame) {
            Seen::Arp | Seen::Keepalive => {}
            Seen::Ike(octets) => largest = largest.max(octets),
            Seen::Esp(_) => esp += 1,
            other => panic!("on the wire: {other:x?}"),
        }
    }
    (esp, largest)
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn the_first_packet_sets_the_tunnel_up_and_nothing_leaves_in_the_clear() {
    let lab = Lab::make();
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "");
    let a = Gateway::start(&lab, &Setup::new(Site::A, psk("traffic").tunnel(&lab, Site::A)));
    sleep(Duration::from_secs(1));
    // The log begins with what became of the gateway itself; of the peer it says nothing yet.
    assert!(log(&a).contains("control-up: ") && !log(&a).contains("initiating"), "{}", log(&a));
    // The peer does not exist yet.
    assert_eq!(lab.ping(Site::A, "10.2.0.2", 2), 0);
    assert!(log(&a).contains("initiating: to 192.0.2.2:500"), "{}", log(&a));
    assert!(why(&a).starts_with("site is down: "), "{}", why(&a));
    let b = Gateway::start(&lab, &Setup::new(Site::B, psk("wait").tunnel(&lab, Site::B)));
    assert!(until(SOON, || lab.ping(Site::A, "10.2.0.2", 1) == 1), "{}\n{}", why(&a), a.said());
    assert!(until(SOON, || lab.ping(Site::B, "10.1.0.2", 5) == 5));
    let said = why(&a);
    assert!(said.starts_with("site is up: gw-b.example at 192.0.2.2, "), "{said}");
    let ike = &a.json(&["show", "ike"])[0];
    assert_eq!((&ike["state"], &ike["initiator"]), (&"up".into(), &true.into()));
    assert_eq!(ike["identity"], "gw-b.example");
    // Control says good-bye: the other gateway knows at once.
    a.stop();
    assert!(until(SOON, || log(&b).contains("deleted-by-peer")), "{}", log(&b));
    assert_eq!(spis(&b, "outbound"), HashSet::new());
    let (file, _) = capture.stop();
    let (esp, _) = must_be_sealed(&file);
    assert!(esp >= 12, "{esp} ESP packets");
    b.stop();
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn certificates_with_ml_kem_in_fragments() {
    let lab = Lab::make();
    let folder = pki::folder(&lab);
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "udp");
    let [a, b] = gateway::pair(&lab, |site| {
        let start = if site == Site::A { "now" } else { "wait" };
        let ike = "aes256gcm16-prfsha384-ecp384-ke1_mlkem768";
        let tunnel = Negotiated::new(Auth::Ecdsa, &folder, start, ike, "aes256gcm16-esn");
        Setup::new(site, tunnel.with("fragment_size: 576").tunnel(&lab, site))
    });
    for gateway in [&a, &b] {
        let ike = &gateway.json(&["show", "ike"])[0];
        let algorithms = ike["algorithms"].as_str().expect("a word");
        assert!(algorithms.contains("ke1_mlkem768"), "{algorithms}");
        let end = ike["certificate_end"].as_u64().expect("seconds");
        assert!(end > 1_700_000_000);
        let of_peer = metrics(gateway).lines().any(|line| {
            line.starts_with("penstock_certificate_expiry_timestamp_seconds{")
                && line.contains("role=\"peer\"")
                && line.ends_with(&format!(" {end}"))
        });
        assert!(of_peer, "{}", metrics(gateway));
        let sa = &gateway.json(&["show", "sa"])[0];
        assert_eq!((&sa["cipher"], &sa["esn"]), (&"aes256gcm16".into(), &true.into()));
    }
    [a, b].into_iter().for_each(must_add_up);
    let (file, _) = capture.stop();
    let (_, largest) = must_be_sealed(&file);
    assert!((400..=548).contains(&largest), "the largest IKE datagram has {largest} octets");
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn rekeys_and_the_death_of_control_lose_nothing() {
    let lab = Lab::make();
    let [mut a, b] = gateway::pair(&lab, |site| setup(&lab, site, "dpd: 2s"));
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "proto 50");
    let flows = flows(&lab);
    sleep(Duration::from_secs(1));
    for (gateway, ike) in [(&a, false), (&b, false), (&a, true), (&b, true), (&a, false)] {
        let (children, parent) = (spis(&a, "outbound"), ike_spi(&a));
        gateway.run(if ike { &["rekey", "site", "--ike"] } else { &["rekey", "site"] });
        let replaced = || match ike {
            true => ike_spi(&a).is_some_and(|new| Some(new) != parent),
            false => spis(&a, "outbound").len() == 1 && spis(&a, "outbound") != children,
        };
        assert!(until(SOON, replaced), "{}\n{}", log(&a), log(&b));
    }
    // The rekeyed IKE SA works.
    assert!(log(&a).contains("ike-rekeyed") && log(&b).contains("child-rekeyed"), "{}", log(&a));
    let (children, parent) = (spis(&a, "outbound"), ike_spi(&a));
    a.kill_control();
    sleep(Duration::from_secs(2));
    a.restart_control();
    let anew = || ike_spi(&a).is_some_and(|new| Some(new) != parent) && is_up(&a);
    assert!(until(SOON, anew), "{}\n{}", why(&a), a.said());
    assert!(a.said().contains("adopted SA"), "{}", a.said());
    let replaced = || spis(&a, "outbound").is_disjoint(&children) && spis(&a, "inbound").len() == 1;
    assert!(until(SOON, replaced), "{:#}", a.json(&["show", "sa"]));
    sleep(Duration::from_secs(1));
    let reports = flows.map(Flow::stop);
    let ends = [&a, &b].map(|gateway| (gateway.name().to_owned(), Counters::read(gateway)));
    for report in &reports {
        assert!(report.lost.is_empty(), "lost {:?} of {}: {ends:?}", report.lost, report.sent);
        assert_eq!(report.doubled, 0);
    }
    let (file, counts) = capture.stop();
    assert_eq!(counts.missed, 0, "the capture has gaps and proves nothing");
    let packets = esp_packets(&file);
    assert_eq!(repeated_nonces(&packets), []);
    let used: HashSet<u32> =
        packets.iter().filter(|esp| esp.source == [192, 0, 2, 1]).map(|esp| esp.spi).collect();
    assert!(used.len() >= 5, "three rekeys and one new start, but only these keys: {used:x?}");
    for gateway in [a, b] {
        must_add_up(gateway);
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn each_worker_gets_an_sa_of_its_own() {
    let lab = Lab::make();
    let [a, b] =
        gateway::pair(&lab, |site| Setup { cores: Some("[0, 1]"), ..setup(&lab, site, "per_worker: true") });
    let flows = flows(&lab);
    for gateway in [&a, &b] {
        let own = || -> HashSet<u64> {
            let sas = gateway.json(&["show", "sa"]);
            sas.as_array().expect("a list").iter().filter_map(|sa| sa["worker"].as_u64()).collect()
        };
        assert!(
            until(SOON, || own() == [0, 1].into()),
            "{:#}\n{}",
            gateway.json(&["show", "sa"]),
            log(gateway)
        );
        assert_eq!(spis(gateway, "outbound").len(), 3, "{:#}", gateway.json(&["show", "sa"]));
    }
    sleep(Duration::from_secs(2));
    flows.map(Flow::stop).iter().for_each(must_be_whole);
    let worked = |sa: &&Value| sa["worker"].is_u64() && sa["traffic"]["packets"].as_u64() > Some(0);
    let sas = a.json(&["show", "sa"]);
    assert!(sas.as_array().expect("a list").iter().any(|sa| worked(&sa)), "{sas:#}");
    [a, b].into_iter().for_each(must_add_up);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_dead_peer_is_noticed_and_found_again() {
    let lab = Lab::make();
    let quick =
        "ike: {retransmit_first: 200ms, retransmit_max: 500ms, transmissions: 3, reconnect_max: 2s}\n";
    let with = |site| Setup { more: quick.into(), ..setup(&lab, site, "dpd: 1s") };
    let [a, mut b] = gateway::pair(&lab, with);
    let dataplane = b.dataplane().expect("it runs");
    // The host of gateway B stops, all at once.
    b.kill_control();
    command::signal(dataplane, Signal::KILL);
    let noticed = || spis(&a, "outbound").is_empty();
    assert!(until(SOON, noticed), "{}\n{}", why(&a), log(&a));
    assert!(log(&a).contains("[peer-unresponsive]"), "{}", log(&a));
    assert!(until(SOON, || b.dataplane().is_none()), "it was killed");
    b.restart_control();
    lab.plug(Site::B);
    assert!(until(SOON, || is_up(&a)), "{}\n{}", why(&a), log(&a));
    assert!(until(SOON, || lab.ping(Site::B, "10.1.0.2", 1) == 1), "{}", log(&b));
    for gateway in [a, b] {
        gateway.stop();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn what_is_wrong_is_said_and_mended_while_it_runs() {
    let lab = Lab::make();
    let wrong = lab.file("wrong");
    std::fs::write(&wrong, "another secret, also long enough").expect("the lab's folder is ours");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("it is ours");
    let good = setup(&lab, Site::A, "");
    let bad = Setup { tunnels: good.tunnels.replace("/psk\n", "/wrong\n"), ..good.clone() };
    assert_ne!(good.tunnels, bad.tunnels);
    let b = Gateway::start(&lab, &setup(&lab, Site::B, ""));
    let a = Gateway::start(&lab, &bad);
    let failed = || a.json(&["why", "site"])["code"] == "authentication-refused";
    assert!(until(SOON, failed), "{}\n{}", why(&a), log(&a));
    let refused = "site is down: the peer refuses our identity or our proof of it: compare identities and secrets, \
                   its log says which";
    assert!(why(&a).starts_with(refused), "{}", why(&a));
    assert_eq!(why(&b), "site is down: the pre-shared keys of the two ends differ (peer gw-a.example)");
    assert_eq!(a.json(&["status"])["tunnels_up"], 0);
    assert!(metric(&a, "penstock_ike_failures_total{reason=\"authentication-refused\"}") >= 1);
    assert!(metric(&b, "penstock_ike_failures_total{reason=\"psk-mismatch\"}") >= 1);
    assert_eq!(metric(&a, "penstock_ike_sas"), 0);
    // The file is mended; the tunnel comes up without a restart.
    a.apply(&lab, &good);
    assert!(until(SOON, || is_up(&a) && is_up(&b)), "{}\n{}", why(&a), log(&a));
    assert!(until(SOON, || lab.ping(Site::A, "10.2.0.2", 1) == 1));
    // What did not change is not touched.
    assert_eq!([metric(&a, "penstock_ike_sas"), metric(&a, "penstock_ike_child_sas")], [1, 1]);
    let before = (ike_spi(&a), spis(&a, "inbound"));
    a.apply(&lab, &good);
    sleep(Duration::from_secs(1));
    assert_eq!((ike_spi(&a), spis(&a, "inbound")), before);
    // Down and up by the operator.
    a.run(&["terminate", "site"]);
    assert!(until(SOON, || why(&a) == "site is down: closed by the operator"), "{}", why(&a));
    assert!(until(SOON, || spis(&b, "inbound").is_empty()));
    a.run(&["initiate", "site"]);
    assert!(until(SOON, || is_up(&a)), "{}\n{}", why(&a), log(&a));
    let unknown = command::refuse(&mut a.command(&["why", "nobody"]));
    assert!(unknown.contains("there is no tunnel nobody"), "{unknown}");
    for gateway in [a, b] {
        must_add_up(gateway);
    }
}

/// The pre-shared key and, as the lab's file tells them, the keys of the IKE SA.
fn secrets(file: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().last().expect("keys were saved");
    let octets = |digits: &str| -> Vec<u8> {
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
        pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
    };
    let keys = line.split(',').skip(2).take(2).map(octets);
    let mut secrets: Vec<_> = ["SK_ei", "SK_er"].map(String::from).into_iter().zip(keys).collect();
    assert!(secrets.iter().all(|(_, key)| key.len() >= 32), "{line}");
    secrets.push(("the pre-shared key".into(), SECRET.into()));
    secrets
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn no_key_is_in_a_core_dump() {
    let lab = Lab::make();
    let (keys, folder) = (lab.file("keys.csv"), lab.folder());
    let save = format!("ike: {{save_keys: {}}}\n", keys.display());
    let [mut a, b] = gateway::pair(&lab, |site| Setup { more: save.clone(), ..setup(&lab, site, "") });
    let secrets = secrets(&keys);
    // The way to look for them finds one where it is.
    let mut careless = dump::careless(SECRET);
    let core = dump::gcore(careless.id(), folder).expect("anybody may dump it");
    assert_eq!(dump::found(&core, &secrets), ["the pre-shared key"]);
    for pid in [a.control(), a.dataplane().expect("it runs")] {
        // A debugger of root gets the registers and no memory, or nothing at all.
        let core = dump::gcore(pid, folder).unwrap_or_default();
        assert_eq!(dump::found(&core, &secrets), [""; 0], "process {pid} tells {} octets", core.len());
    }
    let file = dump::Pattern::file(folder);
    assert!(file.crash(&mut careless), "the pattern works");
    let dataplane = a.dataplane().expect("it runs");
    assert!(!file.crash(a.control_child()), "control was dumped to a file");
    command::signal(dataplane, Signal::ABORT);
    assert!(until(SOON, || a.dataplane().is_none()), "it was told to crash");
    assert!(!file.has_core(dataplane), "the data plane was dumped to a file");
    drop(file);
    a.restart_control();
    let pipe = dump::Pattern::pipe(folder);
    assert!(pipe.crash(&mut dump::careless(SECRET)), "the pattern works");
    let dataplane = a.dataplane().expect("it runs");
    assert!(!pipe.crash(a.control_child()), "control was dumped to a program");
    command::signal(dataplane, Signal::ABORT);
    assert!(until(SOON, || a.dataplane().is_none()), "it was told to crash");
    assert!(!pipe.has_core(dataplane), "the data plane was dumped to a program");
    drop(pipe);
    // It comes back and carries.
    a.restart_control();
    lab.plug(Site::A);
    assert!(until(SOON, || is_up(&a)), "{}\n{}", why(&a), log(&a));
    for gateway in [a, b] {
        gateway.stop();
    }
}
