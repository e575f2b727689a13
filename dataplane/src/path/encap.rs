//! Packets of a tunnel in, ESP in tunnel mode out (RFC 4303 section 3.3, RFC 4106; RFC 3948 in UDP): selectors, SA, a run
//! of sequence numbers per SA and burst, padding, outer header (DSCP and ECN of RFC 6040, don't-fragment of RFC 4301 8.1).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::sequence::Run;
use penstock_tables::{Adjacency, DontFragment, Note, OutboundSa, Verdict};

use super::{Context, Item, WorkerPort, tx};
use crate::crypto::{Aad, Direction, Job, TAG_LEN};
use crate::port::{BURST, Frame, Port};
use crate::wire::{esp, ethernet, ipv4};

/// A packet of a tunnel, and where it goes.
pub struct Sealing<F> {
    /// The packet.
    pub item: Item<F>,
    /// Slot of the outbound SA.
    pub slot: u32,
    /// Next hop of the outer packet.
    pub next: Adjacency,
}
/// Packets to seal of one burst.
pub type SealingList<F> = ArrayVec<Sealing<F>, BURST>;

/// What the engine needs of a packet whose headers are written.
struct Written {
    slot: u32,
    port: u8,
    aad: Aad,
    iv: [u8; esp::IV],
    /// Octets of frame before the plaintext.
    text: u16,
    inner: u16,
}

/// Takes a packet into the tunnel in slot `tunnel`, or drops it under the name of what is missing.
#[inline(always)]
pub fn admit<F: Frame>(item: Item<F>, tunnel: u32, sealing: &mut SealingList<F>, cx: &mut Context<'_>) {
    match check(&item, tunnel, cx) {
        Ok((slot, next)) => {
            cx.engine.prefetch(cx.tables.outbound_key(slot));
            if let Err(full) = sealing.try_push(Sealing { item, slot, next }) {
                cx.end(full.element().item.frame, Verdict::TransmitFull);
            }
        }
        Err(verdict) => cx.end(item.frame, verdict),
    }
}

#[inline(always)]
fn check<F: Frame>(item: &Item<F>, slot: u32, cx: &Context<'_>) -> Result<(u32, Adjacency), Verdict> {
    let ip = item.meta.ip;
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
    let outbound = tunnel.outbound().ok_or_else(missing)?;
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

/// Seals every packet and queues it at its port.
#[inline(always)]
pub fn seal<P: Port>(sealing: &mut SealingList<P::Frame>, ports: &mut [WorkerPort<P>], cx: &mut Context<'_>) {
    if sealing.is_empty() {
        return;
    }
    let mut runs = Runs::reserve(sealing, cx);
    let mut written: ArrayVec<Written, BURST> = ArrayVec::new();
    let mut frames: ArrayVec<P::Frame, BURST> = ArrayVec::new();
    for packet in sealing.drain(..) {
        match write(packet, &mut runs, cx) {
            Ok((frame, done)) => {
                frames.push(frame);
                written.push(done);
            }
            Err((frame, verdict)) => cx.end(frame, verdict),
        }
    }
    let done = run_engine(&mut frames, &written, cx);
    for ((frame, packet), done) in frames.drain(..).zip(&written).zip(done) {
        if !done {
            cx.end(frame, Verdict::SealFailed);
            continue;
        }
        cx.tally.note(Note::Sealed, 1);
        runs.account(packet.slot, packet.inner);
        tx::queue(&mut ports[usize::from(packet.port)], frame, cx);
    }
    runs.close(cx);
}

#[inline(always)]
fn run_engine<F: Frame>(frames: &mut [F], written: &[Written], cx: &Context<'_>) -> ArrayVec<bool, BURST> {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    for (frame, packet) in frames.iter_mut().zip(written) {
        jobs.push(Job {
            key: cx.tables.outbound_key(packet.slot),
            iv: packet.iv,
            aad: packet.aad,
            direction: Direction::Seal,
            text: &mut frame.data_mut()[usize::from(packet.text)..],
            done: false,
        });
    }
    cx.engine.run(&mut jobs);
    jobs.iter().map(|job| job.done).collect()
}

/// Writes trailer and headers around one packet.
#[inline(always)]
fn write<F: Frame>(
    packet: Sealing<F>,
    runs: &mut Runs,
    cx: &Context<'_>,
) -> Result<(F, Written), (F, Verdict)> {
    let Sealing { item: Item { mut frame, meta }, slot, next } = packet;
    let Some(sa) = cx.tables.outbound(slot) else { return Err((frame, Verdict::NoSa)) };
    let Some(spi) = sa.spi() else { return Err((frame, Verdict::NoSa)) };
    let Some(number) = runs.take(slot) else { return Err((frame, Verdict::SequenceExhausted)) };
    frame.trim_front(usize::from(meta.l3));
    let inner = frame.len();
    let padding = esp::padding(inner);
    match frame.append(padding + esp::TRAILER + TAG_LEN) {
        Some(tail) => esp::write_trailer(tail, padding, esp::NEXT_IPV4),
        None => return Err((frame, Verdict::NoHeadroom)),
    }
    let facts = &cx.ports[usize::from(next.port)];
    let l2 = ethernet::header_len(facts.spec.vlan);
    let outer = if sa.udp() { ipv4::HEADER + esp::UDP_HEADER } else { ipv4::HEADER };
    let text = l2 + outer + esp::HEADER + esp::IV;
    let ip_len = outer + esp::sealed_len(inner);
    let Some(header) = frame.prepend(text) else { return Err((frame, Verdict::NoHeadroom)) };
    ethernet::write(&mut header[..l2], next.mac, facts.mac, facts.spec.vlan);
    write_outer(&mut header[l2..l2 + outer], sa, meta.ip.tos, meta.ip.dont_fragment, ip_len, number);
    let iv = number.to_be_bytes();
    header[l2 + outer..][..4].copy_from_slice(&spi.to_be_bytes());
    header[l2 + outer + 4..][..4].copy_from_slice(&(number as u32).to_be_bytes());
    header[l2 + outer + 8..][..8].copy_from_slice(&iv);
    let aad = if sa.esn() { Aad::with_esn(spi, number) } else { Aad::new(spi, number as u32) };
    Ok((frame, Written { slot, port: next.port, aad, iv, text: text as u16, inner: inner as u16 }))
}

/// The outer IPv4 header, and the UDP header where there is one (RFC 3948: checksum 0).
#[inline(always)]
fn write_outer(header: &mut [u8], sa: &OutboundSa, tos: u8, inner_df: bool, ip_len: usize, number: u64) {
    header.copy_from_slice(&sa.template()[..header.len()]);
    let (ip, udp) = header.split_at_mut(ipv4::HEADER);
    let dont_fragment = match sa.dont_fragment() {
        set if set == DontFragment::Set as u8 => true,
        clear if clear == DontFragment::Clear as u8 => false,
        _ => inner_df,
    };
    ip[1] = tos;
    ip[2..4].copy_from_slice(&(ip_len as u16).to_be_bytes());
    ip[4..6].copy_from_slice(&(number as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&(u16::from(dont_fragment) << 14).to_be_bytes());
    ipv4::write_checksum(ip);
    if let Some(length) = udp.get_mut(4..6) {
        length.copy_from_slice(&((ip_len - ipv4::HEADER) as u16).to_be_bytes());
    }
}

/// The runs of sequence numbers of one burst: one `fetch_add` per SA, before any of them is used.
struct Runs {
    runs: ArrayVec<SaRun, BURST>,
}

struct SaRun {
    slot: u32,
    run: Run,
    packets: u32,
    bytes: u64,
}

impl Runs {
    #[inline(always)]
    fn reserve<F: Frame>(sealing: &SealingList<F>, cx: &Context<'_>) -> Runs {
        let mut counts: ArrayVec<(u32, u32), BURST> = ArrayVec::new();
        for packet in sealing {
            match counts.iter_mut().rev().find(|(slot, _)| *slot == packet.slot) {
                Some((_, count)) => *count += 1,
                None => counts.push((packet.slot, 1)),
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
        Runs { runs }
    }

    #[inline(always)]
    fn of(&mut self, slot: u32) -> Option<&mut SaRun> {
        self.runs.iter_mut().find(|run| run.slot == slot)
    }

    #[inline(always)]
    fn take(&mut self, slot: u32) -> Option<u64> {
        self.of(slot)?.run.take()
    }

    #[inline(always)]
    fn account(&mut self, slot: u32, bytes: u16) {
        if let Some(run) = self.of(slot) {
            run.packets += 1;
            run.bytes += u64::from(bytes);
        }
    }

    /// Adds what was sealed to the counters of each SA.
    #[inline(always)]
    fn close(&self, cx: &Context<'_>) {
        for run in &self.runs {
            cx.state.outbound(run.slot).account(u64::from(run.packets), run.bytes, cx.now);
        }
    }
}
