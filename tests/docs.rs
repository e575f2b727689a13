//! Holds the figures in the documents equal to the code that they speak of.

use std::fs;
use std::path::Path;

use penstock_tables::layout::{StateLayout, TablesLayout};
use penstock_tables::losses::TunnelLosses;
use penstock_tables::replay::{InboundState, ring_words};
use penstock_tables::sequence::OutboundState;
use penstock_tables::{Capacity, InboundSa, KeyBlock, OutboundSa, Tunnel};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn memory_per_tunnel_is_as_documented() {
    let text = document("docs/architecture.md");
    let [tunnel, outbound, inbound, key] =
        [size_of::<Tunnel>(), size_of::<OutboundSa>(), size_of::<InboundSa>(), size_of::<KeyBlock>()];
    let (numbers, window) = (size_of::<OutboundState>(), size_of::<InboundState>());
    let losses = size_of::<TunnelLosses>();
    let ring = ring_words(1024) * 8;
    let mut lines = vec![
        format!(
            "| tunnel | `tables`: two slots of {tunnel}, two outbound SAs of {outbound} with keys of {key}; `state`: two of \
             {numbers}, two losses of {losses} | {} |",
            2 * (tunnel + outbound + key + numbers + losses)
        ),
        format!(
            "| inbound slot | `tables`: SA {inbound}, key {key}; `state`: {window} and a replay ring of {ring} (window \
             of 1024 packets) | {} |",
            inbound + key + window + ring
        ),
    ];
    for tunnels in [1024u32, 10_000, 100_000] {
        let capacity = Capacity { tunnels, replay_window: 1024, neighbours: 4096, fib_groups: 16384 };
        let (tables, state) = (TablesLayout::new(capacity).len, StateLayout::new(capacity).len);
        lines.push(format!("| {tunnels} | {tables} | {state} | {} |", (tables + state) / tunnels as usize));
    }
    for line in lines {
        assert!(text.contains(&line), "docs/architecture.md lacks: {line}");
    }
}

#[test]
fn every_reason_is_documented() {
    let text = document("docs/reasons.md");
    let row = |reason: &penstock_ike::Reason| format!("| `{}` | {} |", reason.code(), reason.text());
    let missing: Vec<String> =
        penstock_ike::Reason::ALL.iter().map(row).filter(|row| !text.contains(row)).collect();
    assert!(missing.is_empty(), "docs/reasons.md lacks:\n{}", missing.join("\n"));
    let (table, _) = text.split_once("has some codes besides").expect("the second table");
    let rows = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, penstock_ike::Reason::ALL.len(), "docs/reasons.md has rows of no reason");
}
