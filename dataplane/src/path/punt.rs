//! Hands frames to the kernel through the twins: lock-free rings to the thread that owns their file descriptors, so that a
//! worker makes no system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use penstock_tables::Verdict;

use super::Context;
use super::batch::{Meta, Origin};
use crate::port::Frame;
use crate::wire::ethernet;

/// A device of the kernel that stands for a port (TAP) or for a tunnel (TUN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Twin {
    /// Of the port with this index: whole Ethernet frames, untagged.
    Port(u8),
    /// Of the tunnel whose device has this number, a slot of it: IPv4 packets.
    Tunnel(u32),
}

/// Rings between the workers and the twins' thread.
#[derive(Debug)]
pub struct Twins<F> {
    /// Frames for the kernel.
    pub to_kernel: Arc<ArrayQueue<(Twin, F)>>,
    /// Frames of the kernel.
    pub from_kernel: Arc<ArrayQueue<(Twin, F)>>,
    /// One bit for each twin that is there.
    present: Arc<[AtomicU64]>,
}

impl<F> Clone for Twins<F> {
    fn clone(&self) -> Self {
        let Twins { to_kernel, from_kernel, present } = self;
        Twins { to_kernel: to_kernel.clone(), from_kernel: from_kernel.clone(), present: present.clone() }
    }
}

impl<F: Frame> Twins<F> {
    /// Rings of `capacity` frames each way, for ports and as many slots of `tunnels`; no twin is there yet.
    pub fn new(capacity: usize, tunnels: usize) -> Twins<F> {
        let words = (TUNNELS + tunnels).div_ceil(64);
        Twins {
            to_kernel: Arc::new(ArrayQueue::new(capacity)),
            from_kernel: Arc::new(ArrayQueue::new(capacity)),
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The twins' thread: whether this twin is there from now on.
    pub fn set_present(&self, twin: Twin, present: bool) {
        let (word, bit) = place(twin);
        match self.present.get(word) {
            Some(word) if present => word.fetch_or(bit, Ordering::Relaxed),
            Some(word) => word.fetch_and(!bit, Ordering::Relaxed),
            None => 0,
        };
    }

    /// Whether somebody will fetch frames for this twin.
    #[inline]
    pub fn is_present(&self, twin: Twin) -> bool {
        let (word, bit) = place(twin);
        self.present.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }
}

/// The bits of tunnels begin behind those of the ports.
const TUNNELS: usize = 256;

fn place(twin: Twin) -> (usize, u64) {
    let at = match twin {
        Twin::Port(port) => usize::from(port),
        Twin::Tunnel(slot) => TUNNELS + slot as usize,
    };
    (at / 64, 1 << (at % 64))
}

/// Hands one frame over.
#[inline]
pub fn to_kernel<F: Frame>(twins: &Twins<F>, twin: Twin, frame: F, cx: &mut Context<'_>) {
    if !twins.is_present(twin) {
        return cx.end(frame, Verdict::PuntNoTwin);
    }
    match twins.to_kernel.push((twin, frame)) {
        Ok(()) => cx.tally.count(Verdict::Punted, 1),
        Err((_, frame)) => cx.end(frame, Verdict::PuntFull),
    }
}

/// Hands over a packet for one of the gateway's own addresses: a decrypted one to its tunnel's TUN, or, where the tunnel
/// has none, to the twin of the port that ESP came in by, as if it had come in there.
pub fn decrypted<F: Frame>(twins: &Twins<F>, mut frame: F, meta: Meta, cx: &mut Context<'_>) {
    if let Origin::Tunnel(slot) = meta.origin
        && let Some(tunnel) = cx.tables.tunnel(slot).filter(|tunnel| tunnel.has_interface())
    {
        frame.trim_front(usize::from(meta.l3));
        return to_kernel(twins, Twin::Tunnel(tunnel.device()), frame, cx);
    }
    let Some(facts) = cx.ports.get(usize::from(meta.port)) else { return cx.end(frame, Verdict::PuntNoTwin) };
    let mac = facts.mac;
    frame.trim_front(usize::from(meta.l3));
    match frame.prepend(ethernet::HEADER) {
        Some(header) => ethernet::write(header, mac, SENDER, 0),
        None => return cx.end(frame, Verdict::NoHeadroom),
    }
    to_kernel(twins, Twin::Port(meta.port), frame, cx);
}

/// Locally administered source address of frames that no station sent.
const SENDER: [u8; 6] = [0x02, 0x50, 0x45, 0x4e, 0x53, 0x54];
