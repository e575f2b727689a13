//! Many tunnels between one pair of gateways, each with an IKE SA of its own: up, rekeyed and down. It reports how long that
//! takes and how much memory a tunnel costs; 100 tunnels, or 1,000 in the nightly form.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use penstock_control::api::client::Client;
use penstock_control::api::types::{Answer, Request};
use penstock_control::run;
use penstock_suite::command::until;
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated;

/// Long enough for a thousand negotiations on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One network behind each gateway for each tunnel.
fn network(site: Site, number: u16) -> String {
    let base = if site == Site::A { 64 } else { 128 };
    format!("10.{}.{}.0/24", base + number / 256, number % 256)
}

fn tunnels(lab: &Lab, site: Site, count: u16) -> String {
    let psk = negotiated::secret(lab);
    let start = if site == Site::A { "now" } else { "wait" };
    let (own, other) = (site.letter(), site.other().letter());
    let one = |number: u16| {
        format!(
            "  t{number}: {{peer: {peer}, local_prefixes: [{local}], remote_prefixes: [{remote}], ike: {{psk_file: {psk}, \
             local_id: {own}{number}.example, remote_id: {other}{number}.example, start: {start}}}}}\n",
            peer = site.other().outer(),
            local = network(site, number),
            remote = network(site.other(), number),
            psk = psk.display(),
        )
    };
    (0..count).map(one).collect()
}

fn client(gateway: &Gateway) -> Client {
    Client::connect(&run::socket(gateway.name())).expect("it runs")
}

/// Outbound SPIs by the tunnels that have exactly one.
fn sealing(gateway: &Gateway) -> HashSet<(String, u32)> {
    let Ok(Answer::Sas(sas)) = client(gateway).ask(&Request::Sas { tunnel: None }) else {
        panic!("no SAs are told");
    };
    sas.into_iter().filter(|sa| sa.direction == "outbound").map(|sa| (sa.tunnel, sa.spi)).collect()
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn many_tunnels_come_up_are_rekeyed_and_go() {
    let count: u16 = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 1000 } else { 100 };
    let lab = Lab::make();
    let setup =
        |site, count| Setup { room: u32::from(count) + 16, ..Setup::new(site, tunnels(&lab, site, count)) };
    let b = Gateway::start(&lab, &setup(Site::B, count));
    // First one tunnel alone, so that what follows is neither start-up nor ARP.
    let a = Gateway::start(&lab, &Setup { room: u32::from(count) + 16, ..setup(Site::A, 1) });
    assert!(until(PATIENCE, || sealing(&a).len() == 1), "{}", a.said());
    let before = [resident(a.control()), resident(b.control())];
    let start = Instant::now();
    a.apply(&lab, &setup(Site::A, count));
    let up = || sealing(&a).len() == usize::from(count) && sealing(&b).len() == usize::from(count);
    assert!(until(PATIENCE, up), "{} and {} of {count}", sealing(&a).len(), sealing(&b).len());
    let took = start.elapsed();
    let after = [resident(a.control()), resident(b.control())];
    eprintln!("{count} tunnels up in {took:?}");
    for (site, (before, after)) in ["initiator", "responder"].iter().zip(before.iter().zip(after)) {
        eprintln!(
            "{site}: {:.1} KiB of control a tunnel",
            (after as f64 - *before as f64) / f64::from(count - 1)
        );
    }
    let old = sealing(&a);
    let (start, mut asking) = (Instant::now(), client(&a));
    for number in 0..count {
        let (tunnel, generation, force, ike) = (format!("t{number}"), None, false, false);
        asking.ask(&Request::Rekey { tunnel, generation, force, ike }).expect("it is up");
    }
    let replaced = || sealing(&a).is_disjoint(&old) && sealing(&a).len() == usize::from(count);
    assert!(until(PATIENCE, replaced), "{} were not replaced", sealing(&a).intersection(&old).count());
    eprintln!("{count} tunnels rekeyed in {:?}", start.elapsed());
    let start = Instant::now();
    a.stop();
    assert!(until(PATIENCE, || sealing(&b).is_empty()), "{} are left", sealing(&b).len());
    eprintln!("{count} tunnels down in {:?}, with the gateway's end", start.elapsed());
    let Ok(Answer::Ike(left)) = client(&b).ask(&Request::Ike { tunnel: None }) else { panic!("no answer") };
    assert!(left.is_empty(), "{left:?}");
    b.stop();
}
