//! The life of a tunnel with strongSwan's charon (RFC 7296 sections 1.3.2, 1.3.3, 2.4, 2.8, 2.23): rekeys of the child and of the
//! IKE SA from either side under traffic, a peer that falls silent, one that comes back without memory, one whose address
//! changes.

use std::thread::sleep;
use std::time::Duration;

use penstock_suite::charon::{Auth, Charon, Offer};
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::flow::{Flow, Plan};
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::Negotiated;

const IKE: &str = "aes256gcm16-prfsha384-ecp256";
const ESP: &str = "aes256gcm16-x25519";

/// Requests are given up within four seconds.
const IMPATIENT: &str =
    "ike: {retransmit_first: 300ms, transmissions: 4, reconnect_first: 500ms, reconnect_max: 1s}\n";

fn setup(lab: &Lab, tunnel: &Negotiated) -> Setup {
    Setup { more: IMPATIENT.into(), ..Setup::new(Site::A, tunnel.tunnel(lab, Site::A)) }
}

fn offer(connection: &str, child: &str) -> Offer {
    let offer = Offer::new(Auth::Ecdsa, IKE, ESP);
    Offer { connection: connection.into(), child: format!("{}\n{child}", offer.child), ..offer }
}

/// A gateway that begins, and the tunnel up.
fn established(lab: &Lab, charon: &Charon, tunnel: &Negotiated) -> Gateway {
    let gateway = Gateway::start(lab, &setup(lab, tunnel));
    let passes = until(Duration::from_secs(30), || lab.ping(Site::A, charon.inner(), 1) == 1);
    assert!(passes, "no ping is answered: {}\n{}", gateway.run(&["why", "site"]), charon.log());
    gateway
}

fn flow(lab: &Lab, from: Site) -> Flow {
    let (to, address) = (lab.host(from.other()), from.other().host());
    Flow::start(Plan { from: lab.host(from), to, address, rate: 500, octets: 200 })
}

/// SPIs of charon's IKE SA, and of its child.
fn spis(charon: &Charon) -> (String, String) {
    let list = charon.list();
    let ike = list.lines().find(|line| line.contains("ESTABLISHED")).unwrap_or_default().to_owned();
    let ike = ike.split(", ").last().unwrap_or_default().to_owned();
    let child = list.lines().filter(|line| line.trim_start().starts_with("in ")).collect::<Vec<_>>().join("");
    (ike, child.split(',').next().unwrap_or_default().trim().to_owned())
}

#[test]
#[ignore = "needs root, TAP devices and strongSwan: scripts/test runs it"]
fn rekeys_from_either_side_lose_nothing() {
    let lab = Lab::make();
    let charon = Charon::beside(&lab);
    charon.configure(&offer("", ""));
    let tunnel = Negotiated::new(Auth::Ecdsa, &charon.pki(), "now", IKE, ESP);
    let gateway = established(&lab, &charon, &tunnel);
    let flows = Site::BOTH.map(|site| flow(&lab, site));
    let turns: [(&str, &dyn Fn()); 4] = [
        ("child, by this end", &|| drop(gateway.run(&["rekey", "site"]))),
        ("child, by charon", &|| assert!(charon.sw("--rekey --child net").0)),
        ("IKE SA, by this end", &|| drop(gateway.run(&["rekey", "site", "--ike"]))),
        ("IKE SA, by charon", &|| assert!(charon.sw("--rekey --ike site").0)),
    ];
    for round in 0..2 {
        for (what, rekey) in &turns {
            let before = spis(&charon);
            rekey();
            let is_new = || {
                let now = spis(&charon);
                if what.starts_with("child") { now.1 != before.1 } else { now.0 != before.0 }
            };
            let rekeyed = until(Duration::from_secs(10), is_new);
            assert!(rekeyed, "{what}, round {round}: {}\n{}", charon.list(), gateway.run(&["log", "site"]));
            sleep(Duration::from_millis(700));
        }
    }
    for (flow, from) in flows.into_iter().zip(Site::BOTH) {
        let report = flow.stop();
        assert!(report.sent > 2000, "only {} datagrams were sent", report.sent);
        assert_eq!(report.lost, [0; 0], "of {} datagrams from site {from:?}", report.sent);
        assert_eq!(report.doubled, 0);
    }
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    counters.must_have_opened_all();
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices and strongSwan: scripts/test runs it"]
fn a_silent_peer_is_noticed_and_reached_again_when_it_is_back() {
    let lab = Lab::make();
    let charon = Charon::beside(&lab);
    charon.configure(&offer("", ""));
    let tunnel = Negotiated::new(Auth::Ecdsa, &charon.pki(), "now", IKE, ESP).with("dpd: 1s");
    let gateway = established(&lab, &charon, &tunnel);
    charon.kill();
    let gone = || gateway.json(&["show", "sa", "site"]).as_array().is_some_and(Vec::is_empty);
    let noticed = until(Duration::from_secs(20), gone);
    assert!(noticed, "SAs with a dead peer: {}", gateway.run(&["log", "site"]));
    let why = gateway.run(&["why", "site"]);
    assert!(why.contains("has stopped answering") || why.contains("does not answer"), "{why}");
    let log = gateway.run(&["log", "site"]);
    assert!(log.contains("ike-down"), "{log}");
    // No packet of the site leaves meanwhile, least of all in the clear.
    assert_eq!(lab.ping(Site::A, charon.inner(), 2), 0);
    charon.start();
    charon.load();
    let back = until(Duration::from_secs(20), || lab.ping(Site::A, charon.inner(), 1) == 1);
    assert!(back, "not reached again: {}\n{}", gateway.run(&["why", "site"]), charon.log());
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices and strongSwan: scripts/test runs it"]
fn a_peer_without_memory_begins_anew() {
    let lab = Lab::make();
    let charon = Charon::beside(&lab);
    charon.configure(&offer("", ""));
    let tunnel = Negotiated::new(Auth::Ecdsa, &charon.pki(), "wait", IKE, ESP).with("dpd: 60s");
    let gateway = Gateway::start(&lab, &setup(&lab, &tunnel));
    for round in 0..3 {
        let (content, words) = charon.initiate();
        assert!(content, "round {round}: {words}\n{}", gateway.run(&["log", "site"]));
        let passes = until(Duration::from_secs(10), || lab.ping(Site::A, charon.inner(), 1) == 1);
        assert!(passes, "round {round}: {}", gateway.run(&["log", "site"]));
        // INITIAL_CONTACT says that what was there before is dead (RFC 7296 section 2.4): one pair of SAs, not more.
        let pair = || gateway.json(&["show", "sa", "site"]).as_array().is_some_and(|sas| sas.len() == 2);
        assert!(until(Duration::from_secs(10), pair), "round {round}: {}", gateway.run(&["show", "sa"]));
        charon.kill();
        charon.start();
        charon.load();
    }
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices, user-mode Linux, nftables and strongSwan: scripts/test runs it"]
fn a_peer_whose_nat_changes_keeps_its_tunnel() {
    let lab = Lab::make();
    let charon = Charon::in_guest(&lab, true);
    // Neither end probes: what the gateway follows is ESP.
    charon.configure(&offer("dpd_delay = 0s", ""));
    let tunnel = Negotiated::new(Auth::Ecdsa, &charon.pki(), "wait", IKE, ESP).with("dpd: off");
    let gateway = Gateway::start(&lab, &setup(&lab, &tunnel));
    let (content, words) = charon.initiate();
    assert!(content, "{words}\n{}", gateway.run(&["log", "site"]));
    let passes = || until(Duration::from_secs(20), || lab.ping(Site::A, charon.inner(), 1) == 1);
    assert!(passes(), "{}", gateway.run(&["log", "site"]));
    let before = spis(&charon);
    for address in ["192.0.2.3", "192.0.2.4"] {
        lab.move_nat(address);
        // The first packet from there is delivered; its answer may still go to the old address.
        assert!(
            charon.ping(&lab, 3) >= 2,
            "at {address}: {}\n{}",
            gateway.run(&["log", "site"]),
            charon.log()
        );
        assert!(passes(), "at {address}: {}\n{}", gateway.run(&["log", "site"]), charon.log());
        assert_eq!(spis(&charon), before, "renegotiated: {}", gateway.run(&["log", "site"]));
        let log = gateway.run(&["log", "site"]);
        assert!(log.contains(address), "{log}");
        assert_eq!(charon.ping(&lab, 3), 3, "from charon at {address}");
    }
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}
