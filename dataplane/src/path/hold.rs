//! Packets whose next hop is not known yet wait here, a few of each and for a second at most, until ARP has its answer: the
//! first packet of a flow is not lost. Packets that miss nothing but the MAC address enter, before they are sealed (so that none
//! wastes a sequence number); they leave by the way that they would go if they came in now. RFC 1122 section 2.3.2.2 asks for it.
//!
//! **Bounds.** At most [`OF_ONE`] packets of one next hop and [`ALL`] of all wait, the latter shared by the workers; what comes
//! then is dropped as `no_neighbour`, and so is what waited in vain. No memory is taken after the start.
//!
//! **Counters.** As in `spread`, a frame counts as received when it has its verdict: who waits is not counted, so `received = sent +
//! punted + drops` holds at any time.
//!
//! **Order.** Packets of one next hop leave in their order. Those that wait are looked at ten thousand times a second, so
//! one that comes within the 100 microseconds after the answer may overtake them.

use penstock_tables::adjacency::Unresolved;
use penstock_tables::events::Event;
use penstock_tables::{Hop, Verdict};

use super::batch::{Batch, Meta, Origin, Picks};
use super::exit::Leaving;
use super::punt::Twins;
use super::spread::{self, Spread};
use super::{Context, WorkerPort, encap, route};
use crate::port::{BURST, Frame, Port};

/// Packets of one next hop that wait at a worker.
pub const OF_ONE: usize = 4;
/// Packets that wait at all workers together.
pub const ALL: usize = 256;
/// They are looked at so often: parts of a second.
const LOOKS_PER_SECOND: u64 = 10_000;

struct Waiting<F> {
    frame: F,
    meta: Meta,
    next: Unresolved,
    /// Generation of the tunnel that it is for, of a packet of the kernel.
    tunnel: u32,
    since: u64,
}

/// The packets that wait at one worker, oldest first.
pub struct Held<F> {
    waiting: Vec<Waiting<F>>,
    room: usize,
    /// When they are looked at next; never, where there are none.
    due: u64,
    second: u64,
    /// Whose turn it is to be asked for again.
    turn: usize,
}

impl<F: Frame> Held<F> {
    /// The part of one of `workers` workers. `tsc_hz` is the TSC's frequency.
    pub fn new(workers: usize, tsc_hz: u64) -> Held<F> {
        let room = (ALL / workers.max(1)).max(OF_ONE);
        Held { waiting: Vec::with_capacity(room), room, due: u64::MAX, second: tsc_hz, turn: 0 }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether it is time to look at those that wait.
    #[inline(always)]
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    fn look_later(&mut self, now: u64) {
        self.due = if self.waiting.is_empty() { u64::MAX } else { now + self.second / LOOKS_PER_SECOND };
    }

    fn has_room_for(&self, next: Unresolved) -> bool {
        let same =
            self.waiting.iter().filter(|it| (it.next.port, it.next.address) == (next.port, next.address));
        self.waiting.len() < self.room && same.count() < OF_ONE
    }
}

/// The next hop that a packet waits for; `None` where it misses something else, or nothing any more.
fn awaited(meta: &Meta, cx: &Context<'_>) -> Option<Unresolved> {
    let index = match meta.route.hop() {
        Hop::Adjacency(index) => index,
        Hop::Glean(port) => {
            return Some(Unresolved { port: port as u8, address: meta.ip.destination() });
        }
        Hop::Tunnel(slot) => cx.tables.tunnel(slot)?.adjacency()?,
        _ => return None,
    };
    cx.tables.adjacency(index).err()
}

/// Generation of the tunnel that a packet is for; 0 where there is none.
fn generation(meta: &Meta, cx: &Context<'_>) -> u32 {
    let tunnel = meta.route.tunnel().and_then(|slot| cx.tables.tunnel(slot));
    tunnel.map_or(0, penstock_tables::Tunnel::generation)
}

/// Takes in what a burst left in its batch since only the neighbour is missing.
#[inline(always)]
pub fn collect<F: Frame>(batch: &mut Batch<F>, held: &mut Held<F>, cx: &mut Context<'_>) {
    if !batch.waiting().is_empty() {
        take_in(batch, held, cx);
    }
}

#[cold]
#[inline(never)]
fn take_in<F: Frame>(batch: &mut Batch<F>, held: &mut Held<F>, cx: &mut Context<'_>) {
    for index in batch.take_waiting() {
        let meta = *batch.meta(index);
        // Where the answer came this moment, the next look sends it.
        let next = awaited(&meta, cx).unwrap_or(Unresolved { port: u8::MAX, address: 0 });
        if !held.has_room_for(next) {
            cx.lose(batch, index, Verdict::NoNeighbour);
            continue;
        }
        let Some(frame) = batch.take(index) else { continue };
        held.waiting.push(Waiting { frame, meta, next, tunnel: generation(&meta, cx), since: cx.now });
        cx.tally.received -= 1;
    }
    if held.due == u64::MAX {
        held.look_later(cx.now);
    }
}

/// Sends what waits no longer on its way, ends what waited for a second. Returns how many packets that were.
#[cold]
#[inline(never)]
pub fn release<P: Port>(
    held: &mut Held<P::Frame>,
    batch: &mut Box<Batch<P::Frame>>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    spread: &mut Spread<P::Frame>,
    cx: &mut Context<'_>,
) -> usize {
    let (mut own, mut others, mut ended) = (Picks::default(), Picks::default(), 0);
    let mut count = 0;
    let mut at = 0;
    while at < held.waiting.len() && count < BURST {
        let it = &mut held.waiting[at];
        if it.meta.origin != Origin::Kernel {
            it.meta.route = cx.tables.find(it.meta.ip.destination());
        }
        let expired = cx.now.saturating_sub(it.since) >= held.second;
        if !expired && awaited(&it.meta, cx).is_some() {
            at += 1;
            continue;
        }
        let Waiting { frame, meta, tunnel, .. } = held.waiting.remove(at);
        cx.tally.received += 1;
        ended += 1;
        if let Some(frame) = batch.put(count, frame, meta) {
            cx.end(frame, Verdict::NoNeighbour);
            continue;
        }
        // A slot that was given to another tunnel meanwhile is not the way that the kernel meant.
        if meta.origin == Origin::Kernel && generation(&meta, cx) != tunnel {
            cx.end_of(batch, count, Verdict::NoSa);
        } else if awaited(&meta, cx).is_some() {
            cx.lose(batch, count, Verdict::NoNeighbour);
        } else {
            let picks = if meta.origin == Origin::Kernel { &mut own } else { &mut others };
            picks.insert(count);
            count += 1;
        }
    }
    let mut leaving = Leaving::new();
    for index in own {
        if let Some(slot) = batch.meta(index).route.tunnel() {
            encap::admit(index, slot, &mut leaving, batch, cx);
        }
    }
    route::forward(others, Picks::default(), batch, ports, twins, &mut leaving, cx);
    // Whoever had its neighbour a moment ago and has not now does not wait again.
    for index in batch.take_waiting() {
        cx.lose(batch, index, Verdict::NoNeighbour);
    }
    spread::seal(&leaving, spread.room(), batch, ports, twins, spread, cx);
    held.ask_again(cx);
    held.look_later(cx.now);
    ended
}

impl<F: Frame> Held<F> {
    /// Tells control of one of the neighbours that are waited for: a hint that was lost comes again.
    fn ask_again(&mut self, cx: &Context<'_>) {
        self.turn = self.turn.wrapping_add(1);
        let it = self.waiting.get(self.turn % self.waiting.len().max(1));
        if let Some(it) = it.filter(|it| it.next.port != u8::MAX) {
            cx.events.push(Event::NoNeighbour { port: u32::from(it.next.port), address: it.next.address });
        }
    }
}
