//! Packets of a tunnel in, ESP in tunnel mode out (RFC 4303 section 3.3, RFC 4106; RFC 3948 in UDP): selectors, SA, a run
//! of sequence numbers per SA and burst (`run`), padding, outer header (DSCP and ECN of RFC 6040, don't-fragment of RFC 4301
//! 8.1). What packets of one tunnel have in common is found once a burst (`exit`, `run`).

use arrayvec::ArrayVec;
use penstock_tables::Verdict;

use super::batch::{Batch, Meta, Origin, Picks};
use super::exit::{EXITS, Leaving};
use super::run::{Reserved, Runs};
use super::{Context, WorkerPort, tx};
use crate::crypto::{Direction, Job, TAG_LEN};
use crate::port::{AREA, BURST, Frame, Port};
use crate::wire::{esp, ipv4};

/// Takes a packet into the tunnel in slot `tunnel`, or drops it under the name of what is missing.
#[inline(always)]
pub fn admit<'a, F: Frame>(
    index: usize,
    tunnel: u32,
    leaving: &mut Leaving<'a>,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
) {
    let place = leaving.turn(tunnel, &batch.meta(index).ip, cx);
    admit_at(index, place, leaving, batch, cx);
}

/// As [`admit`], to the tunnel at a place.
#[inline(always)]
pub fn admit_at<F: Frame>(
    index: usize,
    place: usize,
    leaving: &mut Leaving<'_>,
    batch: &mut Batch<F>,
    cx: &mut Context<'_>,
) {
    if let Err(verdict) = leaving.add(index, place, batch.meta_mut(index), cx) {
        cx.refuse(batch, index, verdict);
    }
}

/// Seals the packets that leave and queues each at its port.
#[inline(always)]
pub fn seal<'a, P: Port>(
    leaving: &Leaving<'_>,
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
    reserved: ArrayVec<Reserved, EXITS>,
    /// Those that are sealed.
    pub sealed: Picks,
}

/// First part of [`seal`]: reserves a run of numbers per SA, before any of them is used.
pub fn reserve(leaving: &Leaving<'_>, work: &mut Sealing, cx: &Context<'_>) {
    work.picks = leaving.picks();
    let mut runs = Runs::new();
    runs.reserve(leaving, cx);
    runs.numbers(leaving, &mut work.reserved);
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
    let mut ready = picks;
    for (index, frame, meta) in batch.each(picks) {
        match write(frame, meta, runs) {
            Ok(job) => jobs.push(job),
            Err(verdict) => {
                ready.remove(index);
                refused.push((index as u8, verdict));
            }
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
        runs.refuse(batch.meta(usize::from(index)), verdict, cx);
        cx.end_of(batch, usize::from(index), verdict);
    }
    for index in failed {
        runs.take_back(batch.meta(index));
        runs.refuse(batch.meta(index), Verdict::SealFailed, cx);
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
    let key = run.key()?;
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
    Ok(Job { key, iv: number.to_be_bytes(), aad, direction: Direction::Seal, text, done: false })
}

const _: () = assert!(super::run::LONGEST <= AREA && ipv4::HEADER == 20);
