//! Threads of a benchmark: DPDK's lcores enter, work runs on the last of them, one thread each, all beginning at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::Failure;
use penstock_dataplane::dpdk::Eal;

/// What the threads of a run have in common.
pub struct Crew {
    workers: usize,
    arrived: AtomicUsize,
    pinned: AtomicUsize,
    stop: AtomicBool,
}

impl Crew {
    /// Waits until every worker is here, or the run is over.
    pub fn meet(&self) {
        let mine = self.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        let all = mine.next_multiple_of(self.workers);
        while self.arrived.load(Ordering::Acquire) < all && !self.stopped() {
            std::hint::spin_loop();
        }
    }

    /// Whether the run is over.
    #[inline(always)]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The flag behind [`Crew::stopped`].
    pub fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Ends the run.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }
}

/// Runs `work` for each worker on a CPU of its own and `beside` on this thread meanwhile; returns what they return.
///
/// # Errors
/// Where there are too few lcores, where a thread cannot be pinned, and what the work says.
pub fn run<T: Send, B>(
    eal: &Eal,
    workers: usize,
    beside_cpu: bool,
    work: impl Fn(usize, &Crew) -> Result<T, Failure> + Sync,
    beside: impl FnOnce(&Crew) -> Result<B, Failure>,
) -> Result<(Vec<T>, B), Failure> {
    let cpus = eal.cpus();
    let needed = workers + usize::from(beside_cpu);
    if cpus.len() < needed {
        let last = needed - 1;
        return Err(format!(
            "this needs {needed} lcores and EAL has {}: give EAL -l 0-{last}, or --lcores for other CPUs",
            cpus.len()
        )
        .into());
    }
    // The main lcore comes first and works only where all do.
    let own = &cpus[cpus.len() - workers..];
    let crew = Crew {
        workers,
        arrived: AtomicUsize::new(0),
        pinned: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let (work, crew) = (&work, &crew);
        let threads: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(index, cpu)| {
                scope.spawn(move || {
                    // Nobody waits for a worker that failed.
                    let over = StopAtEnd(crew, Cell::new(true));
                    let result = on_cpu(eal, *cpu, || {
                        crew.pinned.fetch_add(1, Ordering::Release);
                        work(index, crew)
                    });
                    over.1.set(result.is_err());
                    result
                })
            })
            .collect();
        let result = {
            // Also where it panics: workers would wait for ever.
            let over = StopAtEnd(crew, Cell::new(true));
            // A thread begins on our CPU: with real-time priority it would never leave it once we are busy.
            while crew.pinned.load(Ordering::Acquire) < workers && !crew.stopped() {
                thread::sleep(Duration::from_millis(1));
            }
            let result = beside(crew);
            over.1.set(result.is_err());
            result
        };
        let results: Result<Vec<T>, Failure> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a worker died of a defect; please report it")?)
            .collect();
        Ok((results?, result?))
    })
}

/// Stops the crew when it goes, unless told otherwise.
struct StopAtEnd<'c>(&'c Crew, Cell<bool>);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        if self.1.get() {
            self.0.stop();
        }
    }
}

fn on_cpu<T>(eal: &Eal, cpu: usize, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let _registered = eal.register_thread()?;
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Err(format!("a worker cannot be pinned to CPU {cpu}").into());
    }
    work()
}
