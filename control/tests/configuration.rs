//! Wrong configuration files, each with the whole message that it must get, and the reference that must match the types.

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
    ];
    for (name, mode, text) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode set");
    }
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
    assert_eq!(message(directory.path(), wrong::BASE), "good");
}

#[test]
fn every_wrong_file_gets_its_message() {
    let directory = directory();
    let mut differences = String::new();
    for (title, change, expected) in wrong::TABLE {
        let found = message(directory.path(), &change.apply());
        if found != *expected {
            let _ = write!(differences, "--- {title}\nexpected: {expected}\nfound:    {found}\n");
        }
    }
    assert!(wrong::TABLE.len() >= 45, "the table has {} files", wrong::TABLE.len());
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
fn keys_never_show() {
    let directory = directory();
    let checked = parse(directory.path(), wrong::BASE).expect("good");
    let shown =
        format!("{:?}\n{}", checked.config, serde_json::to_string(&checked.config).expect("serializes"));
    assert!(shown.contains("KeyText(20 octets)"), "{shown}");
    assert!(!shown.contains("a0a1a2a3"), "{shown}");
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
