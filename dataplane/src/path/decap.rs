//! ESP in, inner IPv4 packets out (RFC 4303 section 3.4, RFC 4106): SA by SPI, replay window before and after the tag,
//! trailer, selectors (RFC 4301 section 5.2), ECN (RFC 6040).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::replay::Refused;
use penstock_tables::{InboundSa, Note, Verdict};

use super::batch::{Batch, Meta, Origin, Picks, fresh};
use super::{Context, parse};
use crate::crypto::{Aad, Direction, Job, TAG_LEN};
use crate::port::{BURST, Frame};
use crate::wire::{esp, ipv4};

/// A packet whose SA is found and whose number may still be accepted.
struct Opening<'a> {
    slot: u32,
    sa: &'a InboundSa,
    number: u64,
    iv: [u8; esp::IV],
    aad: Aad,
    /// Octets of frame before the ciphertext.
    text: usize,
}

/// Opens the picked packets; returns those that are whole, new and allowed.
#[inline(always)]
pub fn open<F: Frame>(sealed: Picks, batch: &mut Batch<F>, cx: &mut Context<'_>) -> Picks {
    let mut opened = Picks::default();
    if sealed.is_empty() {
        return opened;
    }
    let mut openings: ArrayVec<Opening<'_>, BURST> = ArrayVec::new();
    let mut admitted = Picks::default();
    for index in sealed {
        let Some((frame, meta)) = batch.get(index) else { continue };
        match admit(frame, usize::from(meta.esp), cx) {
            Ok(opening) => {
                openings.push(opening);
                admitted.insert(index);
            }
            Err(verdict) => cx.end_of(batch, index, verdict),
        }
    }
    let right = run_engine(admitted, &openings, batch, cx);
    let mut account = Account::default();
    for (index, opening) in admitted.into_iter().zip(&openings) {
        let Some((frame, meta)) = batch.get(index) else { continue };
        match finish(frame, meta, opening, right.contains(index), cx) {
            Ok(()) => {
                account.add(opening.slot, frame.len(), cx);
                opened.insert(index);
            }
            Err(verdict) => {
                refuse(opening.slot, verdict, cx);
                cx.end_of(batch, index, verdict);
            }
        }
    }
    account.flush(cx);
    opened
}

/// Finds the SA and checks the sequence number (RFC 4303 3.4.2, 3.4.3); touches no octet.
#[inline(always)]
fn admit<'a, F: Frame>(frame: &F, at: usize, cx: &Context<'a>) -> Result<Opening<'a>, Verdict> {
    let packet = frame.data().get(at..).unwrap_or_default();
    let header = esp::parse(packet).ok_or(Verdict::EspTruncated)?;
    let (tables, state) = (cx.tables, cx.state);
    let slot = tables.inbound_slot(header.spi).ok_or(Verdict::UnknownSpi)?;
    let sa = tables.inbound(slot);
    if sa.epoch() != state.epoch() {
        cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
        return Err(Verdict::SaOrphaned);
    }
    cx.engine.prefetch(tables.inbound_key(slot), packet.len());
    let window = state.window(slot, sa);
    let number = if sa.esn() { window.extend(header.sequence) } else { u64::from(header.sequence) };
    if let Err(refused) = window.check(number) {
        let verdict = verdict_of(refused);
        refuse(slot, verdict, cx);
        return Err(verdict);
    }
    let aad =
        if sa.esn() { Aad::with_esn(header.spi, number) } else { Aad::new(header.spi, header.sequence) };
    Ok(Opening { slot, sa, number, iv: header.iv, aad, text: at + esp::HEADER + esp::IV })
}

/// Runs the engine over all of them at once; returns those whose tag was right.
#[inline(always)]
fn run_engine<F: Frame>(
    picks: Picks,
    openings: &[Opening<'_>],
    batch: &mut Batch<F>,
    cx: &Context<'_>,
) -> Picks {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    for ((_, frame), opening) in batch.each(picks).zip(openings) {
        jobs.push(Job {
            key: cx.tables.inbound_key(opening.slot),
            iv: opening.iv,
            aad: opening.aad,
            direction: Direction::Open,
            text: frame.data_mut().get_mut(opening.text..).unwrap_or_default(),
            done: false,
        });
    }
    cx.engine.run(&mut jobs);
    let mut right = Picks::default();
    picks.into_iter().zip(&jobs).filter(|(_, job)| job.done).for_each(|(index, _)| right.insert(index));
    right
}

/// Marks the number, takes the wrapping off and checks what was inside.
#[inline(always)]
fn finish<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    opening: &Opening<'_>,
    right: bool,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    if !right {
        return Err(Verdict::AuthFailed);
    }
    cx.state.window(opening.slot, opening.sa).mark(opening.number).map_err(verdict_of)?;
    cx.tally.note(Note::Opened, 1);
    frame.trim_back(TAG_LEN);
    let text = frame.data().get(opening.text..).unwrap_or_default();
    let (payload, next_header) = esp::read_trailer(text).ok_or(Verdict::EspTrailer)?;
    let tail = text.len() - payload;
    match next_header {
        esp::NEXT_IPV4 => {}
        esp::NEXT_NONE => return Err(Verdict::EspDummy),
        _ => return Err(Verdict::EspTrailer),
    }
    frame.trim_back(tail);
    frame.trim_front(opening.text);
    inner(frame, meta, opening.sa.tunnel(), cx)
}

/// The inner packet: whole, ECN combined, covered by the tunnel's selectors.
#[inline(always)]
fn inner<F: Frame>(frame: &mut F, meta: &mut Meta, tunnel: u32, cx: &Context<'_>) -> Result<(), Verdict> {
    let mut ip = parse::ip(frame, 0).map_err(|_| Verdict::InnerMalformed)?;
    let covered = cx.tables.tunnel(tunnel).is_some_and(|it| it.covers_inbound(ip.source, ip.destination));
    if !covered {
        return Err(Verdict::SelectorInbound);
    }
    let ecn = ipv4::ecn_after_tunnel(meta.ip.tos, ip.tos).ok_or(Verdict::EcnInvalid)?;
    if ecn != ip.tos & 3 {
        ipv4::set_ecn(frame.data_mut(), ecn);
        // The next tunnel copies it from here.
        ip.tos = (ip.tos & !3) | ecn;
    }
    *meta = fresh(ip, 0, meta.port, Origin::Tunnel(tunnel));
    Ok(())
}

fn verdict_of(refused: Refused) -> Verdict {
    match refused {
        Refused::Replayed => Verdict::Replayed,
        Refused::TooOld => Verdict::TooOld,
    }
}

/// Counts a refusal at its SA too.
#[cold]
fn refuse(slot: u32, verdict: Verdict, cx: &Context<'_>) {
    match verdict {
        Verdict::Replayed | Verdict::TooOld => cx.state.inbound(slot).account_refused(1, 0),
        Verdict::AuthFailed => cx.state.inbound(slot).account_refused(0, 1),
        _ => {}
    }
}

/// Packets and inner octets of one SA, added to its shared counters once a run of packets.
#[derive(Default)]
struct Account {
    slot: u32,
    packets: u64,
    bytes: u64,
}

impl Account {
    #[inline(always)]
    fn add(&mut self, slot: u32, bytes: usize, cx: &Context<'_>) {
        if slot != self.slot {
            self.flush(cx);
            self.slot = slot;
        }
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    #[inline(always)]
    fn flush(&mut self, cx: &Context<'_>) {
        if self.packets > 0 {
            cx.state.inbound(self.slot).account(self.packets, self.bytes, cx.now);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}
