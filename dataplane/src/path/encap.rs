//! Packets of a tunnel in, ESP in tunnel mode out (RFC 4303 section 3.3, RFC 4106; RFC 3948 in UDP): selectors, SA, a run
//! of sequence numbers per SA and burst, padding, outer header (DSCP and ECN of RFC 6040, don't-fragment of RFC 4301 8.1).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::sequence::Run;
use penstock_tables::{Adjacency, DontFragment, Note, OutboundSa, Verdict};

use super::batch::{Batch, Meta, Picks};
use super::{Context, WorkerPort, tx};
use crate::crypto::{Aad, Direction, Job, TAG_LEN};
use crate::port::{BURST, Frame, Port};
use crate::wire::{esp, ethernet, ipv4};

/// What the engine needs of a packet whose headers are written.
struct Written {
    run: u8,
    slot: u32,
    aad: Aad,
    iv: [u8; esp::IV],
    /// Octets of frame before the plaintext.
    text: u16,
    inner: u16,
}

/// Takes a packet into the tunnel in slot `tunnel`, or drops it under the name of what is missing.
#[inline(always)]
pub fn admit<F: Frame>(
    index: usize,
    tunnel: u32,
    sealing: &mut Picks,
    batch: &mut Batch<F>,
    cx: &mut Context<'_>,
) {
    let Some((_, meta)) = batch.get(index) else { return };
    match check(meta, tunnel, cx) {
        Ok((slot, next)) => {
            cx.engine.prefetch(cx.tables.outbound_key(slot), usize::from(meta.ip.total_len) + esp::TRAILER);
            (meta.sa, meta.next) = (slot, next);
            sealing.insert(index);
        }
        Err(verdict) => cx.end_of(batch, index, verdict),
    }
}

#[inline(always)]
fn check(meta: &Meta, slot: u32, cx: &Context<'_>) -> Result<(u32, Adjacency), Verdict> {
    let ip = &meta.ip;
    let tunnel = cx.tables.tunnel(slot).ok_or(Verdict::NoSa)?;
    if !tunnel.covers_outbound(ip.source, ip.destination) {
        return Err(Verdict::SelectorOutbound);
    }
    if ip.total_len > tunnel.inner_mtu() {
        return Err(Verdict::TooBig);
    }
    let missing = || {
        cx.events.push(Event::NoSa { tunnel: slot });
        Verdict::NoSa
    };
    let outbound = tunnel.outbound_of(cx.worker).ok_or_else(missing)?;
    let sa = cx.tables.outbound(outbound).ok_or_else(missing)?;
    if sa.epoch() != cx.state.epoch() {
        cx.events.push(Event::Orphaned { tunnel: slot });
        return Err(Verdict::SaOrphaned);
    }
    let hop = tunnel.adjacency().ok_or(Verdict::NoRoute)?;
    let next = cx.tables.adjacency(hop).map_err(|unresolved| {
        let (port, address) = (u32::from(unresolved.port), unresolved.address);
        cx.events.push(Event::NoNeighbour { port, address });
        Verdict::NoNeighbour
    })?;
    if usize::from(next.port) >= cx.ports.len() {
        return Err(Verdict::PortDown);
    }
    Ok((outbound, next))
}

/// Seals the picked packets and queues each at its port.
#[inline(always)]
pub fn seal<P: Port>(
    picks: Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    if picks.is_empty() {
        return;
    }
    let mut runs = Runs::reserve(picks, batch, cx);
    let mut written: ArrayVec<Written, BURST> = ArrayVec::new();
    let mut ready = Picks::default();
    for index in picks {
        let Some((frame, meta)) = batch.get(index) else { continue };
        match write(frame, meta, &mut runs, cx) {
            Ok(packet) => {
                written.push(packet);
                ready.insert(index);
            }
            Err(verdict) => cx.end_of(batch, index, verdict),
        }
    }
    let sealed = run_engine(ready, &written, batch, cx);
    for (index, packet) in ready.into_iter().zip(&written) {
        if !sealed.contains(index) {
            cx.end_of(batch, index, Verdict::SealFailed);
            continue;
        }
        runs.account(packet.run, packet.inner);
        let port = usize::from(batch.meta(index).next.port);
        if let Some(frame) = batch.take(index) {
            tx::queue(&mut ports[port], frame, cx);
        }
    }
    runs.close(cx);
}

/// Runs the engine over all of them at once; returns those that it sealed.
#[inline(always)]
fn run_engine<F: Frame>(picks: Picks, written: &[Written], batch: &mut Batch<F>, cx: &Context<'_>) -> Picks {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    for ((_, frame), packet) in batch.each(picks).zip(written) {
        jobs.push(Job {
            key: cx.tables.outbound_key(packet.slot),
            iv: packet.iv,
            aad: packet.aad,
            direction: Direction::Seal,
            text: frame.data_mut().get_mut(usize::from(packet.text)..).unwrap_or_default(),
            done: false,
        });
    }
    cx.engine.run(&mut jobs);
    let mut sealed = Picks::default();
    picks.into_iter().zip(&jobs).filter(|(_, job)| job.done).for_each(|(index, _)| sealed.insert(index));
    sealed
}

/// Writes trailer and headers around one packet.
#[inline(always)]
fn write<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    runs: &mut Runs,
    cx: &Context<'_>,
) -> Result<Written, Verdict> {
    let slot = meta.sa;
    let sa = cx.tables.outbound(slot).ok_or(Verdict::NoSa)?;
    let spi = sa.spi().ok_or(Verdict::NoSa)?;
    let (run, number) = runs.take(slot).ok_or(Verdict::SequenceExhausted)?;
    frame.trim_front(usize::from(meta.l3));
    let inner = frame.len();
    let padding = esp::padding(inner);
    let tail = frame.append(padding + esp::TRAILER + TAG_LEN).ok_or(Verdict::NoHeadroom)?;
    esp::write_trailer(tail, padding, esp::NEXT_IPV4);
    let facts = &cx.ports[usize::from(meta.next.port)];
    let l2 = ethernet::header_len(facts.spec.vlan);
    let outer = if sa.udp() { ipv4::HEADER + esp::UDP_HEADER } else { ipv4::HEADER };
    let text = l2 + outer + esp::HEADER + esp::IV;
    let ip_len = outer + esp::sealed_len(inner);
    let header = frame.prepend(text).ok_or(Verdict::NoHeadroom)?;
    let (l2_header, rest) = header.split_at_mut(l2);
    let (outer_header, esp_header) = rest.split_at_mut(outer);
    ethernet::write(l2_header, meta.next.mac, facts.mac, facts.spec.vlan);
    write_outer(outer_header, sa, meta.ip.tos, meta.ip.dont_fragment, ip_len, number);
    let iv = number.to_be_bytes();
    let start = u64::from(spi) << 32 | number & 0xffff_ffff;
    esp_header[..8].copy_from_slice(&start.to_be_bytes());
    esp_header[8..16].copy_from_slice(&iv);
    let aad = if sa.esn() { Aad::with_esn(spi, number) } else { Aad::new(spi, number as u32) };
    Ok(Written { run, slot, aad, iv, text: text as u16, inner: inner as u16 })
}

/// The outer IPv4 header, and the UDP header where there is one (RFC 3948: checksum 0).
#[inline(always)]
fn write_outer(header: &mut [u8], sa: &OutboundSa, tos: u8, inner_df: bool, ip_len: usize, number: u64) {
    let template = &sa.template()[..header.len()];
    header.copy_from_slice(template);
    let (ip, udp) = header.split_at_mut(ipv4::HEADER);
    let dont_fragment = match sa.dont_fragment() {
        set if set == DontFragment::Set as u8 => true,
        clear if clear == DontFragment::Clear as u8 => false,
        _ => inner_df,
    };
    ipv4::complete(ip, &template[..ipv4::HEADER], tos, ip_len as u16, number as u16, dont_fragment);
    if let Some(length) = udp.get_mut(4..6) {
        length.copy_from_slice(&((ip_len - ipv4::HEADER) as u16).to_be_bytes());
    }
}

/// The runs of sequence numbers of one burst: one `fetch_add` per SA, before any of them is used.
struct Runs {
    runs: ArrayVec<SaRun, BURST>,
    /// The run that served last: bursts are mostly of one SA.
    last: usize,
}

struct SaRun {
    slot: u32,
    run: Run,
    packets: u32,
    bytes: u64,
}

impl Runs {
    #[inline(always)]
    fn reserve<F: Frame>(picks: Picks, batch: &Batch<F>, cx: &Context<'_>) -> Runs {
        let mut counts: ArrayVec<(u32, u32), BURST> = ArrayVec::new();
        for index in picks {
            let slot = batch.meta(index).sa;
            match counts.iter_mut().rev().find(|(known, _)| *known == slot) {
                Some((_, count)) => *count += 1,
                None => counts.push((slot, 1)),
            }
        }
        let mut runs = ArrayVec::new();
        for (slot, count) in counts {
            let Some(sa) = cx.tables.outbound(slot) else { continue };
            let run = cx.state.outbound(slot).reserve(count, sa.offset(), sa.hard_limit());
            if run.passes(sa.soft_limit()) {
                cx.events.push(Event::SoftLimit { outbound: slot });
            }
            runs.push(SaRun { slot, run, packets: 0, bytes: 0 });
        }
        Runs { runs, last: 0 }
    }

    /// The next number of an SA, and which run it is of.
    #[inline(always)]
    fn take(&mut self, slot: u32) -> Option<(u8, u64)> {
        if self.runs.get(self.last).is_none_or(|run| run.slot != slot) {
            self.last = self.runs.iter().position(|run| run.slot == slot)?;
        }
        let number = self.runs.get_mut(self.last)?.run.take()?;
        Some((self.last as u8, number))
    }

    #[inline(always)]
    fn account(&mut self, run: u8, bytes: u16) {
        if let Some(run) = self.runs.get_mut(usize::from(run)) {
            run.packets += 1;
            run.bytes += u64::from(bytes);
        }
    }

    /// Adds what was sealed to the counters: of each SA, and of the worker.
    #[inline(always)]
    fn close(&self, cx: &mut Context<'_>) {
        for run in &self.runs {
            cx.state.outbound(run.slot).account(u64::from(run.packets), run.bytes, cx.now);
            cx.tally.note(Note::Sealed, u64::from(run.packets));
        }
    }
}
