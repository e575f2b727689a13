//! ESP in, inner IPv4 packets out (RFC 4303 section 3.4, RFC 4106): SA by SPI, replay window before and after the tag,
//! trailer, selectors (RFC 4301 section 5.2), ECN (RFC 6040).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::replay::Refused;
use penstock_tables::{InboundSa, Note, Verdict};

use super::classify::{Sealed, SealedList};
use super::{Context, Item, List, Meta, Origin, parse};
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

/// Opens every packet of `sealed`; what is whole, new and allowed goes to `plain`.
#[inline(always)]
pub fn open<F: Frame>(sealed: &mut SealedList<F>, plain: &mut List<F>, cx: &mut Context<'_>) {
    if sealed.is_empty() {
        return;
    }
    let mut openings: ArrayVec<Opening<'_>, BURST> = ArrayVec::new();
    let mut items: List<F> = List::new();
    for Sealed { item, at } in sealed.drain(..) {
        match admit(&item, usize::from(at), cx) {
            Ok(opening) => {
                openings.push(opening);
                items.push(item);
            }
            Err(verdict) => cx.end(item.frame, verdict),
        }
    }
    let opened = run_engine(&mut items, &openings, cx);
    let mut account = Account::default();
    for ((item, opening), opened) in items.drain(..).zip(&openings).zip(opened) {
        match finish(item, opening, opened, cx) {
            Ok(item) => {
                account.add(opening.slot, item.frame.len(), cx);
                plain.push(item);
            }
            Err((frame, verdict)) => {
                refuse(opening.slot, verdict, cx);
                cx.end(frame, verdict);
            }
        }
    }
    account.flush(cx);
}

/// Finds the SA and checks the sequence number (RFC 4303 3.4.2, 3.4.3); touches no octet.
#[inline(always)]
fn admit<'a, F: Frame>(item: &Item<F>, at: usize, cx: &mut Context<'a>) -> Result<Opening<'a>, Verdict> {
    let packet = item.frame.data().get(at..).unwrap_or_default();
    let header = esp::parse(packet).ok_or(Verdict::EspTruncated)?;
    let (tables, state) = (cx.tables, cx.state);
    let slot = tables.inbound_slot(header.spi).ok_or(Verdict::UnknownSpi)?;
    let sa = tables.inbound(slot);
    if sa.epoch() != state.epoch() {
        cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
        return Err(Verdict::SaOrphaned);
    }
    cx.engine.prefetch(tables.inbound_key(slot));
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

/// Runs the engine over all of them at once.
#[inline(always)]
fn run_engine<F: Frame>(
    items: &mut List<F>,
    openings: &[Opening<'_>],
    cx: &Context<'_>,
) -> ArrayVec<bool, BURST> {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    for (item, opening) in items.iter_mut().zip(openings) {
        jobs.push(Job {
            key: cx.tables.inbound_key(opening.slot),
            iv: opening.iv,
            aad: opening.aad,
            direction: Direction::Open,
            text: &mut item.frame.data_mut()[opening.text..],
            done: false,
        });
    }
    cx.engine.run(&mut jobs);
    jobs.iter().map(|job| job.done).collect()
}

/// Marks the number, takes the wrapping off and checks what was inside.
#[inline(always)]
fn finish<F: Frame>(
    item: Item<F>,
    opening: &Opening<'_>,
    opened: bool,
    cx: &mut Context<'_>,
) -> Result<Item<F>, (F, Verdict)> {
    let Item { mut frame, meta } = item;
    if !opened {
        return Err((frame, Verdict::AuthFailed));
    }
    if let Err(refused) = cx.state.window(opening.slot, opening.sa).mark(opening.number) {
        return Err((frame, verdict_of(refused)));
    }
    cx.tally.note(Note::Opened, 1);
    frame.trim_back(TAG_LEN);
    let (payload, next_header) = match esp::read_trailer(&frame.data()[opening.text..]) {
        Some(trailer) => trailer,
        None => return Err((frame, Verdict::EspTrailer)),
    };
    match next_header {
        esp::NEXT_IPV4 => {}
        esp::NEXT_NONE => return Err((frame, Verdict::EspDummy)),
        _ => return Err((frame, Verdict::EspTrailer)),
    }
    let tail = frame.len() - opening.text - payload;
    frame.trim_back(tail);
    frame.trim_front(opening.text);
    inner(frame, meta, opening.sa.tunnel(), cx)
}

/// The inner packet: whole, ECN combined, covered by the tunnel's selectors.
#[inline(always)]
fn inner<F: Frame>(
    mut frame: F,
    outer: Meta,
    tunnel: u32,
    cx: &Context<'_>,
) -> Result<Item<F>, (F, Verdict)> {
    let Ok(mut ip) = parse::ip(&mut frame, 0) else { return Err((frame, Verdict::InnerMalformed)) };
    let covered = cx.tables.tunnel(tunnel).is_some_and(|it| it.covers_inbound(ip.source, ip.destination));
    if !covered {
        return Err((frame, Verdict::SelectorInbound));
    }
    match ipv4::ecn_after_tunnel(outer.ip.tos, ip.tos) {
        None => return Err((frame, Verdict::EcnInvalid)),
        Some(ecn) if ecn != ip.tos & 3 => {
            ipv4::set_ecn(frame.data_mut(), ecn);
            // The next tunnel copies it from here.
            ip.tos = (ip.tos & !3) | ecn;
        }
        Some(_) => {}
    }
    let origin = Origin::Tunnel(tunnel);
    Ok(Item { frame, meta: Meta { ip, l3: 0, port: outer.port, origin, answer: false } })
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
