//! Short benchmark runs of `penstock-testpmd`: what comes out is counted, never timed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use penstock_testpmd::KEYS;
use serde_json::Value;

/// Runs it on ordinary pages, with `eal` before and `options` after the `--`.
fn run(eal: &[&str], options: &[&str]) -> Output {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("penstock-bench-test-{}-{number}", std::process::id());
    Command::new(env!("CARGO_BIN_EXE_penstock-testpmd"))
        .args([
            "--no-pci",
            "--no-huge",
            "-m",
            "128",
            "--no-shconf",
            "--no-telemetry",
            "--file-prefix",
            &prefix,
        ])
        .args(eal)
        .arg("--")
        .args(options)
        .output()
        .expect("it starts")
}

/// The JSON that it printed; it must have ended well.
fn lines(eal: &[&str], options: &[&str]) -> Vec<Value> {
    let output = run(eal, &[&["--json"], options].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{eal:?} {options:?}: {err}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn refusal(eal: &[&str], options: &[&str]) -> String {
    let output = run(eal, options);
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn count(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap_or_else(|| panic!("{key} in {line}"))
}

/// Two lcores, on one CPU where there is no second.
fn two_lcores() -> &'static str {
    if std::thread::available_parallelism().map_or(1, usize::from) > 1 { "0@0,1@1" } else { "0@0,1@0" }
}

#[test]
fn every_packet_that_enters_comes_out() {
    let options = [
        "--forward-mode",
        "encap,decap,loop,io,mac",
        "--sizes",
        "64,imix,1518",
        "--sas",
        "1,3",
        "--duration",
        "0.02",
    ];
    let lines = lines(&["--lcores", "0@0"], &options);
    assert_eq!(lines.len(), 5 * 3 * 2);
    for line in &lines {
        assert!(count(line, "packets") >= 64 * 64, "{line}");
        assert_eq!(count(line, "lost"), 0, "{line}");
        let seals = ["encap", "decap", "loop"].contains(&line["mode"].as_str().unwrap());
        for key in KEYS {
            assert_eq!(line[key].is_null(), !seals && ["cipher", "engine"].contains(&key), "{key} in {line}");
        }
    }
    let of =
        |key: &str| lines.iter().map(|line| line[key].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(of("inner_bytes").into_iter().collect::<Vec<_>>(), ["\"imix\"", "1518", "64"]);
    assert_eq!(of("sas").into_iter().collect::<Vec<_>>(), ["1", "3"]);
}

#[test]
fn options_of_an_sa_and_of_the_report_are_taken() {
    let options = [
        "--forward-mode",
        "loop",
        "--sizes",
        "100",
        "--udp",
        "--esn",
        "--cipher",
        "aes256gcm16",
        "--burst",
        "7",
    ];
    let lines = lines(
        &["--lcores", "0@0"],
        &[&options[..], &["--replay-window", "64", "--stages", "--duration", "0.02"]].concat(),
    );
    let line = &lines[0];
    assert_eq!((count(line, "lost"), count(line, "burst"), count(line, "packets") % 7), (0, 7, 0));
    assert_eq!((line["cipher"].as_str(), line["udp"].as_bool()), (Some("aes256gcm16"), Some(true)));
    let stages = line["stages"].as_object().unwrap();
    assert_eq!(
        stages.keys().collect::<Vec<_>>(),
        ["rx", "classify", "decap", "route", "encap", "tx", "crypto"]
    );
}

#[test]
fn workers_share_one_sa_and_lose_nothing() {
    let options = ["--nb-cores", "2", "--forward-mode", "encap", "--sizes", "64", "--duration", "0.05"];
    let line = &lines(&["--lcores", two_lcores()], &options)[0];
    assert_eq!((count(line, "workers"), count(line, "sas"), count(line, "lost")), (2, 1, 0));
    assert!(count(line, "packets") >= 2 * 64 * 64);
}

#[test]
fn workers_with_tunnels_of_their_own_say_so() {
    let options =
        ["--nb-cores", "2", "--own-sas", "--sas", "2,5", "--forward-mode", "encap,decap", "--sizes", "64"];
    for line in lines(&["--lcores", two_lcores()], &[&options[..], &["--duration", "0.05"]].concat()) {
        assert_eq!((count(&line, "workers"), count(&line, "lost"), &line["own_sas"]), (2, 0, &true.into()));
        assert!(count(&line, "packets") >= 2 * 64 * 64);
    }
}

#[test]
fn updates_of_the_tables_lose_nothing() {
    let options = ["--updates", "500", "--forward-mode", "encap", "--sizes", "64", "--duration", "0.2"];
    let line = &lines(&["--lcores", two_lcores()], &options)[0];
    assert!(count(line, "updates") >= 1, "{line}");
    assert_eq!(count(line, "lost"), 0);
    assert!(line["poll_gap_us"]["max"].as_f64().unwrap() > 0.0);
}

/// 100 frames to the benchmark's gateway, of 64 octets of IPv4 each.
fn capture(path: &Path) {
    let frame: Vec<u8> = [
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0][..],
        &[0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 17, 0x20, 0xab, 10, 0, 0, 2, 16, 0, 0, 1],
        &[0x13, 0x88, 0x13, 0x89, 0, 44, 0, 0],
        &[0x5a; 36],
    ]
    .concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1]);
    for _ in 0..100 {
        file.extend(words(&[0, 0, frame.len() as u32, frame.len() as u32]));
        file.extend(&frame);
    }
    fs::write(path, file).expect("a capture");
}

fn packets_in(path: &Path) -> usize {
    let file = fs::read(path).expect("a capture");
    let (mut at, mut packets) = (24, 0);
    while let Some(header) = file.get(at..at + 16) {
        at += 16 + u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        packets += 1;
    }
    packets
}

#[test]
fn captures_are_sealed_and_opened_round_and_round() {
    let folder = std::env::temp_dir().join(format!("penstock-bench-test-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (plain, sealed) = (folder.join("plain.pcap"), folder.join("esp.pcap"));
    capture(&plain);
    let rx = format!("net_pcap0,rx_pcap={}", plain.display());
    let tx = format!("net_pcap1,tx_pcap={}", sealed.display());
    lines(
        &["--lcores", "0@0", "--vdev", &rx, "--vdev", &tx],
        &["--forward-mode", "encap", "--duration", "0.1"],
    );
    assert_eq!(packets_in(&sealed), 100);
    let circle = |file: &Path| format!("net_pcap0,rx_pcap={},infinite_rx=1", file.display());
    for (mode, eal) in [
        ("encap", [circle(&plain), "net_null0,no-rx=1".into()]),
        ("decap", ["net_null0,no-rx=1".into(), circle(&sealed)]),
        ("loop", [circle(&plain), "net_null0,no-rx=1".into()]),
        ("mac", [circle(&plain), "net_null0,no-rx=1".into()]),
    ] {
        let eal = ["--lcores", "0@0", "--vdev", &eal[0], "--vdev", &eal[1]];
        let line = &lines(&eal, &["--forward-mode", mode, "--duration", "1"])[0];
        // More than the capture has: with its window at work, nothing is taken for a replay.
        assert!(count(line, "packets") > 200, "{line}");
        assert_eq!(count(line, "lost"), 0, "{line}");
        assert!(line["harness"].as_str().unwrap().contains("net_pcap"));
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_tester_searches_and_tells_latencies() {
    let socket = std::env::temp_dir().join(format!("penstock-bench-test-{}.sock", std::process::id()));
    let end = |number: u32, role| {
        let socket = socket.display();
        format!("net_memif{number},role={role},id={},socket={socket},socket-abstract=no", number % 2)
    };
    let ends = [end(0, "server"), end(1, "server"), end(2, "client"), end(3, "client")];
    let mut eal = vec!["--lcores", two_lcores()];
    ends.iter().for_each(|end| eal.extend(["--vdev", end]));
    for mode in ["encap", "loop"] {
        let line =
            &lines(&eal, &["--forward-mode", mode, "--rfc2544", "--sizes", "64", "--duration", "0.1"])[0];
        assert!(line["flat_out_mpps"].as_f64() > Some(0.0), "{line}");
        assert!(count(line, "trials") > 4);
        // A machine that does much else finds no rate without a loss; where there is one, latencies follow.
        if line["mpps"].as_f64() > Some(0.0) {
            assert!(line["latency_us_50"]["p50"].as_f64() > Some(0.0), "{line}");
        }
    }
    drop(fs::remove_file(&socket));
}

#[test]
fn what_cannot_be_run_is_refused() {
    let one = ["--lcores", "0@0"];
    assert!(refusal(&one, &["--nb-cores", "2"]).contains("-l 0-1"));
    assert!(refusal(&one, &["--updates", "5"]).contains("needs 2 lcores"));
    assert!(refusal(&one, &["--engine", "turbo"]).contains("choose one of"));
    assert!(refusal(&one, &["--forward-mode", "bridge"]).contains("possible values"));
    assert!(refusal(&one, &["--rfc2544"]).contains("four ports"));
    let device = ["--lcores", "0@0", "--vdev", "net_pcap0,rx_pcap=/nowhere.pcap"];
    assert!(!refusal(&device, &["--forward-mode", "io"]).is_empty());
}
