//! Many tunnels between one pair of gateways, each with an IKE SA of its own: up, new keys for all, down, nothing left behind. 100,
//! or 1,000 in the nightly form. What it took and what a tunnel costs in memory is told, and kept in the file that
//! PENSTOCK_RESULTS names.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use penstock_control::api::client::Client;
use penstock_control::api::types::{Answer, Request, Select};
use penstock_control::run;
use penstock_suite::command::until;
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{Gateway, Setup};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::secret;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);

fn tunnels(lab: &Lab, site: Site, count: u32) -> String {
    let (own, other) = (site.letter(), site.other().letter());
    let start = if site == Site::A { "now" } else { "wait" };
    let net =
        |site: Site, number: u32| format!("10.{}{}.{}.0/24", site.number(), number / 200 + 1, number % 200);
    let one = |number: u32| {
        format!(
            "  t{number}:\n    peer: {peer}\n    local_prefixes: [{here}]\n    remote_prefixes: [{there}]\n    ike:\n      \
             psk_file: {psk}\n      local_id: t{number}.{own}.example\n      remote_id: t{number}.{other}.example\n      \
             start: {start}\n      proposals: [aes256gcm16-prfsha384-x25519]\n      esp_proposals: [aes256gcm16-esn]\n",
            peer = site.other().outer(),
            here = net(site, number),
            there = net(site.other(), number),
            psk = secret(lab).display(),
        )
    };
    (0..count).map(one).collect()
}

fn setup(lab: &Lab, site: Site, count: u32) -> Setup {
    let tunnels = if count == 0 { "  {}\n".into() } else { tunnels(lab, site, count) };
    Setup { room: 1024, ..Setup::new(site, tunnels) }
}

/// Resident memory in KiB, and CPU time in milliseconds, of a process.
fn costs(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
    let kib = line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .expect("Linux")
        .split(' ')
        .skip(11)
        .take(2)
        .map(|w| w.parse().expect("ticks"))
        .collect();
    // A hundred ticks a second.
    (kib, fields.iter().sum::<u64>() * 10)
}

fn client(gateway: &Gateway) -> Client {
    Client::connect(&run::socket(gateway.name())).expect("it runs")
}

/// SPIs that seal, of all tunnels.
fn sealing(gateway: &Gateway) -> HashSet<u32> {
    let all = Request::Sas { tunnel: None, select: Select::default() };
    let Ok(Answer::Sas(sas)) = client(gateway).ask_all(&all) else {
        panic!("no SAs are told");
    };
    sas.rows.into_iter().filter(|sa| sa.direction == "outbound").map(|sa| sa.spi).collect()
}

fn up(gateway: &Gateway) -> u64 {
    gateway.json(&["status"])["tunnels_up"].as_u64().expect("a number")
}

struct Figures {
    file: Option<File>,
    count: u32,
}

impl Figures {
    fn tell(&mut self, what: &str, value: f64, unit: &str) {
        eprintln!("{what}: {value:.1} {unit}");
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu =
            cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown").to_owned();
        let line = json!({
            "what": what, "value": value, "unit": unit, "tunnels": self.count,
            "harness": "tests/e2e_ike_many.rs, two gateways on net_tap, AES-256-GCM, PRF-SHA2-384, X25519, pre-shared keys",
            "machine": {
                "cpu": cpu, "cores": std::thread::available_parallelism().map_or(0, usize::from),
                "load": load.split(' ').next().unwrap_or_default(),
            },
        });
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}").expect("the results' file can be written");
        }
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn many_tunnels_up_rekeyed_and_down() {
    let count = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 1000 } else { 100 };
    let file = std::env::var_os("PENSTOCK_RESULTS").map(|path| {
        File::options().create(true).append(true).open(path).expect("PENSTOCK_RESULTS can be written")
    });
    let mut figures = Figures { file, count };
    let all = u64::from(count);
    let per_tunnel = |value: u64| value as f64 / f64::from(count);
    let lab = Lab::make();
    let gateways = Site::BOTH.map(|site| Gateway::start(&lab, &setup(&lab, site, 0)));
    let [a, b] = &gateways;
    let before = [a, b].map(|gateway| costs(gateway.control()));
    b.apply(&lab, &setup(&lab, Site::B, count));
    let (start, loaded) = (Instant::now(), [a, b].map(|gateway| costs(gateway.control())));
    a.apply(&lab, &setup(&lab, Site::A, count));
    let all_up = || up(a) == all && up(b) == all;
    assert!(until(PATIENCE, all_up), "{} and {} of {count} are up", up(a), up(b));
    figures.tell(
        "tunnels up a second, both ends on this machine",
        f64::from(count) / start.elapsed().as_secs_f64(),
        "1/s",
    );
    let after = [a, b].map(|gateway| costs(gateway.control()));
    for (end, name) in ["initiator", "responder"].iter().enumerate() {
        let spent = after[end].1.saturating_sub(loaded[end].1).max(1);
        let what =
            format!("tunnels a second and core as {name}, by the CPU time of the whole control process");
        figures.tell(&what, f64::from(count) * 1000.0 / spent as f64, "1/s");
        let grown = after[end].0.saturating_sub(before[end].0);
        figures.tell(&format!("resident memory of control a tunnel, {name}"), per_tunnel(grown), "KiB");
    }
    let old = sealing(a);
    assert_eq!(old.len(), count as usize);
    let (start, before) = (Instant::now(), [a, b].map(|gateway| costs(gateway.control()).1));
    let mut asking = client(a);
    for number in 0..count {
        let (tunnel, generation, force, ike) = (format!("t{number}"), None, false, false);
        asking.ask(&Request::Rekey { tunnel, generation, force, ike }).expect("it is up");
    }
    let renewed = || sealing(a).is_disjoint(&old) && sealing(a).len() == old.len();
    assert!(until(PATIENCE, renewed), "{} keys of {count} are old", sealing(a).intersection(&old).count());
    figures.tell(
        "tunnels rekeyed a second, one after the other asked for",
        f64::from(count) / start.elapsed().as_secs_f64(),
        "1/s",
    );
    for (end, (gateway, name)) in [(a, "initiator"), (b, "responder")].iter().enumerate() {
        let spent = costs(gateway.control()).1.saturating_sub(before[end]);
        figures.tell(&format!("CPU time of control a rekeyed tunnel, {name}"), per_tunnel(spent), "ms");
    }
    assert!(all_up(), "{} and {} of {count} are up", up(a), up(b));
    let start = Instant::now();
    a.apply(&lab, &setup(&lab, Site::A, 0));
    let silent = || sealing(a).is_empty() && sealing(b).is_empty();
    assert!(until(PATIENCE, silent), "SAs that seal are left: {}", b.run(&["show", "sa"]));
    figures.tell("tunnels down a second", f64::from(count) / start.elapsed().as_secs_f64(), "1/s");
    // What still comes in on an SA is taken for some seconds.
    let none = |gateway: &Gateway| gateway.json(&["show", "sa"]).as_array().is_some_and(Vec::is_empty);
    assert!(until(PATIENCE, || none(a) && none(b)), "SAs are left: {}", b.run(&["show", "sa"]));
    for gateway in [a, b] {
        let ikes = gateway.json(&["show", "ike"]);
        assert!(ikes.as_array().is_some_and(Vec::is_empty), "IKE SAs are left: {ikes}");
        Counters::read(gateway).must_add_up();
    }
    gateways.into_iter().for_each(Gateway::stop);
}
