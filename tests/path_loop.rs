//! What the worker's loop does besides moving packets: it allocates nothing and calls the kernel for nothing, whatever comes
//! in. Allocations are counted by the allocator of this program; system calls are forbidden by a seccomp filter that kills
//! the process at the first one. Both are shown to notice what they look for.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_dataplane::crypto::{self, Engine};
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::port::{BURST, Frame};
use penstock_dataplane::worker::{Idle, spin};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::frame;
use penstock_tables::Verdict;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    if COUNTING.get() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
}

// SAFETY: hands everything on to the system's allocator; the cells are of plain values and never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and releases of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    ALLOCATIONS.set(0);
    COUNTING.set(true);
    work();
    COUNTING.set(false);
    ALLOCATIONS.get()
}

/// Two gateways with a tunnel, and frames for them: good ones of several sizes, and bad ones of many kinds.
struct Pair {
    near: Gateway,
    far: Gateway,
    frames: Vec<Vec<u8>>,
}

impl Pair {
    fn new(engine: &'static dyn Engine, sa: &Sa) -> Pair {
        let end = |number, peer| {
            let mut gateway = Gateway::with_engine(Site::new(number), engine);
            let tunnel = gateway.tunnel(peer);
            (gateway, tunnel)
        };
        let ((mut near, to_far), (mut far, to_near)) = (end(1, 2), end(2, 1));
        near.seal_with(to_far, 2, sa, Limits::default());
        far.open_with(to_near, sa, 1024);
        let good = |octets| frame(mac(1, 0), mac(1, 2), None, &between(1, 2, octets).octets());
        let mut frames: Vec<Vec<u8>> = (60..1400).step_by(97).map(good).collect();
        let whole = good(300);
        frames.push(whole[..10].to_vec());
        frames.extend((12..34).map(|at| {
            let mut wrong = whole.clone();
            wrong[at] ^= 0x41;
            wrong
        }));
        Pair { near, far, frames }
    }

    /// A burst through both: some arrive twice, some are changed on the wire.
    fn burst(&mut self, round: usize) {
        for at in 0..BURST {
            let frame = &self.frames[(round * 7 + at) % self.frames.len()];
            self.near.worker.ports[PRIVATE].queue.inject(frame);
        }
        self.near.worker.run(tsc());
        let Pair { near, far, .. } = self;
        for (at, mut frame) in near.worker.ports[PUBLIC].queue.drain_sent().enumerate() {
            let queue = &mut far.worker.ports[PUBLIC].queue;
            if at % 5 == 0 {
                queue.inject(frame.data());
            }
            if at % 11 == 0
                && let Some(octet) = frame.data_mut().last_mut()
            {
                *octet ^= 1;
            }
            queue.inject_frame(frame);
        }
        far.worker.run(tsc());
        for gateway in [near, far] {
            gateway.worker.ports.iter_mut().for_each(|port| drop(port.queue.drain_sent()));
            while gateway.worker.twins.to_kernel.pop().is_some() {}
        }
    }

    /// The worker's own loop, as it stands in production, over empty queues.
    fn spin(&mut self, loops: u64) {
        let (stop, left) = (AtomicBool::new(false), Cell::new(loops));
        spin(&mut self.near.worker, Idle::Poll, &stop, 1_000_000, || {
            left.set(left.get().saturating_sub(1));
            stop.store(left.get() == 0, Ordering::Relaxed);
            tsc()
        });
    }

    fn work(&mut self) {
        (0..200).for_each(|round| self.burst(round));
        self.spin(10_000);
    }

    /// What was worked on was what was meant: packets of all kinds went through, and every one is counted.
    fn check(&self) {
        for gateway in [&self.near, &self.far] {
            let tally = &gateway.worker.tally;
            assert_eq!(tally.received, tally.ended());
        }
        let (near, far) = (&self.near.worker.tally, &self.far.worker.tally);
        assert!(near.of(Verdict::Sent) > 1000 && far.of(Verdict::Sent) > 1000);
        assert!(near.of(Verdict::Ipv4Checksum) > 0 && near.of(Verdict::EthernetRunt) > 0);
        assert!(far.of(Verdict::Replayed) > 0 && far.of(Verdict::AuthFailed) > 0);
    }
}

fn pairs() -> Vec<Pair> {
    let engines = crypto::names().into_iter().filter_map(|name| crypto::select(Some(name)).ok());
    let sas = [sa_between(1, 2), Sa { esn: true, udp: true, ..sa_between(1, 2) }.with_aes256()];
    engines.flat_map(|engine| sas.iter().map(move |sa| Pair::new(engine, sa)).collect::<Vec<_>>()).collect()
}

#[test]
fn the_loop_allocates_nothing() {
    assert_eq!(allocations(|| drop(black_box(Box::new(7)))), 2, "the count counts");
    for mut pair in pairs() {
        assert_eq!(allocations(|| pair.work()), 0);
        pair.check();
    }
}

/// In a process of its own: says what to do there.
const ROLE: &str = "PENSTOCK_PATH_LOOP";

#[test]
fn the_loop_makes_no_system_call() {
    let child = |role: &str| -> ExitStatus {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "in_a_process_without_system_calls"]).env(ROLE, role);
        test.status().unwrap()
    };
    assert_eq!(child("calls").signal(), Some(libc::SIGSYS), "the filter notices a call");
    assert_eq!(child("works").code(), Some(0), "a system call in the loop");
}

#[test]
fn in_a_process_without_system_calls() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut pairs = pairs();
    // What a first time needs, it may have: pages of the stack, for one, are no calls.
    forbid_system_calls();
    if role == "calls" {
        // SAFETY: asks for the process's number.
        unsafe { libc::getppid() };
    }
    pairs.iter_mut().for_each(Pair::work);
    // SAFETY: ends the process at once, which is all that is still allowed.
    unsafe { libc::_exit(0) }
}

/// From now on every system call of this thread kills the process, but for its end.
fn forbid_system_calls() {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word of what the filter sees.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_exit_group as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the kernel has copied them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}
