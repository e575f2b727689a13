//! Lines of results enter; behind them leave lines that say what was to be reached, what was, and whether that is enough.

use std::io::Write;

use serde_json::{Value, json};

use super::measure::FEW;
use super::peers::BURST;

/// The measurements of a file.
struct Results {
    lines: Vec<Value>,
    targets: Vec<Value>,
}

/// Where a figure stands.
#[derive(Clone)]
struct Place<'a> {
    engine: &'a str,
    bits: usize,
    direction: &'a str,
    bytes: Value,
    sas: usize,
    pool: usize,
}

impl Results {
    /// Core cycles of the last such line: where a library was measured again without AVX-512, that is this one.
    fn cycles(&self, library: &str, at: &Place<'_>) -> Option<f64> {
        let cipher = format!("aes-{}-gcm", at.bits);
        let fits = |line: &&Value| {
            line["library"] == library
                && line["engine"] == at.engine
                && line["cipher"] == cipher.as_str()
                && line["direction"] == at.direction
                && line["bytes"] == at.bytes
                && line["sas"] == at.sas
                && line["pool"] == at.pool
        };
        self.lines.iter().rev().find(fits).and_then(|line| line["core_cycles"].as_f64())
    }

    /// At least so many times as fast as a peer.
    fn at_least(&mut self, what: &str, wanted: f64, ours: Option<f64>, theirs: Option<f64>) {
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            self.target(what, wanted, theirs / ours, theirs / ours >= wanted);
        }
    }

    /// At most so many times as long as with one SA.
    fn at_most(&mut self, what: &str, wanted: f64, many: Option<f64>, one: Option<f64>) {
        if let (Some(many), Some(one)) = (many, one) {
            self.target(what, wanted, many / one, many / one <= wanted);
        }
    }

    fn target(&mut self, what: &str, wanted: f64, reached: f64, met: bool) {
        let reached = (reached * 1000.0).round() / 1000.0;
        self.targets.push(json!({"target": what, "wanted": wanted, "reached": reached, "met": met}));
    }

    fn of(&mut self, bits: usize, direction: &str, bytes: &Value) {
        let what = format!("aes-{bits}-gcm, {bytes}, {direction}").replace('"', "");
        let one = Place { engine: "vaes", bits, direction, bytes: bytes.clone(), sas: 1, pool: BURST };
        let vaes = self.cycles("penstock", &one);
        let factor = match bytes.as_u64() {
            Some(64 | 256) => Some(2.0),
            Some(512) => Some(1.4),
            Some(1424) => Some(1.15),
            None => Some(1.25),
            _ => None,
        };
        if let Some(factor) = factor {
            let wanted = if bits == 128 { factor } else { (factor * 900.0_f64).round() / 1000.0 };
            let peer = self.cycles("libipsec-mb", &Place { engine: "vaes_avx512", ..one.clone() });
            self.at_least(
                &format!("vaes over libipsec-mb, {what}, one SA, pool {BURST}"),
                wanted,
                vaes,
                peer,
            );
        }
        let many = self.cycles("penstock", &Place { sas: 32, ..one.clone() });
        self.at_most(&format!("vaes, {what}, pool {BURST}: 32 SAs over one SA, at most"), 1.15, many, vaes);
        if bytes == 64 {
            let few = Place { pool: FEW, ..one.clone() };
            let many = self.cycles("penstock", &Place { sas: 10_000, ..few.clone() });
            let one = self.cycles("penstock", &few);
            let what = format!("vaes, {what}, pool {FEW}: 10,000 SAs over one SA, prefetched, at most");
            self.at_most(&what, if bits == 128 { 1.5 } else { 1.65 }, many, one);
        }
        let aesni = self.cycles("penstock", &Place { engine: "aesni", ..one.clone() });
        let peer = self.cycles("aws-lc-rs", &Place { engine: "AVX-512 masked", ..one });
        let what = format!("aesni over aws-lc-rs, AVX-512 masked, {what}, one SA, pool {BURST}");
        self.at_least(&what, 1.0, aesni, peer);
    }
}

/// Appends to a file of results what they reach.
pub fn append(path: &str) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut results = Results { lines, targets: Vec::new() };
    let sizes = [json!(64), json!(128), json!(256), json!(512), json!(1024), json!(1424), json!("imix")];
    for bits in [128, 256] {
        for bytes in &sizes {
            ["seal", "open"].into_iter().for_each(|direction| results.of(bits, direction, bytes));
        }
    }
    let missed = results.targets.iter().filter(|line| line["met"] == false).count();
    println!("{} targets, {missed} missed", results.targets.len());
    results.targets.iter().filter(|line| line["met"] == false).for_each(|line| println!("  {line}"));
    let mut out =
        std::fs::OpenOptions::new().append(true).open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    results.targets.iter().for_each(|line| writeln!(out, "{line}").expect("writing the targets"));
}
