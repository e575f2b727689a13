//! One tunnel on all cores: a worker that receives more than it can work on hands whole bursts to the others and takes them
//! back in order. What enters are bursts as they arrived; what leaves, leaves by the worker that received it.
//!
//! ```text
//!              .--> helper: classify, open, unwrap ----.
//!   receiver --+--> helper: write headers, seal ------>+--> receiver: mark, route, send
//!              '--> itself, where every helper is busy -'
//! ```
//!
//! **Order.** The receiver keeps its parcels in a queue in the order of their arrival and ends them in that order, whoever worked
//! on them. Sequence numbers are reserved before a parcel is handed over, replay windows are checked and marked after it came
//! back (RFC 4303 sections 3.3.3 and 3.4.3), both by the receiver and in order. So what one worker received is not reordered
//! at all: on the wire the numbers of an SA ascend one by one, and a window of 64 packets drops nothing, on either side.
//! Between workers that receive packets of one SA at the same time nothing is promised; where order matters more than
//! several receive queues, one worker receives everything (`Role::receiver`), or every worker has an SA of its own (RFC 9611).
//!
//! **Bounds.** At most [`PARCELS`] bursts wait in one receiver, at most [`DEPTH`] of them with one helper. Where none is spare, the
//! receiver leaves frames in its queues until the oldest parcel is back. A burst below [`HAND_MIN`] frames is not worth it and
//! stays with the receiver. A receiver that is not loaded hands nothing over and keeps no queue.
//!
//! **Counters.** A frame counts as received by the worker that gives it its verdict, so `received = sent + punted + drops` holds for
//! every worker at every time; frames on their way between workers count when they are back. The notes `handed`, `returned`
//! and `helped` tell how many went which way: `handed - returned` are out now.
//!
//! **Tables.** A parcel refers to slots of the tables. While one waits that is older than the receiver's last quiescent point, the
//! receiver passes none, so no SA is wiped under it (`quiescence`); the queue is first in, first out, so it will pass.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use penstock_tables::Note;

use super::batch::{Batch, Picks};
use super::decap::{self, Openings};
use super::encap::{self, Sealing};
use super::exit::Leaving;
use super::flow::Arriving;
use super::hold::{self, Held};
use super::punt::Twins;
use super::{Context, WorkerPort, classify, route};
use crate::port::{Frame, Port};

/// Bursts that may wait in one receiver.
pub const PARCELS: usize = 16;
/// Bursts that may be with one helper at once.
pub const DEPTH: usize = 4;
/// Frames of the smallest burst that is handed over.
pub const HAND_MIN: usize = 16;

/// A burst on its way.
struct Parcel<F> {
    batch: Box<Batch<F>>,
    work: Work,
    /// Frames in it that have no verdict yet.
    frames: u64,
    /// Frames that were handed over with it.
    handed: u64,
    opening: Openings,
    /// Packets of a burst of ESP that turned out to be none, and are to be forwarded.
    clear: Picks,
    sealing: Sealing,
}

/// What is to be done with it.
enum Work {
    /// Came in by this public port.
    Open { arrived: Picks, port: u8 },
    /// Admitted to tunnels, numbers reserved.
    Seal,
}

impl<F: Frame> Default for Parcel<F> {
    fn default() -> Parcel<F> {
        Parcel {
            batch: Box::default(),
            work: Work::Seal,
            frames: 0,
            handed: 0,
            opening: Openings::default(),
            clear: Picks::default(),
            sealing: Sealing::default(),
        }
    }
}

/// Rings between a receiver and one helper. Each has one worker at either end.
struct Pair<F> {
    there: Arc<ArrayQueue<Box<Parcel<F>>>>,
    back: Arc<ArrayQueue<Box<Parcel<F>>>>,
    /// Parcels that are out; the receiver's side counts.
    out: usize,
}

impl<F> Pair<F> {
    fn other_end(&self) -> Pair<F> {
        Pair { there: self.there.clone(), back: self.back.clone(), out: 0 }
    }
}

/// Room for one burst among those that wait: an empty parcel.
pub struct Room<F>(Box<Parcel<F>>);

/// A parcel in the queue of its receiver.
struct Place<F> {
    /// Quiescent points that the receiver had passed when the parcel was made.
    era: u64,
    at: At<F>,
}

enum At<F> {
    /// With the helper of this number; comes back in the order of those that it has.
    Helper(usize),
    Done(Box<Parcel<F>>),
}

/// How a worker takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Receives, and hands over what is too much.
    pub receiver: bool,
    /// Is the only worker that receives: it keeps order among all packets that are sealed, so it hands those over too, and
    /// takes what comes from the kernel.
    pub alone: bool,
}

/// One worker's part in it.
pub struct Spread<F> {
    role: Role,
    helpers: Vec<Pair<F>>,
    receivers: Vec<Pair<F>>,
    order: VecDeque<Place<F>>,
    spare: Vec<Box<Parcel<F>>>,
    era: u64,
}

impl<F: Frame> Spread<F> {
    /// No part: every worker works on what it receives.
    pub fn off() -> Spread<F> {
        let role = Role { receiver: true, alone: false };
        Spread {
            role,
            helpers: Vec::new(),
            receivers: Vec::new(),
            order: VecDeque::new(),
            spare: Vec::new(),
            era: 0,
        }
    }

    /// The parts of workers with these roles: every receiver hands over to every other worker.
    pub fn among(roles: &[Role]) -> Vec<Spread<F>> {
        let mut all: Vec<Spread<F>> =
            roles.iter().map(|role| Spread { role: *role, ..Spread::off() }).collect();
        for receiver in (0..roles.len()).filter(|worker| roles[*worker].receiver) {
            for helper in (0..roles.len()).filter(|worker| *worker != receiver) {
                let ring = || Arc::new(ArrayQueue::new(DEPTH));
                let pair = Pair { there: ring(), back: ring(), out: 0 };
                all[helper].receivers.push(pair.other_end());
                all[receiver].helpers.push(pair);
            }
        }
        for spread in all.iter_mut().filter(|spread| !spread.helpers.is_empty()) {
            spread.order.reserve_exact(PARCELS);
            spread.spare.extend(std::iter::repeat_with(Box::default).take(PARCELS));
        }
        all
    }

    /// Whether the worker may pass a quiescent point, which it then does.
    #[inline(always)]
    pub fn passes(&mut self) -> bool {
        let held = self.order.front().is_some_and(|place| place.era < self.era);
        self.era += u64::from(!held);
        !held
    }

    /// Whether packets wait here for their turn.
    #[inline(always)]
    pub fn waits(&self) -> bool {
        !self.order.is_empty()
    }

    /// Whether nothing more can be taken in now.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        !self.helpers.is_empty() && self.spare.is_empty()
    }

    /// Whether the worker fetches frames of the kernel: whoever seals alone, otherwise all.
    #[inline(always)]
    pub fn takes_from_kernel(&self) -> bool {
        (self.role.receiver || self.receivers.is_empty()) && !self.is_full()
    }

    /// Room for a burst of `count` frames of a port that is to go through [`hand`]. Who gets none works on it at once, as
    /// without helpers: every burst has one way or the other.
    #[inline(always)]
    pub fn takes(&mut self, count: usize, public: bool) -> Option<Room<F>> {
        let takes =
            !self.helpers.is_empty() && (public || self.role.alone) && (count >= HAND_MIN || self.waits());
        if takes { self.room() } else { None }
    }

    /// Room for one burst, where there is some.
    #[inline(always)]
    pub fn room(&mut self) -> Option<Room<F>> {
        self.spare.pop().map(Room)
    }

    /// The helper that has the least to do, where one has a place free.
    fn helper(&self) -> Option<usize> {
        let least = (0..self.helpers.len()).min_by_key(|helper| self.helpers[*helper].out)?;
        (self.helpers[least].out < DEPTH).then_some(least)
    }
}

/// Takes a burst of `port` into the `room`: for a helper, or for this worker, in any case at its place in the order.
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "what a stage has at hand")]
pub fn hand<P: Port>(
    room: Room<P::Frame>,
    (arrived, port): (Picks, u8),
    batch: &mut Box<Batch<P::Frame>>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    spread: &mut Spread<P::Frame>,
    held: &mut Held<P::Frame>,
    cx: &mut Context<'_>,
) {
    if !cx.ports[usize::from(port)].spec.public {
        let mut arriving = Arriving::new();
        let clear = classify::sort(arrived, port, batch, twins, &mut arriving, cx);
        let opened = decap::open(&arriving, batch, cx);
        let mut leaving = Leaving::new();
        route::forward(clear, opened, batch, ports, twins, &mut leaving, cx);
        hold::collect(batch, held, cx);
        return seal(&leaving, Some(room), batch, ports, twins, spread, cx);
    }
    let Room(mut parcel) = room;
    std::mem::swap(batch, &mut parcel.batch);
    parcel.work = Work::Open { arrived, port };
    park(parcel, arrived.count(), twins, spread, cx);
}

/// Seals the picked packets behind all that wait to be sealed, where there is `room`.
#[inline(always)]
pub fn seal<P: Port>(
    leaving: &Leaving<'_>,
    room: Option<Room<P::Frame>>,
    batch: &mut Box<Batch<P::Frame>>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    spread: &mut Spread<P::Frame>,
    cx: &mut Context<'_>,
) {
    let count = leaving.picks().count();
    let waits = spread.role.alone && count > 0 && (spread.waits() || count >= HAND_MIN);
    match room {
        Some(Room(mut parcel)) if waits => {
            std::mem::swap(batch, &mut parcel.batch);
            park_sealing(leaving, parcel, twins, spread, cx);
        }
        room => {
            spread.spare.extend(room.map(|Room(parcel)| parcel));
            encap::seal(leaving, batch, ports, cx);
        }
    }
}

/// Reserves the numbers of packets that are in the parcel already, and parks it.
fn park_sealing<F: Frame>(
    leaving: &Leaving<'_>,
    mut parcel: Box<Parcel<F>>,
    twins: &mut Twins<F>,
    spread: &mut Spread<F>,
    cx: &mut Context<'_>,
) {
    encap::reserve(leaving, &mut parcel.sealing, cx);
    parcel.work = Work::Seal;
    park(parcel, leaving.picks().count(), twins, spread, cx);
}

/// Puts a parcel at the end of the order, and to work.
fn park<F: Frame>(
    mut parcel: Box<Parcel<F>>,
    frames: usize,
    twins: &mut Twins<F>,
    spread: &mut Spread<F>,
    cx: &mut Context<'_>,
) {
    (parcel.frames, parcel.handed) = (frames as u64, frames as u64);
    cx.tally.received -= parcel.frames;
    let helper = if frames >= HAND_MIN { spread.helper() } else { None };
    if let Some(number) = helper {
        let pair = &mut spread.helpers[number];
        match pair.there.push(parcel) {
            Ok(()) => {
                pair.out += 1;
                cx.tally.note(Note::Handed, frames as u64);
                return spread.order.push_back(Place { era: spread.era, at: At::Helper(number) });
            }
            Err(refused) => parcel = refused,
        }
    }
    work_on(&mut parcel, twins, cx);
    spread.order.push_back(Place { era: spread.era, at: At::Done(parcel) });
}

/// Everything that needs no order. What ends here was received here.
fn work_on<F: Frame>(parcel: &mut Parcel<F>, twins: &mut Twins<F>, cx: &mut Context<'_>) {
    let before = cx.tally.ended();
    match parcel.work {
        Work::Open { arrived, port } => {
            let mut arriving = Arriving::new();
            parcel.clear = classify::sort(arrived, port, &mut parcel.batch, twins, &mut arriving, cx);
            decap::verify(&arriving, &mut parcel.opening, &mut parcel.batch, cx);
        }
        Work::Seal => encap::encrypt(&mut parcel.sealing, &mut parcel.batch, cx),
    }
    let ended = cx.tally.ended() - before;
    cx.tally.received += ended;
    parcel.frames -= ended;
}

/// Works on a burst of each receiver that has one for this worker. Returns how many frames that were.
#[inline(always)]
pub fn help<F: Frame>(spread: &mut Spread<F>, twins: &mut Twins<F>, cx: &mut Context<'_>) -> usize {
    let mut frames = 0;
    for pair in &spread.receivers {
        if let Some(parcel) = pair.there.pop() {
            frames += parcel.frames as usize;
            help_one(parcel, pair, twins, cx);
        }
    }
    frames
}

#[inline(never)]
fn help_one<F: Frame>(
    mut parcel: Box<Parcel<F>>,
    pair: &Pair<F>,
    twins: &mut Twins<F>,
    cx: &mut Context<'_>,
) {
    cx.tally.note(Note::Helped, parcel.frames);
    parcel.batch.prefetch();
    work_on(&mut parcel, twins, cx);
    // As many places as parcels may be out: there always is one.
    debug_assert!(pair.back.len() < DEPTH);
    let _ = pair.back.push(parcel);
}

/// Ends all parcels whose turn it is. Returns how many.
#[inline(always)]
pub fn release<P: Port>(
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    spread: &mut Spread<P::Frame>,
    held: &mut Held<P::Frame>,
    cx: &mut Context<'_>,
) -> usize {
    let mut released = 0;
    while let Some(parcel) = next(spread, cx) {
        end(parcel, ports, twins, spread, held, cx);
        released += 1;
    }
    released
}

/// The parcel at the head of the order, where it is done.
#[inline(always)]
fn next<F: Frame>(spread: &mut Spread<F>, cx: &mut Context<'_>) -> Option<Box<Parcel<F>>> {
    if let At::Helper(number) = spread.order.front()?.at {
        let pair = &mut spread.helpers[number];
        let parcel = pair.back.pop()?;
        pair.out -= 1;
        cx.tally.note(Note::Returned, parcel.handed);
        spread.order.pop_front();
        return Some(parcel);
    }
    match spread.order.pop_front()?.at {
        At::Done(parcel) => Some(parcel),
        At::Helper(_) => None,
    }
}

/// What must be done in order: numbers are marked, frames are sent.
#[inline(never)]
fn end<P: Port>(
    mut parcel: Box<Parcel<P::Frame>>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    spread: &mut Spread<P::Frame>,
    held: &mut Held<P::Frame>,
    cx: &mut Context<'_>,
) {
    cx.tally.received += parcel.frames;
    match parcel.work {
        Work::Seal => encap::send(parcel.sealing.sealed, &mut parcel.batch, ports, cx),
        Work::Open { .. } => {
            parcel.batch.prefetch();
            let opened = decap::accept(&mut parcel.opening, &mut parcel.batch, cx);
            let (clear, batch) = (parcel.clear, &mut parcel.batch);
            let mut leaving = Leaving::new();
            route::forward(clear, opened, batch, ports, twins, &mut leaving, cx);
            hold::collect(batch, held, cx);
            match spread.role.alone {
                true if !leaving.picks().is_empty() => {
                    return park_sealing(&leaving, parcel, twins, spread, cx);
                }
                _ => encap::seal(&leaving, batch, ports, cx),
            }
        }
    }
    spread.spare.push(parcel);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::MemoryFrame;

    #[test]
    fn a_burst_without_room_is_worked_on_at_once() {
        let role = Role { receiver: true, alone: true };
        let mut all = Spread::<MemoryFrame>::among(&[role, Role { receiver: false, alone: false }]);
        let spread = &mut all[0];
        assert!(spread.takes(HAND_MIN - 1, true).is_none());
        let rooms: Vec<_> = std::iter::from_fn(|| spread.takes(HAND_MIN, true)).collect();
        assert_eq!(rooms.len(), PARCELS);
        assert!(spread.is_full() && !spread.takes_from_kernel() && spread.room().is_none());
    }
}
