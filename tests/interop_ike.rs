//! Keys negotiated between a running gateway and strongSwan's charon (RFC 7296): {pre-shared key, ECDSA, RSA} x {group 14, 19,
//! 31} x {AES-GCM-128, AES-GCM-256, ChaCha20-Poly1305} x {NAT, none} x {ESN, none}, both roles, on a Linux kernel's ESP; and the
//! suites that are made for the gateways of Azure and AWS, against what those two publish.
//!
//! The nightly form runs the whole product, the other one a part of it in which each two choices meet.

use std::time::Duration;

use penstock_suite::charon::{Auth, Charon, Offer};
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::iperf;
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::Negotiated;

/// Every group in the company of another cipher and PRF of the IKE SA.
const IKE: [&str; 3] =
    ["aes256gcm16-prfsha384-modp2048", "aes128-sha256-ecp256", "aes128gcm16-prfsha256-x25519"];
const ESP: [&str; 3] = ["aes128gcm16", "aes256gcm16", "chacha20poly1305"];
/// As the Linux kernel calls them, with the octets of key and salt.
const KERNEL: [(&str, usize); 3] =
    [("rfc4106(gcm(aes))", 20), ("rfc4106(gcm(aes))", 36), ("rfc7539esp(chacha20,poly1305)", 36)];

/// One negotiation, as choices: authentication, group, cipher, NAT, ESN, who begins.
type Run = [usize; 6];
const CHOICES: Run = [3, 3, 3, 2, 2, 2];
const NAT: usize = 3;

/// Every combination.
fn product() -> Vec<Run> {
    let count: usize = CHOICES.iter().product();
    let run = |mut number: usize| {
        CHOICES.map(|choices| {
            let choice = number % choices;
            number /= choices;
            choice
        })
    };
    (0..count).map(run).collect()
}

/// Each two choices of different kinds, as (kind, choice) pairs.
fn pairs(run: &Run) -> impl Iterator<Item = [(usize, usize); 2]> {
    let run = *run;
    (0..run.len()).flat_map(move |a| (a + 1..run.len()).map(move |b| [(a, run[a]), (b, run[b])]))
}

/// Runs in which each two choices meet: always the one that brings most new pairs.
fn covering() -> Vec<Run> {
    let (product, mut runs) = (product(), vec![]);
    let mut missing: std::collections::HashSet<_> = product.iter().flat_map(pairs).collect();
    while !missing.is_empty() {
        let gain = |run: &&Run| pairs(run).filter(|pair| missing.contains(pair)).count();
        // The first of the best: the same ones each time.
        let best = *product.iter().rev().max_by_key(gain).expect("there are runs");
        for pair in pairs(&best) {
            missing.remove(&pair);
        }
        runs.push(best);
    }
    runs
}

#[test]
fn each_two_choices_meet() {
    let (all, some) = (product(), covering());
    assert_eq!(all.len(), 216);
    let of = |runs: &[Run]| runs.iter().flat_map(pairs).collect::<std::collections::HashSet<_>>();
    assert_eq!(of(&all), of(&some));
    assert!(some.len() <= 14, "{} runs", some.len());
}

/// What both ends of a run shall propose.
struct Case {
    offer: Offer,
    tunnel: Negotiated,
    what: String,
}

fn case(run: &Run, charon: &Charon) -> Case {
    let [auth, group, cipher, nat, esn, initiate] = *run;
    let auth = Auth::ALL[auth];
    let esp = format!("{}-{}", ESP[cipher], if esn == 1 { "esn" } else { "noesn" });
    let start = if initiate == 1 { "now" } else { "wait" };
    Case {
        offer: Offer::new(auth, IKE[group], esp.clone()),
        tunnel: Negotiated::new(auth, &charon.pki(), start, IKE[group], &esp),
        what: format!(
            "{auth:?}, {}, {esp}, NAT {}, this end begins: {}",
            IKE[group],
            nat == 1,
            initiate == 1
        ),
    }
}

/// What `penstock why` and `penstock log` say, and charon's log.
fn said(gateway: &Gateway, charon: &Charon) -> String {
    format!("{}\n{}\n{}", gateway.run(&["why", "site"]), gateway.run(&["log", "site"]), charon.log())
}

/// Negotiates, and pings both ways.
fn establish(lab: &Lab, gateway: &Gateway, charon: &Charon, case: &Case) {
    charon.configure(&case.offer);
    gateway.apply(lab, &Setup::new(Site::A, case.tunnel.tunnel(lab, Site::A)));
    if case.tunnel.start == "wait" {
        let (content, words) = charon.initiate();
        assert!(content, "{}: {words}\n{}", case.what, said(gateway, charon));
    }
    let passes = until(Duration::from_secs(20), || lab.ping(Site::A, charon.inner(), 1) == 1);
    assert!(passes, "{}: no ping is answered\n{}", case.what, said(gateway, charon));
    assert_eq!(lab.ping(Site::A, charon.inner(), 3), 3, "{}", case.what);
    assert_eq!(charon.ping(lab, 3), 3, "{}: from charon\n{}", case.what, said(gateway, charon));
}

/// What both ends installed is what was asked for.
fn must_be_installed(gateway: &Gateway, charon: &Charon, run: &Run, what: &str) {
    let [_, _, cipher, nat, esn, _] = *run;
    let states = charon.states();
    let (name, octets) = KERNEL[cipher];
    let states: Vec<&str> = states.split("\nsrc ").filter(|state| state.contains("proto esp")).collect();
    assert_eq!(states.len(), 2, "{what}: {states:?}");
    for state in &states {
        let key = state.split(name).nth(1).and_then(|rest| rest.split_whitespace().next()).expect(what);
        assert_eq!(key.len(), 2 + 2 * octets, "{what}: {state}");
        assert_eq!(state.contains("esn"), esn == 1, "{what}: {state}");
        assert_eq!(state.contains("espinudp"), nat == 1, "{what}: {state}");
        assert!(state.contains("failed 0"), "{what}: {state}");
    }
    let sas = gateway.json(&["show", "sa", "site"]);
    let sas = sas.as_array().expect("a list");
    assert_eq!(sas.len(), 2, "{what}: {sas:?}");
    for sa in sas {
        assert_eq!(sa["cipher"], ESP[cipher], "{what}: {sa}");
        assert_eq!((&sa["esn"], &sa["udp"]), (&(esn == 1).into(), &(nat == 1).into()), "{what}: {sa}");
    }
}

/// Ends it from one side; both must forget it.
fn close(lab: &Lab, gateway: &Gateway, charon: &Charon, from_here: bool, what: &str) {
    if !from_here {
        let (content, words) = charon.terminate();
        assert!(content, "{what}: {words}");
    }
    gateway.apply(lab, &Setup::new(Site::A, "  {}\n"));
    assert!(charon.is_idle(), "{what}: {}\n{}", charon.list(), charon.log());
}

fn matrix(nat: bool) {
    let nightly = std::env::var_os("PENSTOCK_NIGHTLY").is_some();
    let runs = if nightly { product() } else { covering() };
    let lab = Lab::make();
    let charon = Charon::in_guest(&lab, nat);
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, "  {}\n"));
    for (number, run) in runs.iter().filter(|run| run[NAT] == usize::from(nat)).enumerate() {
        let case = case(run, &charon);
        let since = std::time::Instant::now();
        establish(&lab, &gateway, &charon, &case);
        must_be_installed(&gateway, &charon, run, &case.what);
        if number % 4 == 0 {
            for direction in ["", "-R"] {
                let rate = iperf::tcp(&lab.host(Site::A), charon.inner(), 1, direction);
                eprintln!("{}: TCP {direction} {rate:.0} Mbit/s", case.what);
                assert!(rate > 0.5, "{}: TCP {direction} {rate} Mbit/s", case.what);
            }
        }
        close(&lab, &gateway, &charon, number % 2 == 0, &case.what);
        eprintln!("{}: {:?}", case.what, since.elapsed());
        if nat {
            // What the last run's mappings are in the way of, a new one could not be reached through.
            lab.move_nat("192.0.2.2");
        }
    }
    let counters = Counters::read(&gateway);
    counters.must_add_up();
    for name in ["replayed", "too_old", "auth_failed", "esp_trailer", "inner_malformed"] {
        assert_eq!(counters.of(name), 0, "{name}: {:?}", counters.drops);
    }
    gateway.stop();
}

#[test]
#[ignore = "needs root, TAP devices, user-mode Linux and strongSwan: scripts/test runs it"]
fn all_that_can_be_negotiated_without_nat() {
    matrix(false);
}

#[test]
#[ignore = "needs root, TAP devices, user-mode Linux and strongSwan: scripts/test runs it"]
fn all_that_can_be_negotiated_through_nat() {
    matrix(true);
}

/// (Our suite, their IKE, their ESP): what the two publish for their gateways. Azure's default policy, and a custom one; what
/// AWS takes at least, and the strongest.
const CLOUDS: [(&str, &str, &str); 4] = [
    ("azure", "aes256-sha256-modp2048", "aes256gcm16"),
    ("azure", "aes256gcm16-prfsha384-ecp384", "aes256gcm16"),
    ("aws", "aes128-sha256-modp2048", "aes128gcm16-modp2048"),
    ("aws", "aes256gcm16-prfsha512-ecp384", "aes256gcm16-ecp384"),
];

#[test]
#[ignore = "needs root, TAP devices and strongSwan: scripts/test runs it"]
fn what_azure_and_aws_publish() {
    let lab = Lab::make();
    let charon = Charon::beside(&lab);
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, "  {}\n"));
    for (suite, ike, esp) in CLOUDS {
        for start in ["now", "wait"] {
            let case = Case {
                offer: Offer::new(Auth::Psk, ike, esp),
                tunnel: Negotiated::suite(Auth::Psk, &charon.pki(), start, suite),
                what: format!("{suite} with {ike} and {esp}, {start}"),
            };
            establish(&lab, &gateway, &charon, &case);
            // Only a rekey exchanges keys for the child alone.
            gateway.run(&["rekey", "site"]);
            let rekeyed =
                || charon.list().matches("INSTALLED").count() == 1 && !charon.list().contains("REKEYED");
            assert!(until(Duration::from_secs(10), rekeyed), "{}: {}", case.what, charon.list());
            assert_eq!(lab.ping(Site::A, charon.inner(), 3), 3, "{}: after a rekey", case.what);
            close(&lab, &gateway, &charon, start == "now", &case.what);
        }
    }
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}
