//! Packets of a tunnel in, ESP in tunnel mode out (RFC 4303 section 3.3, RFC 4106; RFC 3948 in UDP): selectors, SA, a run
//! of sequence numbers per SA and burst (`run`), padding, outer header (DSCP and ECN of RFC 6040, don't-fragment of RFC 4301
//! 8.1). What packets of one tunnel have in common is found once for those in a row ([`Exit`]) or once a burst (`run`).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::{Adjacency, Tunnel, Verdict};

use super::batch::{Batch, Meta, Origin, Picks};
use super::run::{Leaving, Reserved, Runs};
use super::{Context, WorkerPort, tx};
use crate::crypto::{Direction, Job, TAG_LEN};
use crate::port::{AREA, BURST, Frame, Port};
use crate::wire::{esp, ipv4};

/// A tunnel as this burst found it, kept for the packets in a row that go there.
pub struct Exit<'a> {
    slot: u32,
    tunnel: Option<&'a Tunnel>,
    /// Slot of the SA that seals, and next hop of the outer packet; `None` where something is missing.
    way: Option<(u32, Adjacency)>,
    /// Place of that SA among those of the burst, once a packet of it leaves.
    place: Option<u8>,
    inner_mtu: u16,
}

impl<'a> Exit<'a> {
    /// Of no tunnel yet.
    #[inline(always)]
    pub fn none() -> Exit<'a> {
        Exit { slot: penstock_tables::NONE, tunnel: None, way: None, place: None, inner_mtu: u16::MAX }
    }

    /// Turns to the tunnel in `slot`, for a packet of `inner` octets: what it needs of the key is fetched.
    #[inline(always)]
    pub fn turn(&mut self, slot: u32, inner: u16, cx: &Context<'a>) {
        if self.slot != slot {
            *self = Exit::find(slot, inner, cx);
        }
    }

    /// Largest inner packet of the tunnel, in octets.
    #[inline(always)]
    pub fn inner_mtu(&self) -> u16 {
        self.inner_mtu
    }

    #[inline]
    fn find(slot: u32, inner: u16, cx: &Context<'a>) -> Exit<'a> {
        let tables = cx.tables;
        let tunnel = tables.tunnel(slot);
        let way = tunnel.and_then(|tunnel| {
            let (sa, hop) = (tunnel.outbound_of(cx.worker)?, tunnel.adjacency()?);
            tables.outbound(sa)?;
            let way = (sa, tables.adjacency(hop).ok()?);
            cx.state.prefetch_outbound(sa);
            cx.engine.prefetch(tables.outbound_key(sa), usize::from(inner) + esp::TRAILER);
            (usize::from(way.1.port) < cx.ports.len()).then_some(way)
        });
        Exit { slot, tunnel, way, place: None, inner_mtu: tunnel.map_or(u16::MAX, Tunnel::inner_mtu) }
    }

    /// Whether a packet may be sealed there: selectors, size, SA and next hop.
    #[inline(always)]
    fn check(&self, meta: &Meta, cx: &Context<'_>) -> Result<(u32, Adjacency), Verdict> {
        let ip = &meta.ip;
        let tunnel = self.tunnel.ok_or(Verdict::NoSa)?;
        if !tunnel.covers_outbound(ip.source(), ip.destination()) {
            return Err(Verdict::SelectorOutbound);
        }
        if ip.total_len() > self.inner_mtu {
            return Err(Verdict::TooBig);
        }
        self.way.ok_or_else(|| missing(self.slot, tunnel, cx))
    }
}

/// What a tunnel lacks; control hears of it.
#[cold]
#[inline(never)]
fn missing(slot: u32, tunnel: &Tunnel, cx: &Context<'_>) -> Verdict {
    let Some((sa, _)) = tunnel.outbound_of(cx.worker).and_then(|sa| cx.tables.outbound(sa)) else {
        cx.events.push(Event::NoSa { tunnel: slot });
        return Verdict::NoSa;
    };
    if sa.epoch() != cx.state.epoch() {
        cx.events.push(Event::Orphaned { tunnel: slot });
        return Verdict::SaOrphaned;
    }
    match tunnel.adjacency().map(|hop| cx.tables.adjacency(hop)) {
        None => Verdict::NoRoute,
        Some(Err(unresolved)) => {
            let (port, address) = (u32::from(unresolved.port), unresolved.address);
            cx.events.push(Event::NoNeighbour { port, address });
            Verdict::NoNeighbour
        }
        // It came just now, and the next burst has it.
        Some(Ok(next)) if usize::from(next.port) < cx.ports.len() => Verdict::NoSa,
        Some(Ok(_)) => Verdict::PortDown,
    }
}

/// Takes a packet into the tunnel in slot `tunnel`, or drops it under the name of what is missing.
#[inline(always)]
pub fn admit<'a, F: Frame>(
    index: usize,
    tunnel: u32,
    exit: &mut Exit<'a>,
    leaving: &mut Leaving,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
) {
    let meta = batch.meta_mut(index);
    exit.turn(tunnel, meta.ip.total_len(), cx);
    match exit.check(meta, cx) {
        Ok((sa, next)) => {
            let place = *exit.place.get_or_insert_with(|| leaving.place(sa, next));
            (meta.sa, meta.out) = (place, next.port);
            leaving.add(index, place);
        }
        Err(verdict) => cx.end_of(batch, index, verdict),
    }
}

/// Seals the packets that leave and queues each at its port.
#[inline(always)]
pub fn seal<'a, P: Port>(
    leaving: &Leaving,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'a>,
) {
    if leaving.picks().is_empty() {
        return;
    }
    let mut runs = Runs::new();
    runs.reserve(leaving, cx);
    let sealed = encrypt_all(leaving.picks(), &mut runs, batch, cx);
    runs.close(cx);
    send(sealed, batch, ports, cx);
}

/// The picked packets of a burst between the reservation of their numbers and their sending.
#[derive(Default)]
pub struct Sealing {
    picks: Picks,
    reserved: ArrayVec<Reserved, BURST>,
    /// Those that are sealed.
    pub sealed: Picks,
}

/// First part of [`seal`]: reserves a run of numbers per SA, before any of them is used.
pub fn reserve(leaving: &Leaving, work: &mut Sealing, cx: &Context<'_>) {
    work.picks = leaving.picks();
    let mut runs = Runs::new();
    runs.reserve(leaving, cx);
    runs.numbers(&mut work.reserved);
}

/// Second part, which needs no order and may be done by another worker: headers, trailers, engine.
pub fn encrypt<F: Frame>(work: &mut Sealing, batch: &mut Batch<F>, cx: &mut Context<'_>) {
    let mut runs = Runs::new();
    runs.again(&mut work.reserved, cx);
    work.sealed = encrypt_all(work.picks, &mut runs, batch, cx);
    runs.close(cx);
}

/// Last part: queues each packet at its port.
#[inline(always)]
pub fn send<P: Port>(
    sealed: Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    for index in sealed {
        let port = usize::from(batch.meta(index).out);
        if let Some(frame) = batch.take(index) {
            tx::queue(&mut ports[port], frame, cx);
        }
    }
}

/// Writes headers and trailers and runs the engine; returns what is sealed.
#[inline(never)]
fn encrypt_all<'a, F: Frame>(
    picks: Picks,
    runs: &mut Runs<'a>,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
) -> Picks {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    let mut refused: ArrayVec<(u8, Verdict), BURST> = ArrayVec::new();
    let mut ready = Picks::default();
    for (index, frame, meta) in batch.each(picks) {
        match write(frame, meta, runs) {
            Ok(job) => {
                jobs.push(job);
                ready.insert(index);
            }
            Err(verdict) => refused.push((index as u8, verdict)),
        }
    }
    cx.engine.run(&mut jobs);
    let right = Picks::of(jobs.iter().map(|job| job.done));
    let count = jobs.len();
    drop(jobs);
    let failed = match right == Picks::first(count) {
        true => Picks::default(),
        false => ready.without(ready.chosen(right)),
    };
    for (index, verdict) in refused {
        cx.end_of(batch, usize::from(index), verdict);
    }
    for index in failed {
        runs.take_back(batch.meta(index));
        cx.end_of(batch, index, Verdict::SealFailed);
    }
    ready.without(failed)
}

/// Writes trailer and headers around one packet.
#[inline(always)]
fn write<'f, 'a: 'f, F: Frame>(
    frame: &'f mut F,
    meta: &Meta,
    runs: &mut Runs<'a>,
) -> Result<Job<'f>, Verdict> {
    let run = runs.of(meta);
    let number = run.take()?;
    // No octet follows the packet: `parse` cut it.
    let inner = usize::from(meta.ip.total_len());
    let padding = esp::padding(inner);
    let sealed = inner + padding + esp::TRAILER;
    let tail = sealed - inner + TAG_LEN;
    let (header, text) = frame.wrap(meta.l3, run.head.total(), tail as u8).ok_or(Verdict::NoHeadroom)?;
    if let Some(trailer) = text.get_mut(inner..).and_then(|tail| tail.first_chunk_mut()) {
        esp::write_ipv4_trailer(trailer, padding);
    }
    // Forwarding takes one hop of the TTL (RFC 1812 5.3.1); what the gateway itself sends starts whole.
    if meta.origin != Origin::Kernel && !meta.answer {
        meta.ip.forward(text);
    }
    run.count(inner);
    let aad = run.head.write(header, &meta.ip, sealed, number);
    Ok(Job { key: run.key(), iv: number.to_be_bytes(), aad, direction: Direction::Seal, text, done: false })
}

const _: () = assert!(super::run::LONGEST <= AREA && ipv4::HEADER == 20);
