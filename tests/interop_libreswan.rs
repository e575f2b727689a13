//! IKEv2 and ESP with libreswan's pluto on a Linux kernel (RFC 7296): both roles, each kind of authentication, rekeys of the child and of
//! the IKE SA from either side while pings pass.

use std::thread;
use std::time::Duration;

use penstock_suite::charon::Auth;
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::iperf;
use penstock_suite::lab::{Lab, Site, ping};
use penstock_suite::libreswan::Libreswan;
use penstock_suite::negotiated::Negotiated;

/// (Who they are, our IKE and ESP, their IKE and ESP and more).
type Case = (Auth, [&'static str; 2], [&'static str; 3]);
const CASES: [Case; 3] = [
    (
        Auth::Psk,
        ["aes256gcm16-prfsha384-ecp256", "aes256gcm16-ecp256-esn"],
        ["aes_gcm256-sha2_384-dh19", "aes_gcm256;dh19", "esn=yes"],
    ),
    (
        Auth::Ecdsa,
        ["aes128-sha256-modp2048", "aes128gcm16-modp2048-noesn"],
        ["aes128-sha2_256-dh14", "aes_gcm128;dh14", "esn=no"],
    ),
    (
        Auth::Rsa,
        ["aes256gcm16-prfsha512-x25519", "chacha20poly1305-x25519-esn"],
        ["aes_gcm256-sha2_512-dh31", "chacha20_poly1305;dh31", "esn=yes"],
    ),
];

fn negotiate(lab: &Lab, gateway: &Gateway, pluto: &Libreswan, case: &Case, initiate: bool) {
    let (auth, [ike, esp], [their_ike, their_esp, more]) = case;
    pluto.configure(*auth, their_ike, their_esp, &[more]);
    let start = if initiate { "now" } else { "wait" };
    let tunnel = Negotiated::new(*auth, &pluto.pki(), start, ike, esp);
    gateway.apply(lab, &Setup::new(Site::A, tunnel.tunnel(lab, Site::A)));
    let words = if initiate { String::new() } else { pluto.whack("--initiate") };
    let passes = until(Duration::from_secs(20), || lab.ping(Site::A, "10.2.0.1", 1) == 1);
    let log = || format!("{}\n{}", gateway.run(&["log", "site"]), pluto.log());
    assert!(passes, "{auth:?}, initiator {initiate}: {words}\n{}\n{}", gateway.run(&["why", "site"]), log());
    assert_eq!(lab.ping(Site::A, "10.2.0.1", 3), 3, "{auth:?}\n{}", log());
    assert_eq!(pluto.ping(3), 3, "{auth:?}: from pluto\n{}", log());
}

#[test]
#[ignore = "needs root, TAP devices, user-mode Linux and libreswan's package: scripts/test runs it"]
fn both_roles_and_each_kind_of_authentication() {
    let lab = Lab::make();
    let pluto = Libreswan::boot(&lab);
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, "  {}\n"));
    for case in &CASES {
        for initiate in [true, false] {
            negotiate(&lab, &gateway, &pluto, case, initiate);
            gateway.apply(&lab, &Setup::new(Site::A, "  {}\n"));
            let gone = until(Duration::from_secs(10), || !pluto.run("ip xfrm state").contains("proto esp"));
            assert!(gone, "{case:?}: {}\n{}", pluto.run("ip xfrm state"), pluto.log());
        }
    }
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices, user-mode Linux and libreswan's package: scripts/test runs it"]
fn rekeys_from_either_side_lose_no_ping() {
    let lab = Lab::make();
    let pluto = Libreswan::boot(&lab);
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, "  {}\n"));
    negotiate(&lab, &gateway, &pluto, &CASES[0], true);
    let host = lab.host(Site::A);
    // Five a second, all the time.
    let pings = thread::spawn(move || ping(&host, "10.2.0.1", 60));
    let turns: [(&str, &dyn Fn()); 4] = [
        ("child, by this end", &|| drop(gateway.run(&["rekey", "site"]))),
        ("child, by pluto", &|| drop(pluto.whack("--rekey-ipsec"))),
        ("IKE SA, by this end", &|| drop(gateway.run(&["rekey", "site", "--ike"]))),
        ("IKE SA, by pluto", &|| drop(pluto.whack("--rekey-ike"))),
    ];
    for (what, rekey) in turns {
        let before = pluto.newest();
        rekey();
        let is_new = || {
            let now = pluto.newest();
            if what.starts_with("child") { now.1 > before.1 } else { now.0 > before.0 }
        };
        let rekeyed = until(Duration::from_secs(10), is_new);
        assert!(rekeyed, "{what}: {before:?}\n{}\n{}", gateway.run(&["log", "site"]), pluto.log());
        thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(pings.join().expect("ping ran"), 60, "{}", gateway.run(&["log", "site"]));
    let rate = iperf::tcp(&lab.host(Site::A), "10.2.0.1", 2, "");
    eprintln!("TCP: {rate:.0} Mbit/s");
    assert!(rate > 0.5, "TCP: {rate} Mbit/s");
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    counters.must_have_opened_all();
    gateway.stop();
}
