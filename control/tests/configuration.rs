//! Wrong configuration files, each with the whole message that it must get, and the reference that must match the types.

mod pki;
mod wrong;

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use penstock_control::config::{Checked, Config, ConfigError, Machine, reference};

/// A directory with the files that the table's configurations name.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    let files = [
        ("lab.secret", 0o600, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"),
        ("open.secret", 0o644, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"),
        ("short.secret", 0o600, "0011\n"),
        ("good.key", 0o600, "00112233445566778899aabbccddeeff01020304\n"),
        ("open.key", 0o604, "00112233445566778899aabbccddeeff01020304\n"),
        ("words.key", 0o600, "swordfish\n"),
        ("good.psk", 0o600, "correct horse battery staple\n"),
        ("open.psk", 0o640, "correct horse battery staple\n"),
        ("tiny.psk", 0o600, "secret\n"),
        ("weak.psk", 0o600, "swordfish\n"),
        ("frankfurt.psk", 0o600, "f3Lh2Zk1pQ9xVb7NcR5tYw8sUe4oAi6D\n"),
        ("azure.psk", 0o600, "g3Lh2Zk1pQ9xVb7NcR5tYw8sUe4oAi6D\n"),
        ("aws1.psk", 0o600, "h3Lh2Zk1pQ9xVb7NcR5tYw8sUe4oAi6D\n"),
        ("aws2.psk", 0o600, "i3Lh2Zk1pQ9xVb7NcR5tYw8sUe4oAi6D\n"),
    ];
    for (name, mode, text) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode set");
    }
    pki::write_all(directory.path());
    directory
}

fn parse(directory: &Path, text: &str) -> Result<Checked, ConfigError> {
    let machine = Machine { cores: vec![0, 1, 2, 3], interfaces: vec!["lo".into(), "eth0".into()] };
    Config::parse(&directory.join("a.yaml"), text, &machine)
}

/// The message for `text`, with the temporary directory's name taken out.
fn message(directory: &Path, text: &str) -> String {
    match parse(directory, text) {
        Ok(_) => "good".into(),
        Err(error) => error.to_string().replace(&format!("{}/", directory.display()), ""),
    }
}

#[test]
fn the_base_of_the_table_is_good() {
    let directory = directory();
    for base in [wrong::BASE, wrong::ike::BASE] {
        assert_eq!(message(directory.path(), base), "good");
        assert_eq!(parse(directory.path(), base).expect("good").warnings, Vec::<String>::new());
    }
}

#[test]
fn every_wrong_file_gets_its_message() {
    let directory = directory();
    let mut differences = String::new();
    let tables = [(wrong::BASE, wrong::TABLE), (wrong::ike::BASE, wrong::ike::TABLE)];
    for (base, (title, change, expected)) in
        tables.iter().flat_map(|(base, table)| table.iter().map(move |row| (base, row)))
    {
        let found = message(directory.path(), &change.apply(base));
        if found != *expected {
            let _ = write!(differences, "--- {title}\nexpected: {expected}\nfound:    {found}\n");
        }
    }
    assert!(wrong::TABLE.len() >= 45 && wrong::ike::TABLE.len() >= 50, "files are missing");
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let machine = Machine::default();
    let missing = Config::load(Path::new("no/such/file.yaml"), &machine).expect_err("missing");
    assert_eq!(
        missing.to_string(),
        "no/such/file.yaml: no such file: write one or name another with --config"
    );
    let directory = directory();
    let path = directory.path().join("binary.yaml");
    std::fs::write(&path, [0xff, 0xfe, 0]).expect("written");
    let binary = Config::load(&path, &machine).expect_err("binary");
    assert!(binary.to_string().ends_with("binary.yaml: is not UTF-8 text: not a configuration"), "{binary}");
}

#[test]
fn several_faults_are_reported_at_once_in_the_order_of_the_file() {
    let directory = directory();
    let text = "name: a b\nports:\n  eth0: {device: x, mtu: 9}\n";
    assert_eq!(
        message(directory.path(), text),
        "a.yaml:1:7: name: `a b` is not a name, expected 1 to 32 letters, digits, - or _, beginning with a letter or \
         digit\n\
         a.yaml:3:3: ports.eth0: `eth0` is a network interface of the kernel: give it another name, for its twin takes \
         the same\n\
         a.yaml:3:26: ports.eth0.mtu: `9`, expected 576 to 9216 octets"
    );
}

#[test]
fn what_the_file_leaves_out_follows_from_the_rest() {
    let directory = directory();
    let checked = parse(directory.path(), reference::EXAMPLE).expect("the example of the reference is good");
    let config = checked.config;
    assert_eq!(checked.warnings, Vec::<String>::new());
    assert_eq!(config.local_of(&config.tunnels["frankfurt"]), Some([192, 0, 2, 1].into()));
    assert_eq!(config.state_directory(), Path::new("/var/lib/penstock/site-a"));
    let secret = config.tunnels["paris"].lab_keys.as_ref().and_then(|keys| keys.secret_file.clone());
    assert_eq!(secret, Some(directory.path().join("lab.secret")));
}

#[test]
fn a_hundred_thousand_tunnels_are_checked() {
    let directory = directory();
    let mut text = String::from(
        "lab: true\ncapacity: {tunnels: 100000, routes: 200000}\n\
         ports: {wan: {device: net_null0, addresses: [192.0.2.1/24]}}\ntunnels:\n",
    );
    for tunnel in 0..100_000_u32 {
        let [_, a, b, c] = tunnel.to_be_bytes();
        let _ = writeln!(
            text,
            "  t{tunnel}: {{peer: 192.0.2.2, local_prefixes: [172.16.0.0/12], remote_prefixes: [10.{a}.{b}.{c}/32], \
             lab_keys: {{secret_file: lab.secret, context: \"{tunnel}\"}}}}"
        );
    }
    assert_eq!(message(directory.path(), &text), "good");
}

#[test]
fn what_ends_soon_and_what_can_be_guessed_is_warned_of() {
    let directory = directory();
    let text = wrong::ike::BASE
        .replace("certificate: gw.pem", "certificate: soon.pem")
        .replace("key: gw.key", "key: soon.key")
        .replace("ca: ca.pem", "ca: [ca.pem, soon-ca.pem]")
        .replace("psk_file: good.psk, life", "psk_file: weak.psk, life");
    let checked = parse(directory.path(), &text).expect("good");
    assert_eq!(
        checked.warnings,
        [
            "tunnels.berlin.ike.psk_file: has fewer than 20 octets: whoever poses as the peer can guess it; make one with \
             `openssl rand -base64 32`",
            "tunnels.vienna.ike.certificate: the certificate of CN=soon expires in 20 days: renew it",
            "tunnels.vienna.ike.ca[1]: the certificate of the CA CN=soon CA expires in 29 days: renew it",
        ]
    );
}

#[test]
fn the_examples_of_the_ikev2_page_are_good() {
    let directory = directory();
    let page = include_str!("../../docs/ikev2.md");
    let examples: Vec<&str> =
        page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 5);
    for example in examples {
        assert_eq!(message(directory.path(), example), "good", "{example}");
        let checked = parse(directory.path(), example).expect("good");
        assert_eq!(checked.warnings, Vec::<String>::new(), "{example}");
        let all = penstock_control::ike::connections::connections(&checked.config).expect("complete");
        assert_eq!(penstock_ike::check(&all), [], "{example}");
    }
}

#[test]
fn a_hundred_thousand_negotiated_tunnels_are_checked() {
    let directory = directory();
    let mut text = String::from(
        "capacity: {tunnels: 100000, routes: 200000}\n\
         ports: {wan: {device: net_null0, addresses: [192.255.0.1/8]}}\ntunnels:\n",
    );
    for tunnel in 0..100_000_u32 {
        let [_, a, b, c] = (tunnel + 512).to_be_bytes();
        let _ = writeln!(
            text,
            "  t{tunnel}: {{peer: 192.{a}.{b}.{c}, local_prefixes: [172.16.0.0/12], \
             remote_prefixes: [10.{a}.{b}.{c}/32], ike: {{psk_file: good.psk}}}}"
        );
    }
    assert_eq!(message(directory.path(), &text), "good");
    // All in one network: one complaint a tunnel, and not one for each two.
    let same = text.replace("remote_prefixes: [10.", "remote_prefixes: [10.0.0.0/8] # ");
    let same = same.replace("/32], ike", "\n    ,ike");
    let wrong = parse(directory.path(), &same).expect_err("overlaps");
    assert_eq!(wrong.complaints.len(), 99_999);
}

#[test]
fn keys_never_show() {
    let directory = directory();
    let checked = parse(directory.path(), wrong::BASE).expect("good");
    let shown =
        format!("{:?}\n{}", checked.config, serde_json::to_string(&checked.config).expect("serializes"));
    assert!(shown.contains("KeyText(20 octets)"), "{shown}");
    assert!(!shown.contains("a0a1a2a3"), "{shown}");
    let checked = parse(directory.path(), wrong::ike::BASE).expect("good");
    let shown =
        format!("{:?}\n{}", checked.config, serde_json::to_string(&checked.config).expect("serializes"));
    assert!(shown.contains("good.psk") && !shown.contains("correct horse"), "{shown}");
}

#[test]
fn the_reference_is_that_of_the_types() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let made = reference::markdown();
    for line in made.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(!cells[5].is_empty(), "this key has no meaning: {line}");
        assert!(
            cells[2] != "number"
                || !cells[3].is_empty()
                || line.contains("802.1Q")
                || line.contains("index")
                || line.contains("Generation"),
            "this number has no unit: {line}"
        );
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, made, "docs/configuration.md differs from the types: run the test with UPDATE_DOCS=1");
}

/// What works and may not be meant is said with the names that one must know.
#[test]
fn what_may_not_be_meant_is_a_warning() {
    let directory = directory();
    let warnings = |old: &str, new: &str| {
        assert!(wrong::BASE.contains(old), "{old}");
        parse(directory.path(), &wrong::BASE.replacen(old, new, 1)).expect("good").warnings
    };
    assert_eq!(
        warnings("remote_prefixes: [10.2.0.0/16]", "remote_prefixes: [198.51.100.0/24]"),
        [
            "tunnels.frankfurt.remote_prefixes[0]: `198.51.100.0/24` holds the peer's own address 198.51.100.2: what this gateway \
          itself sends there (IKE, ESP, ping) stays outside of the tunnel"
        ]
    );
    assert_eq!(
        warnings("local_prefixes: [10.1.0.0/16]", "local_prefixes: [10.1.0.0/16, 10.9.0.0/16]"),
        [
            "tunnels.frankfurt.local_prefixes[1]: no port and no route of the file has an address of `10.9.0.0/16`: the kernel must \
          have a route to it, or nothing behind this gateway is reached"
        ]
    );
    let routed = "routes:\n  - {to: 10.9.1.0/24, via: 10.1.0.9}\n";
    let text = wrong::BASE.replacen("routes:\n", routed, 1);
    let text =
        text.replacen("local_prefixes: [10.1.0.0/16]", "local_prefixes: [10.1.0.0/16, 10.9.0.0/16]", 1);
    assert_eq!(parse(directory.path(), &text).expect("good").warnings, Vec::<String>::new());
    assert_eq!(
        warnings(
            "    peer: 198.51.100.2\n    local_prefixes: [10.1.0.0/16]\n    remote_prefixes: [10.3",
            "    peer: 198.51.100.2\n    local: 10.1.0.1\n    local_prefixes: [10.1.0.0/16]\n    remote_prefixes: [10.3",
        ),
        Vec::<String>::new(),
        "one line is written, the other follows from the routes: the warning needs both"
    );
    let two =
        wrong::BASE.replace("    peer: 198.51.100.2\n", "    peer: 198.51.100.2\n    local: 192.0.2.1\n");
    let two = two.replacen("local: 192.0.2.1", "local: 10.1.0.1", 1);
    assert_eq!(
        parse(directory.path(), &two).expect("good").warnings,
        [
            "tunnels.paris.local: is an address of port wan, and tunnel frankfurt to the same peer uses port lan: all packets to \
          198.51.100.2 leave by one port, the one that the route to it names"
        ]
    );
}
