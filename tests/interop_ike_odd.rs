//! Requests made with scapy at a running gateway (RFC 7296 sections 1.2, 1.3, 2.5, 2.6, 2.21): each wrong in one way and answered
//! as the RFC says; then thousands with every octet changed and every length wrong, after which the gateway runs as before.

use std::path::Path;
use std::time::Duration;

use penstock_suite::charon::{Auth, Charon, Offer};
use penstock_suite::command::{inside, succeed, until};
use penstock_suite::counters::{Counters, figure};
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::{Negotiated, secret};
use serde_json::Value;

const IKE: &str = "aes256gcm16-prfsha384-x25519";

/// What must come back: the beginning of the list of words, or silence.
const ANSWERED: &[(&str, &str)] = &[
    ("good", "SA KE Nonce"),
    ("vendor IDs", "SA KE Nonce"),
    ("reserved flags and minor version", "SA KE Nonce"),
    ("unknown payload", "SA KE Nonce"),
    // UNSUPPORTED_CRITICAL_PAYLOAD, and which.
    ("unknown critical payload", "N1:c8"),
    ("known critical payload", "SA KE Nonce"),
    ("unknown notify", "SA KE Nonce"),
    // NO_PROPOSAL_CHOSEN.
    ("another group", "N14"),
    // INVALID_KE_PAYLOAD, and which group it must be.
    ("key exchange of another group", "N17:001f"),
    // INVALID_SYNTAX.
    ("group too short", "N7"),
    ("zero public value", "N7"),
    ("another cipher", "N14"),
    ("no SA", "N7"),
    ("no KE", "N7"),
    ("no nonce", "N7"),
    ("nonce of 15 octets", "N7"),
    ("nonce of 257 octets", "N7"),
    ("nonce of 256 octets", "SA KE Nonce"),
    ("no payload", "N7"),
    // INVALID_MAJOR_VERSION; to version 1 nobody can say so.
    ("version 3", "N5"),
    ("version 1", ""),
    ("a reply that nobody asked for", ""),
    ("from a responder", ""),
    ("message ID 1", ""),
    ("responder SPI set", ""),
    ("initiator SPI zero", ""),
    ("IKE_AUTH out of nothing", ""),
    ("INFORMATIONAL out of nothing", ""),
    ("CREATE_CHILD_SA in the clear", ""),
    ("unknown exchange", ""),
    ("header only, cut", ""),
    ("length of another message", ""),
];

fn scapy(lab: &Lab, what: &str) -> Vec<Value> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/odd_ike.py");
    let said = succeed(inside(&lab.wire(), "/usr/bin/python3").arg(program).args(["192.0.2.1", what]));
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
#[ignore = "needs root, TAP devices, scapy and strongSwan: scripts/test runs it"]
fn odd_messages_are_answered_and_harm_nothing() {
    let lab = Lab::make();
    let charon = Charon::beside(&lab);
    charon.configure(&Offer::new(Auth::Psk, IKE, "aes256gcm16"));
    let site = Negotiated::new(Auth::Psk, &charon.pki(), "now", IKE, "aes256gcm16").tunnel(&lab, Site::A);
    // Whoever stands on the wire may begin.
    let anyone = format!(
        "  anyone:\n    peer: 192.0.2.0/24\n    local_prefixes: [10.77.0.0/24]\n    remote_prefixes: [10.78.0.0/24]\n    ike:\n      \
         psk_file: {}\n      local_id: gw-a.example\n      remote_id: any\n      proposals: [{IKE}]\n",
        secret(&lab).display()
    );
    let gateway = Gateway::start(&lab, &Setup::new(Site::A, site + &anyone));
    let passes = || until(Duration::from_secs(20), || lab.ping(Site::A, charon.inner(), 1) == 1);
    assert!(passes(), "{}\n{}", gateway.run(&["why", "site"]), charon.log());
    succeed(inside(&lab.wire(), "ip").args(["addr", "add", "192.0.2.77/24", "dev", "wire"]));
    let sas = || {
        let sas = gateway.json(&["show", "sa", "site"]);
        sas.as_array().expect("a list").iter().map(|sa| figure(sa, "spi")).collect::<Vec<_>>()
    };
    let (control, before) = (gateway.control(), sas());
    let answers = scapy(&lab, "cases");
    assert_eq!(answers.len(), ANSWERED.len());
    for (answer, (name, expected)) in answers.iter().zip(ANSWERED) {
        assert_eq!(answer["case"], *name);
        let words = answer["reply"].as_array().map_or(vec![], |words| words.clone());
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let right =
            if expected.is_empty() { words.is_empty() } else { words.join(" ").starts_with(expected) };
        assert!(right, "{name}: {words:?}, not {expected:?}");
    }
    let memory = resident(control);
    let counts = scapy(&lab, "mutations").remove(0);
    eprintln!("{counts}");
    assert!(figure(&counts, "sent") > 2000, "{counts}");
    // Neither did the machine stop answering, nor did what came cost what it still has not.
    let again = scapy(&lab, "valid").remove(0);
    let words = again["reply"].as_array().map_or(0, Vec::len);
    assert!(words >= 3 && again["reply"][0] == "SA", "{again}");
    let grown = resident(control).saturating_sub(memory);
    assert!(grown < 32 * 1024, "control grew by {grown} KiB");
    assert_eq!((gateway.control(), sas()), (control, before), "{}", gateway.run(&["log", "site"]));
    assert_eq!(lab.ping(Site::A, charon.inner(), 5), 5);
    assert!(gateway.dataplane().is_some() && !gateway.said().contains("panicked"), "{}", gateway.said());
    Counters::read(&gateway).must_add_up();
    gateway.stop();
}
