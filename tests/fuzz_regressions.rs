//! Replays the fuzzers' corpus and every input that ever crashed one (`fuzz/corpus`, `fuzz/crashes`), without a fuzzer.
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run TARGET` in the root folder goes on from there.

use std::path::Path;

use penstock_suite::fuzzing::{self, Decap};

/// Gives every kept input of a target to `run`. An empty corpus is a mistake of whoever removed it.
fn replay(target: &str, mut run: impl FnMut(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut count = 0;
    for kind in ["corpus", "crashes"] {
        let folder = fuzz.join(kind).join(target);
        for entry in folder.read_dir().into_iter().flatten() {
            let path = entry.unwrap().path();
            let octets = std::fs::read(&path).unwrap();
            // The name is printed where the input makes a panic.
            println!("{}", path.display());
            run(&octets);
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} inputs for {target}");
}

#[test]
fn parse() {
    replay("parse", fuzzing::parse);
}

#[test]
fn decap() {
    let mut gateway = Decap::default();
    replay("decap", |octets| gateway.feed(octets));
}

#[test]
fn config() {
    replay("config", fuzzing::config);
}

#[test]
fn ike_message() {
    replay("ike_message", fuzzing::ike_message);
}
