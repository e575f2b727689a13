//! The publication protocol under loom: no reader ever uses a body that the writer is changing.
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p penstock-tables --test loom --release`.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use penstock_tables::quiescence::{self, Grace};
use penstock_tables::slot::SlotHead;

struct Table {
    head: SlotHead,
    body: UnsafeCell<u32>,
    counter: AtomicU64,
}

// SAFETY: loom's own cell checks every access; the protocol under test is what makes them exclusive.
#[allow(unsafe_code)]
unsafe impl Sync for Table {}

/// One pass of a worker: a quiescent point, then a read of the body if the slot is live.
fn pass(table: &Table) -> Option<u32> {
    quiescence::step(&table.counter);
    // SAFETY: live, so the writer waits for our next quiescent point; loom fails the test where that is not so.
    #[allow(unsafe_code)]
    table.head.live().map(|_| table.body.with(|body| unsafe { *body }))
}

#[allow(unsafe_code)]
fn fill(table: &Table, value: u32) {
    // SAFETY: the slot is Filling: no reader looks; loom fails the test where one does.
    table.body.with_mut(|body| unsafe { *body = value });
}

#[test]
fn a_slot_is_reused_only_after_every_worker_passed() {
    loom::model(|| {
        let table =
            Arc::new(Table { head: SlotHead::new(), body: UnsafeCell::new(0), counter: AtomicU64::new(0) });
        table.head.begin();
        fill(&table, 1);
        table.head.publish(7);
        let worker = {
            let table = table.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    assert!(matches!(pass(&table), None | Some(1 | 2)));
                }
            })
        };
        table.head.retire();
        let grace = Grace::start(1, std::iter::once(&table.counter));
        if grace.over(1, std::iter::once(&table.counter)) {
            fill(&table, 0);
            table.head.free();
            table.head.begin();
            fill(&table, 2);
            table.head.publish(8);
        }
        worker.join().unwrap();
    });
}
