//! What is not as it should be is refused, with a sentence that says what to do; what others send is dropped and counted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use penstock_suite::command::{inside, output, refuse, succeed, text, until};
use penstock_suite::counters::{Counters, figure};
use penstock_suite::gateway::{self, Gateway, Setup, mac, program, secret_tunnel};
use penstock_suite::lab::{Lab, Site};

/// Writes the configuration of gateway A.
fn write(lab: &Lab, setup: &Setup) -> PathBuf {
    let path = lab.file("refused.yaml");
    fs::write(&path, setup.yaml(lab)).expect("the lab's folder is ours");
    path
}

fn setup(lab: &Lab) -> Setup {
    Setup::new(Site::A, secret_tunnel(lab, Site::A, ""))
}

/// `penstock up` behind `wrapper`, such as another user or another mount namespace. Ended after half a minute: whoever runs
/// so long was not refused.
fn up(lab: &Lab, config: &Path, wrapper: &[&str]) -> Command {
    let mut command = inside(&lab.gateway(Site::A), "timeout");
    command.args(["--signal", "INT", "--kill-after", "10", "30"]).args(wrapper);
    command.arg(program("penstock")).arg("--config").arg(config).arg("up");
    command
}

/// Fails unless the command was refused with all of these words.
fn must_say(command: &mut Command, words: &[&str]) {
    let result = output(command);
    let said = text(&result.stdout) + &text(&result.stderr);
    assert!(!result.status.success() && result.status.code() != Some(124), "it was not refused:\n{said}");
    assert!(result.status.code().is_some(), "it crashed ({}):\n{said}", result.status);
    assert!(!said.contains("panicked"), "it panicked:\n{said}");
    for word in words {
        assert!(said.contains(word), "\"{word}\" is missing in:\n{said}");
    }
}

#[test]
#[ignore = "needs the built programs: scripts/test runs it"]
fn an_engine_that_there_is_not() {
    let mut command = Command::new(program("penstock-dataplane"));
    command.args(["--region", "none", "--port", "lan=net_null0", "--core", "0", "--engine", "turbo"]);
    must_say(&mut command, &["there is no crypto engine \"turbo\"", "vaes, aesni, reference"]);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn a_second_instance_of_either_process() {
    let lab = Lab::make();
    let gateway = Gateway::start(&lab, &setup(&lab));
    must_say(&mut up(&lab, gateway.config(), &[]), &["already runs on", "stop it first"]);
    let pid = gateway.dataplane().expect("it runs");
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
    let arguments: Vec<String> = arguments.split(|octet| *octet == 0).map(text).collect();
    let mut second = inside(gateway.namespace(), "timeout");
    second.arg("30").args(arguments.iter().filter(|argument| !argument.is_empty()));
    must_say(&mut second, &["penstock-dataplane already runs on", "stop it first"]);
    assert_eq!(gateway.dataplane(), Some(pid), "the first one was disturbed");
    gateway.run(&["status"]);
    gateway.stop();
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn segments_of_another_version_truncated_or_foreign() {
    let lab = Lab::make();
    let region = lab.file("region");
    let memory = format!("{{hugepages: off, megabytes: 128, directory: {}}}", region.display());
    let setup = Setup { memory, ..setup(&lab) };
    let gateway = Gateway::start(&lab, &setup);
    let good = ["tables", "state"].map(|name| (name, fs::read(region.join(name)).expect("a segment")));
    gateway.stop();
    let config = write(&lab, &setup);
    for (name, segment) in &good {
        let mut newer = segment.clone();
        newer[8..12].copy_from_slice(&77u32.to_ne_bytes());
        let mut foreign = segment.clone();
        foreign[..8].copy_from_slice(b"SOMEBODY");
        let other_kind = &good_of(&good, if *name == "tables" { "state" } else { "tables" })[..4096];
        let mut other = segment.clone();
        other[..4096].copy_from_slice(other_kind);
        let cases: [(&str, &[u8], &[&str]); 5] = [
            ("another version", &newer, &["another version", "ABI 77", "start both from one release"]),
            ("truncated", &segment[..segment.len() / 2], &["is no Penstock segment", "remove the file"]),
            ("shorter than its header", &segment[..100], &["is no Penstock segment", "remove the file"]),
            ("foreign", &foreign, &["is no Penstock segment", "remove the file"]),
            ("the other segment", &other, &["is no Penstock segment", "remove the file"]),
        ];
        for (case, octets, words) in cases {
            eprintln!("{name}: {case}");
            let _ = fs::remove_dir_all(&region);
            fs::create_dir(&region).expect("the lab's folder is ours");
            fs::write(region.join(name), octets).expect("it is ours");
            must_say(&mut up(&lab, &config, &[]), words);
            let left = fs::read(region.join(name)).expect("what was refused is still there");
            assert!(left == octets, "what was refused was changed");
        }
    }
}

fn good_of<'a>(segments: &'a [(&str, Vec<u8>); 2], name: &str) -> &'a [u8] {
    &segments.iter().find(|(its, _)| *its == name).expect("one of the two").1
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn without_permission() {
    let lab = Lab::make();
    let config = write(&lab, &setup(&lab));
    fs::set_permissions(lab.folder(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // The secret is its owner's alone.
    must_say(&mut up(&lab, &config, &nobody), &["lab.secret", "cannot be read", "ermission denied"]);
    // And where nobody owns the secret, there is still what only root may do.
    let chown = ["chown", "65534:65534"];
    succeed(Command::new(chown[0]).arg(chown[1]).arg(lab.file("lab.secret")));
    must_say(&mut up(&lab, &config, &nobody), &["permission", "root"]);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn without_huge_pages_where_they_are_asked_for() {
    let lab = Lab::make();
    let on = Setup { memory: "{hugepages: on, megabytes: 128}".into(), ..setup(&lab) };
    let config = write(&lab, &on);
    let unmounted = ["unshare", "--mount", "sh", "-c", "umount -a -t hugetlbfs; exec \"$@\"", "sh"];
    must_say(&mut up(&lab, &config, &unmounted), &["hugepages is on", "mount -t hugetlbfs"]);
    // Mounted, but with less than is asked for.
    let huge = lab.file("huge");
    fs::create_dir(&huge).expect("the lab's folder is ours");
    let few = Setup { memory: "{hugepages: on, megabytes: 65536}".into(), ..setup(&lab) };
    let config = write(&lab, &few);
    let mounted = format!("mount -t hugetlbfs none {}; exec \"$@\"", huge.display());
    must_say(&mut up(&lab, &config, &["unshare", "--mount", "sh", "-c", &mounted, "sh"]), &["huge"]);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn on_a_full_disk() {
    let lab = Lab::make();
    let full = lab.file("full");
    fs::create_dir(&full).expect("the lab's folder is ours");
    let mount = format!("mount -t tmpfs -o size=64k none {}; exec \"$@\"", full.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let memory = format!("{{hugepages: off, megabytes: 128, directory: {}/region}}", full.display());
    let config = write(&lab, &Setup { memory, ..setup(&lab) });
    must_say(&mut up(&lab, &config, &wrapper), &["no room for", "lower `capacity`"]);
    // The same for what is kept on disk: without it, a key might be used again after a reboot.
    let yaml = setup(&lab).yaml(&lab);
    let state = format!("state_directory: {}/state", full.display());
    let lines = yaml.lines().map(|line| if line.starts_with("state_directory:") { &state } else { line });
    fs::write(&config, lines.collect::<Vec<_>>().join("\n")).expect("it is ours");
    let fill = mount.replace("exec", &format!("cat /dev/zero >{}/x; exec", full.display()));
    must_say(&mut up(&lab, &config, &["unshare", "--mount", "sh", "-c", &fill, "sh"]), &["No space left"]);
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn without_a_gateway_the_command_line_says_how_to_start_it() {
    let lab = Lab::make();
    let config = write(&lab, &setup(&lab));
    for arguments in [&["status"][..], &["show", "sa"], &["rekey", "site"], &["apply"]] {
        let mut command = inside(&lab.gateway(Site::A), &program("penstock").display().to_string());
        let said = refuse(command.arg("--config").arg(&config).args(arguments));
        assert!(said.contains("no gateway runs") && said.contains("penstock up"), "{arguments:?}: {said}");
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn garbage_on_the_wire_is_counted_and_harms_nobody() {
    let lab = Lab::make();
    let gateways = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let [a, b] = &gateways;
    let before = Counters::read(b);
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let made = lab.file("garbage.pcap");
    let mut python = Command::new("/usr/bin/python3");
    python.arg(tests.join("garbage.py")).args([&mac(Site::B, "wan"), "20000"]).arg(&made);
    // What a listener on the wire would know.
    let sas = b.json(&["show", "sa"]);
    let spis = sas.as_array().expect("a list").iter().map(|sa| figure(sa, "spi").to_string());
    let frames = succeed(python.args(spis));
    let mut sender = inside(&lab.wire(), "/usr/bin/python3");
    let sent = succeed(sender.arg(tests.join("send.py")).arg(&made).args(["wire", "10000"]));
    assert_eq!((frames.trim(), sent.trim()), ("20000", "20000"));
    assert!(until(Duration::from_secs(10), || {
        Counters::read(b).workers[0][0] >= before.workers[0][0] + 20000
    }));
    assert_eq!(lab.ping(Site::A, "10.2.0.2", 5), 5, "the gateway was harmed");
    let after = Counters::read(b);
    after.must_add_up();
    for name in ["unknown_spi", "ipv4_malformed", "ipv4_checksum", "esp_truncated", "auth_failed"] {
        assert!(after.of(name) > before.of(name), "no frame was dropped as {name}: {after:?}");
    }
    assert!(a.dataplane().is_some() && b.json(&["status"])["dataplane"]["restarts"] == 0);
    gateways.into_iter().for_each(Gateway::stop);
}
