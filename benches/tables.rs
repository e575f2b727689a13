//! What each packet costs in the tables, by criterion: the longest prefix match and the replay window, hot and spread wide.
//! `cargo bench --bench tables`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use penstock_suite::memory::*;
use penstock_suite::packets::ip;
use penstock_tables::{Hop, Prefix};

/// Lookups, or packets, of one measured step.
const STEP: u64 = 64;

/// A step of a full-period generator: the same sequence in every run.
fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 32) as u32
}

fn routes(bench: &mut Criterion) {
    let mut gateway = joined().gateway;
    for third in 0..=50u8 {
        gateway.routes.insert(Prefix::new(ip(10, 9, third, 0), 24), Hop::Tunnel(0));
    }
    gateway.writer.sync_routes(&gateway.routes).unwrap();
    let tables = &gateway.worker.tables;
    let mut group = bench.benchmark_group("longest prefix match");
    group.throughput(Throughput::Elements(STEP));
    let places: [(&str, u32, u32); 3] = [
        ("one tunnel's /16", ip(10, 2, 0, 0), 0xffff),
        ("51 /24 in a group", ip(10, 9, 0, 0), 0xffff),
        ("all addresses", 0, u32::MAX),
    ];
    for (name, base, mask) in places {
        let mut state = 1;
        group.bench_function(name, |bench| {
            bench.iter(|| {
                for _ in 0..STEP {
                    black_box(tables.route(base | next(&mut state) & mask));
                }
            });
        });
    }
    group.finish();
}

fn window(bench: &mut Criterion) {
    let mut gateway = joined().gateway;
    let sa = sa_between(2, 9);
    let slot = gateway.open_with(0, &sa, 1024);
    let inbound = gateway.worker.tables.inbound(slot);
    let mut group = bench.benchmark_group("replay window of 1024");
    group.throughput(Throughput::Elements(STEP));
    let mut number = 0;
    for (name, swap) in [("in order", 0), ("neighbours swapped", 1), ("reversed by 64", 63)] {
        group.bench_function(name, |bench| {
            let fresh = || {
                number += STEP;
                number
            };
            let step = |first: u64| {
                let window = gateway.worker.state.window(slot, inbound);
                for at in 0..STEP {
                    let number = first + (at ^ swap);
                    let full = window.extend(number as u32);
                    black_box(window.check(full).and_then(|()| window.mark(full)).is_ok());
                }
            };
            bench.iter_batched(fresh, step, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, routes, window);
criterion_main!(benches);
