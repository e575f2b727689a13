//! `penstock show` on lists that are longer than one answer: what selects rows, what ends a list early and says how it goes on,
//! and what is said of a wrong question. Real processes; more than a thousand tunnels in every state, and ten thousand of a
//! control process without a data plane.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use penstock_control::api::types::MAX_ROWS;
use penstock_control::run;
use penstock_suite::command::{self, inside, output, refuse, succeed, text, until};
use penstock_suite::gateway::{Gateway, Setup, program};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::negotiated::secret;
use penstock_tables::{StateOwner, TablesView};
use rustix::process::Signal;
use serde_json::Value;

/// Tunnels whose names begin alike: how many, where their remote prefixes begin, their peer.
struct Family {
    name: &'static str,
    count: usize,
    net: usize,
    peer: &'static str,
    state: &'static str,
}

const BERLIN: Family = Family { name: "berlin", count: 400, net: 32, peer: "192.0.2.2", state: "up" };
const OSLO: Family = Family { name: "oslo", count: 200, net: 64, peer: "198.51.100.9", state: "no_route" };
const PARIS: Family = Family { name: "paris", count: 300, net: 96, peer: "192.0.2.3", state: "no_neighbour" };
/// Keys are negotiated, and the other end does not begin.
const ROME: Family = Family { name: "rome", count: 150, net: 128, peer: "192.0.2.4", state: "no_sa" };
/// In the order of names.
const FAMILIES: [&Family; 4] = [&BERLIN, &OSLO, &PARIS, &ROME];
const TUNNELS: usize = 1050;
/// Of a tunnel with lab keys: one seals; its generation and the next one are opened.
const SAS_EACH: usize = 3;
const SAS: usize = SAS_EACH * (BERLIN.count + OSLO.count + PARIS.count);

impl Family {
    fn yaml(&self, keys: impl Fn(&str) -> String) -> String {
        let one = |number: usize| {
            let name = format!("{}-{number:05}", self.name);
            format!(
                "  {name}: {{peer: {}, local: 192.0.2.1, local_prefixes: [10.1.0.0/24], remote_prefixes: [10.{}.{}.0/24], {}}}\n",
                self.peer,
                self.net + number / 250,
                number % 250,
                keys(&name)
            )
        };
        (0..self.count).map(one).collect()
    }

    fn names(&self) -> Vec<String> {
        (0..self.count).map(|number| format!("{}-{number:05}", self.name)).collect()
    }
}

/// Keys of the lab, each tunnel with its own.
fn lab_keys(lab: &Lab) -> impl Fn(&str) -> String {
    let file = lab.file("lab.secret");
    fs::write(&file, "0123456789abcdef0123456789abcdef").expect("the lab's folder is ours");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    move |name| format!("lab_keys: {{secret_file: {}, context: {name}}}", file.display())
}

/// A list in JSON.
fn rows(gateway: &Gateway, arguments: &[&str]) -> Vec<Value> {
    let value = gateway.json(&[&["show"], arguments].concat());
    value.as_array().unwrap_or_else(|| panic!("{arguments:?} is no list: {value:#}")).clone()
}

/// One field of every row.
fn column(rows: &[Value], field: &str) -> Vec<String> {
    let text = |row: &Value| row[field].as_str().unwrap_or_else(|| panic!("no {field}: {row:#}")).to_owned();
    rows.iter().map(text).collect()
}

fn names(gateway: &Gateway, arguments: &[&str]) -> Vec<String> {
    column(&rows(gateway, &[&["tunnels"], arguments].concat()), "name")
}

/// Asks for a list in parts, as a person does who does what is said behind each part; the parts.
fn parts(gateway: &Gateway, arguments: &[&str]) -> Vec<Vec<Value>> {
    let (mut parts, mut after) = (vec![], None::<String>);
    loop {
        let mut command = gateway.command(&[&["show"], arguments].concat());
        command.arg("--json");
        if let Some(after) = &after {
            command.args(["--after", after]);
        }
        let result = output(&mut command);
        let said = text(&result.stderr);
        assert!(result.status.success(), "{arguments:?}: {said}");
        let rows: Vec<Value> = serde_json::from_slice(&result.stdout).expect("a list");
        let count = rows.len();
        parts.push(rows);
        match said.trim_end().split_once(" rows; more with --after ") {
            Some((told, row)) => {
                assert_eq!(told, count.to_string(), "{said}");
                after = Some(row.trim_matches('\'').to_owned());
            }
            None => {
                assert_eq!(said, "", "nothing is said behind the last part");
                return parts;
            }
        }
    }
}

/// A gateway that has tunnels in every state.
fn gateway(lab: &Lab) -> Gateway {
    let keys = lab_keys(lab);
    let psk = format!("ike: {{psk_file: {}, start: wait, remote_id: NAME.example}}", secret(lab).display());
    let mut tunnels: String = [&BERLIN, &OSLO, &PARIS].map(|family| family.yaml(&keys)).concat();
    tunnels += &ROME.yaml(|name| psk.replace("NAME", name));
    let gateway = Gateway::start(lab, &Setup { room: 2048, ..Setup::new(Site::A, tunnels) });
    let neighbour = ["neigh", "replace", BERLIN.peer, "lladdr", "02:00:00:00:02:f1", "dev", "wan"];
    succeed(inside(gateway.namespace(), "ip").args(neighbour));
    let up = || gateway.json(&["status"])["tunnels_up"] == BERLIN.count;
    assert!(until(Duration::from_secs(20), up), "{:#}", gateway.json(&["status"]));
    gateway
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn lists_of_a_thousand_tunnels() {
    let lab = Lab::make();
    let gateway = gateway(&lab);
    whole_lists(&gateway);
    filters(&gateway);
    limits(&gateway);
    wrong_questions(&gateway);
    the_socket_gives_no_more_than_it_may(&gateway);
    gateway.stop();
}

/// Longer than one answer: the command asks on by itself.
fn whole_lists(gateway: &Gateway) {
    let tunnels = rows(gateway, &["tunnels"]);
    assert_eq!(column(&tunnels, "name"), FAMILIES.map(Family::names).concat());
    for family in FAMILIES {
        let own: Vec<Value> = tunnels.iter().filter(|row| row["peer"] == family.peer).cloned().collect();
        assert_eq!(own.len(), family.count, "{}", family.name);
        assert!(column(&own, "state").iter().all(|state| state == family.state), "{}", family.name);
    }
    let said = gateway.run(&["show", "tunnels"]);
    assert_eq!(said.lines().count(), 1 + TUNNELS);
    for words in
        ["berlin-00007  up", "oslo-00199    no route", "paris-00000   no neighbour", "rome-00149    no SA"]
    {
        assert!(said.lines().any(|line| line.starts_with(words)), "no line begins with {words:?}");
    }
    let sas = rows(gateway, &["sa"]);
    assert_eq!(sas.len(), SAS);
    let spis: std::collections::HashSet<u64> = sas.iter().filter_map(|sa| sa["spi"].as_u64()).collect();
    assert_eq!(spis.len(), SAS, "no SA stands twice");
    assert_eq!(gateway.run(&["show", "sa"]).lines().count(), 1 + SAS);
    let targets = column(&rows(gateway, &["routes"]), "target");
    assert_eq!(targets.iter().filter(|target| target.starts_with("tunnel ")).count(), TUNNELS);
}

fn filters(gateway: &Gateway) {
    assert_eq!(names(gateway, &["--match", "berlin-0001"]), BERLIN.names()[10..20]);
    assert_eq!(names(gateway, &["--match", "00149"]).len(), FAMILIES.len());
    assert_eq!(names(gateway, &["--peer", PARIS.peer]), PARIS.names());
    assert_eq!(names(gateway, &["--prefix", "10.96.7.0/24"]), [PARIS.names()[7].as_str()]);
    // A wider prefix has all in it, a narrower one is in it, and the local side counts as well.
    assert_eq!(names(gateway, &["--prefix", "10.33.0.0/16"]), BERLIN.names()[250..]);
    assert_eq!(names(gateway, &["--prefix", "10.128.9.128/25"]), [ROME.names()[9].as_str()]);
    assert_eq!(names(gateway, &["--prefix", "10.1.0.2/32"]).len(), TUNNELS);
    // Together.
    let both = ["--peer", BERLIN.peer, "--prefix", "10.32.0.0/16", "--match", "9"];
    assert_eq!(
        names(gateway, &both),
        BERLIN.names().into_iter().take(250).filter(|name| name.contains('9')).collect::<Vec<_>>()
    );
    assert!(names(gateway, &["--match", "berlin", "--peer", PARIS.peer]).is_empty());
    assert_eq!(gateway.run(&["show", "tunnels", "--match", "nothing"]).lines().count(), 1);

    let of_one = column(&rows(gateway, &["sa", "oslo-00042"]), "tunnel");
    assert_eq!(of_one, ["oslo-00042"; SAS_EACH]);
    assert_eq!(rows(gateway, &["sa", "--peer", OSLO.peer]).len(), SAS_EACH * OSLO.count);
    assert_eq!(rows(gateway, &["sa", "--prefix", "10.64.3.0/24"]).len(), SAS_EACH);
    assert!(rows(gateway, &["sa", "--match", "rome"]).is_empty());

    let routes = rows(gateway, &["routes", "--match", "tunnel paris-0029"]);
    assert_eq!(
        column(&routes, "prefix"),
        (40..50).map(|number| format!("10.97.{number}.0/24")).collect::<Vec<_>>()
    );
    let routes = rows(gateway, &["routes", "--prefix", "10.64.3.0/24"]);
    assert!(column(&routes, "target").contains(&"tunnel oslo-00003".to_owned()), "{routes:?}");
    assert!(routes.len() <= 3, "others are shorter prefixes that it is in: {routes:?}");
}

fn limits(gateway: &Gateway) {
    let counts = |parts: &[Vec<Value>]| parts.iter().map(Vec::len).collect::<Vec<_>>();
    let walk = parts(gateway, &["tunnels", "--limit", "100", "--match", "paris"]);
    assert_eq!(counts(&walk), [100, 100, 100]);
    assert_eq!(column(&walk.concat(), "name"), PARIS.names());
    let walk = parts(gateway, &["tunnels", "--limit", "70", "--peer", ROME.peer]);
    assert_eq!((counts(&walk), column(&walk.concat(), "name")), (vec![70, 70, 10], ROME.names()));
    // More than one answer holds.
    let walk = parts(gateway, &["tunnels", "--limit", "1030"]);
    assert_eq!((counts(&walk), walk.concat().len()), (vec![1030, 20], TUNNELS));
    // The SAs of one tunnel stand in two parts.
    let walk = parts(gateway, &["sa", "--limit", "500", "--match", "berlin"]);
    assert_eq!(counts(&walk), [500, 500, 200]);
    assert_eq!(walk.concat(), rows(gateway, &["sa", "--match", "berlin"]));
    assert_eq!(column(&walk[1], "tunnel")[..2], ["berlin-00166", "berlin-00167"]);
    let walk = parts(gateway, &["routes", "--limit", "150", "--match", "tunnel rome"]);
    assert_eq!(counts(&walk), [150]);
    let walk = parts(gateway, &["routes", "--limit", "60", "--prefix", "10.128.0.0/16", "--match", "tunnel"]);
    assert_eq!(counts(&walk), [60, 60, 30]);
    assert_eq!(walk.concat().last().unwrap()["prefix"], "10.128.149.0/24");
    // A row that is gone still has a place; behind the last is nothing.
    assert_eq!(names(gateway, &["--after", "oslo-00197a"]).first().map(String::as_str), Some("oslo-00198"));
    assert!(names(gateway, &["--after", "zurich"]).is_empty());
    let said = output(&mut gateway.command(&["show", "tunnels", "--limit", "2"]));
    assert_eq!(text(&said.stdout).lines().count(), 3);
    assert_eq!(text(&said.stderr), "2 rows; more with --after 'berlin-00001'\n");
}

fn wrong_questions(gateway: &Gateway) {
    for (arguments, answer) in [
        (["tunnels", "--peer", "berlin"], "invalid value 'berlin' for '--peer <ADDRESS>'"),
        (
            ["tunnels", "--prefix", "10.1.0.0"],
            "lacks its prefix length, expected an IPv4 prefix such as 10.1.0.0/16",
        ),
        (["sa", "--prefix", "10.1.2.3/16"], "has bits set behind its prefix length: write 10.1.0.0/16"),
        (["routes", "--prefix", "2001:db8::/32"], "is IPv6, which this release does not carry yet"),
        (["tunnels", "--limit", "0"], "invalid value '0' for '--limit <ROWS>'"),
        (["routes", "--peer", "192.0.2.2"], "routes have no peer: select them by --match or --prefix"),
        (["routes", "--after", "oslo-00001"], "expected a prefix behind --after, as 10.0.0.0/8"),
        (["ports", "--match", "lan"], "unexpected argument '--match'"),
    ] {
        let said = refuse(&mut gateway.command(&[&["show"], arguments.as_slice()].concat()));
        assert!(said.contains(answer), "{arguments:?}: {said}");
    }
    let said = refuse(&mut gateway.command(&["show", "sa", "madrid"]));
    assert!(said.contains("there is no tunnel madrid: `penstock show tunnels` lists them"), "{said}");
}

/// Whoever speaks to the socket gets a part at a time, and an answer to nonsense.
fn the_socket_gives_no_more_than_it_may(gateway: &Gateway) {
    let stream = UnixStream::connect(run::socket(gateway.name())).expect("it runs");
    let mut lines = BufReader::new(&stream);
    let mut ask = |request: &str| -> Value {
        writeln!(&stream, "{request}").expect("it listens");
        let mut answer = String::new();
        lines.read_line(&mut answer).expect("it answers");
        serde_json::from_str(&answer).expect("JSON")
    };
    let answer = ask(r#"{"command": "tunnels", "select": {"limit": 5000}}"#);
    let page = &answer["ok"]["tunnels"];
    assert_eq!(page["rows"].as_array().map(Vec::len), Some(MAX_ROWS), "{answer}");
    assert_eq!(page["next"], FAMILIES.map(Family::names).concat()[MAX_ROWS - 1]);
    for wrong in
        [r#"{"command": "tunnels", "select": {"colour": "red"}}"#, r#"{"command": "sa"}"#, "show tunnels"]
    {
        let answer = ask(wrong);
        let said = answer["error"].as_str().unwrap_or_else(|| panic!("{wrong}: {answer}"));
        assert!(said.starts_with("not a request: "), "{said}");
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn ten_thousand_tunnels_of_control_alone() {
    const COUNT: usize = 10_500;
    let lab = Lab::make();
    let many = Family { name: "site", count: COUNT, net: 16, peer: BERLIN.peer, state: "no_route" };
    // SPIs of lab keys follow from secret and name: of these no two are equal, and all find a slot near by.
    let setup = Setup { room: 11_000, ..Setup::new(Site::A, many.yaml(lab_keys(&lab))) };
    let (config, log) = (lab.file("a.yaml"), lab.file("a.log"));
    fs::write(&config, setup.yaml(&lab)).expect("the lab's folder is ours");
    let penstock = |arguments: &[&str]| {
        let mut command = inside(&lab.gateway(Site::A), &program("penstock").display().to_string());
        command.arg("--config").arg(&config).args(arguments);
        command
    };
    let file = fs::File::create(&log).expect("the lab's folder is ours");
    let mut control = penstock(&["control"]).stdin(Stdio::null()).stderr(file).spawn().expect("it is built");
    let until_it = |holds: &dyn Fn() -> bool| {
        assert!(until(Duration::from_secs(30), holds), "{}", fs::read_to_string(&log).unwrap_or_default());
    };
    until_it(&|| output(&mut penstock(&["status"])).status.success());
    let list = |arguments: &[&str]| -> Vec<Value> {
        serde_json::from_str(&succeed(penstock(&[&["show"], arguments].concat()).arg("--json")))
            .expect("a list")
    };
    let said = refuse(&mut penstock(&["show", "sa"]));
    assert!(said.contains("the data plane does not run: start it"), "{said}");
    assert!(list(&["tunnels"]).is_empty(), "their keys need to know which numbers were used");

    // What a data plane would bring: its part of the region.
    let region = format!("/dev/shm/penstock/{}-a", lab.prefix());
    let tables = TablesView::open(Path::new(&region)).expect("control made it");
    let _state = StateOwner::open(Path::new(&region), tables.capacity(), 1).expect("it is ours");
    until_it(&|| list(&["tunnels", "--limit", "1"]).len() == 1);
    let tunnels = list(&["tunnels"]);
    assert!(column(&tunnels, "name") == many.names(), "{} tunnels, or in another order", tunnels.len());
    assert_eq!(column(&tunnels, "state").iter().find(|state| *state != many.state), None);
    assert_eq!(list(&["sa"]).len(), SAS_EACH * COUNT);
    assert_eq!(list(&["sa", "--match", "site-0777"]).len(), SAS_EACH * 10);
    assert_eq!(list(&["tunnels", "--match", "0777"]).len(), 11);
    assert_eq!(list(&["tunnels", "--limit", "9000", "--after", "site-00999"]).len(), 9000);
    assert_eq!(list(&["routes", "--match", "tunnel site"]).len(), COUNT);
    assert_eq!(list(&["routes", "--prefix", "10.16.0.0/12", "--match", "tunnel"]).len(), 4000);
    assert!(command::end(&mut control, Signal::INT), "it ends when it is told to");
}
