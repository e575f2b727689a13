//! The publication protocol under loom: no reader ever uses a body that the writer is changing.
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p penstock-tables --test loom --release`.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use penstock_tables::quiescence::{self, Grace};
use penstock_tables::slot::SlotHead;

struct Table {
    head: SlotHead,
    /// Whether something leads to the slot, as a tunnel does to its SA.
    link: AtomicU64,
    body: UnsafeCell<u32>,
    counter: AtomicU64,
}

// SAFETY: loom's own cell checks every access; the protocol under test is what makes them exclusive.
#[allow(unsafe_code)]
unsafe impl Sync for Table {}

/// One pass of a worker: a quiescent point, then a look whether something leads to the slot, and a read of the body if it was
/// so in the pass before: packets may wait across one point. What was retired since the look may still be used.
fn pass(table: &Table, held: &mut Option<u32>) -> Option<u32> {
    quiescence::step(&table.counter);
    // SAFETY: it was live after the point before this one, so the writer waits for the next; loom fails the test otherwise.
    #[allow(unsafe_code)]
    let read = held.map(|_| table.body.with(|body| unsafe { *body }));
    *held = (table.link.load(Ordering::Acquire) == 1).then(|| table.head.linked()).flatten();
    read
}

#[allow(unsafe_code)]
fn fill(table: &Table, value: u32) {
    // SAFETY: the slot is Filling: no reader looks; loom fails the test where one does.
    table.body.with_mut(|body| unsafe { *body = value });
}

#[test]
fn a_slot_is_reused_only_after_every_worker_passed() {
    loom::model(|| {
        let table = Arc::new(Table {
            head: SlotHead::new(),
            link: AtomicU64::new(1),
            body: UnsafeCell::new(0),
            counter: AtomicU64::new(0),
        });
        table.head.begin();
        fill(&table, 1);
        table.head.publish(7);
        let worker = {
            let table = table.clone();
            thread::spawn(move || {
                let mut held = None;
                for _ in 0..3 {
                    assert!(matches!(pass(&table, &mut held), None | Some(1 | 2)));
                }
            })
        };
        table.link.store(0, Ordering::Release);
        table.head.retire();
        let grace = Grace::start(1, std::iter::once(&table.counter));
        if grace.over(1, std::iter::once(&table.counter)) {
            fill(&table, 0);
            table.head.free();
            table.head.begin();
            fill(&table, 2);
            table.head.publish(8);
            table.link.store(1, Ordering::Release);
        }
        worker.join().unwrap();
    });
}
