//! The SAs of one inbound burst (RFC 4303 section 3.4.2): each found once by its SPI, with its window and its key, and counted
//! once.

use arrayvec::ArrayVec;
use penstock_tables::events::{Event, Source};
use penstock_tables::replay::{Refused, Window};
use penstock_tables::{KeyBlock, Note, Verdict};

use super::Context;
use super::batch::{Meta, Picks};
use super::slots::Slots;
use crate::port::{BURST, Frame};
use crate::wire::{esp, ipv4, read_u32};

/// One SPI in a burst, and its SA.
pub struct Flow<'a> {
    slot: u32,
    window: Window<'a>,
    /// The highest number that was marked when the burst arrived: what lies above it is new.
    highest: u64,
    key: &'a KeyBlock,
    tunnel: u32,
    /// Where its packets come from, packed; 0 where nobody asks.
    source: u64,
    esn: bool,
    /// Why there is no SA to be used, where there is none: slot, window and key mean nothing then.
    refusal: Option<Verdict>,
    /// Packets whose tag and number were right.
    opened: u64,
    packets: u64,
    bytes: u64,
}

impl<'a> Flow<'a> {
    /// Of the SA in a slot; of none, where there is a refusal.
    #[inline(always)]
    fn of(slot: u32, refusal: Option<Verdict>, cx: &Context<'a>) -> Flow<'a> {
        let sa = cx.tables.inbound(slot);
        let (window, key) = (cx.state.window(slot, sa), cx.tables.inbound_key(slot));
        let (tunnel, source, esn) = (sa.tunnel(), sa.source(), sa.esn());
        let (highest, opened, packets, bytes) = (u64::MAX, 0, 0, 0);
        Flow { slot, window, highest, key, tunnel, source, esn, refusal, opened, packets, bytes }
    }

    /// Asks for what packets of the SA will need: `low` is the transmitted number of one of them, `octets` its length.
    #[inline(always)]
    fn prefetch(&self, low: u32, octets: usize, cx: &Context<'a>) {
        cx.state.prefetch_inbound(self.slot);
        cx.state.prefetch_window(self.slot, cx.tables.inbound(self.slot), low);
        cx.tables.prefetch_tunnel(self.tunnel);
        cx.engine.prefetch(self.key, octets);
    }

    /// Whether there is an SA to be used.
    #[inline(always)]
    pub fn usable(&self) -> Result<(), Verdict> {
        self.refusal.map_or(Ok(()), Err)
    }

    /// The replay window.
    #[inline(always)]
    pub fn window(&self) -> Window<'a> {
        self.window
    }

    /// The sequence number of a packet with these transmitted bits.
    #[inline(always)]
    pub fn number(&self, low: u32) -> u64 {
        if self.esn { self.extend(low) } else { u64::from(low) }
    }

    #[inline(never)]
    fn extend(&self, low: u32) -> u64 {
        self.window.extend(low)
    }

    /// Whether the extended number of a packet seems to lie so far ahead that it is more likely old: left of the window,
    /// where the number means the next 2^32.
    #[inline(always)]
    pub fn seems_old<F: Frame>(&self, frame: &F, meta: &Meta) -> bool {
        self.esn && self.refusal.is_none() && self.is_far(frame, meta)
    }

    #[inline(always)]
    fn is_far<F: Frame>(&self, frame: &F, meta: &Meta) -> bool {
        let octets =
            frame.data().get(usize::from(meta.esp) + 4..).and_then(|octets| octets.first_chunk::<4>());
        // Ahead by 2^31 or more, in the 32 bits that are there; what is behind and in the window was not lost.
        let ahead = octets.map_or(0, |low| u32::from_be_bytes(*low).wrapping_sub(self.highest as u32));
        ahead > 1 << 31 && self.is_far_ahead(self.highest.wrapping_add(u64::from(ahead)))
    }

    #[cold]
    fn is_far_ahead(&self, number: u64) -> bool {
        number >= 1 << 32 && number > self.highest && self.number(number as u32) == number
    }

    /// Whether a number may still be accepted.
    #[inline(always)]
    pub fn check(&self, number: u64) -> Result<(), Verdict> {
        if number > self.highest { Ok(()) } else { self.check_marked(number) }
    }

    #[inline(never)]
    fn check_marked(&self, number: u64) -> Result<(), Verdict> {
        self.window.check(number).map_err(|refused| match refused {
            Refused::Replayed => Verdict::Replayed,
            Refused::TooOld => Verdict::TooOld,
        })
    }

    /// Its key.
    #[inline(always)]
    pub fn key(&self) -> &'a KeyBlock {
        self.key
    }

    /// Whether the whole 64-bit number is authenticated.
    #[inline(always)]
    pub fn esn(&self) -> bool {
        self.esn
    }

    /// Whether a packet came in UDP from elsewhere than the SA's packets do, where somebody asks.
    #[inline(always)]
    pub fn is_elsewhere<F: Frame>(&self, frame: &F, meta: &Meta) -> bool {
        self.source != 0 && outer_source(frame, meta).is_some_and(|source| source.pack() != self.source)
    }

    /// Tells control that the newest authentic packet came from `source`.
    #[cold]
    pub fn tell_moved(&self, source: Source, cx: &Context<'_>) {
        if let Some(spi) = cx.tables.inbound(self.slot).spi() {
            cx.events.push(Event::PeerMoved { spi, source });
        }
    }

    /// Slot of its tunnel.
    #[inline(always)]
    pub fn tunnel(&self) -> u32 {
        self.tunnel
    }

    /// Counts a refusal.
    #[cold]
    pub fn refuse(&self, verdict: Verdict, cx: &Context<'_>) {
        if self.refusal == Some(Verdict::UnknownSpi) {
            return;
        }
        cx.count_at(self.tunnel, verdict);
        let state = cx.state.inbound(self.slot);
        match verdict {
            Verdict::Replayed | Verdict::TooOld => state.account_refused(1, 0),
            Verdict::AuthFailed => state.account_refused(0, 1),
            _ => {}
        }
    }

    /// Counts packets that were opened, those of them that are allowed, and the octets of these.
    #[inline(always)]
    pub fn count(&mut self, opened: u64, packets: u64, bytes: u64) {
        self.opened += opened;
        self.packets += packets;
        self.bytes += bytes;
    }
}

/// Source of the outer packet around ESP, where it is in UDP.
#[inline(always)]
pub fn outer_source<F: Frame>(frame: &F, meta: &Meta) -> Option<Source> {
    let udp =
        usize::from(meta.esp).checked_sub(esp::UDP_HEADER).filter(|_| meta.ip.protocol() == ipv4::UDP)?;
    let port = frame.data().get(udp..)?.first_chunk::<2>()?;
    Some(Source { address: meta.ip.source(), port: u16::from_be_bytes(*port) })
}

/// Why the SA in a slot is not to be used.
#[inline(always)]
fn refusal(slot: Option<u32>, cx: &Context<'_>) -> Option<Verdict> {
    let Some(slot) = slot else { return Some(Verdict::UnknownSpi) };
    let sa = cx.tables.inbound(slot);
    if sa.epoch() == cx.state.epoch() {
        return None;
    }
    cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
    Some(Verdict::SaOrphaned)
}

/// The ESP of a burst, and the SPIs that are in it.
pub struct Arriving {
    picks: Picks,
    spis: Slots<BURST>,
    /// Of the first packet with each SPI: transmitted number, octets.
    firsts: ArrayVec<(u32, usize), BURST>,
}

impl Arriving {
    /// None yet.
    #[inline(always)]
    pub fn new() -> Arriving {
        Arriving { picks: Picks::default(), spis: Slots::new(), firsts: ArrayVec::new() }
    }

    /// The packets.
    #[inline(always)]
    pub fn picks(&self) -> Picks {
        self.picks
    }

    /// Adds packet `index` of the batch, whose ESP is `esp`. What is too short is refused when it is read whole.
    #[inline(always)]
    pub fn add(&mut self, index: usize, esp: &[u8], meta: &mut Meta, cx: &Context<'_>) {
        let header = esp.first_chunk::<8>();
        let (spi, low) = header.map_or((0, 0), |header| (read_u32(header, 0), read_u32(header, 4)));
        let place = self.spis.place(spi);
        if place == self.firsts.len() {
            cx.tables.prefetch_inbound(spi);
            self.firsts.push((low, esp.len()));
        }
        meta.sa = place as u8;
        self.picks.insert(index);
    }
}

/// The SAs of a burst.
pub struct Flows<'a> {
    flows: ArrayVec<Flow<'a>, BURST>,
}

impl<'a> Flows<'a> {
    /// None yet: a list of this size is filled where it stands.
    #[inline(always)]
    pub fn new() -> Flows<'a> {
        Flows { flows: ArrayVec::new() }
    }

    /// Finds the SAs of what arrived.
    #[inline(always)]
    pub fn find(&mut self, arriving: &Arriving, cx: &Context<'a>) {
        for (spi, first) in arriving.spis.iter().zip(&arriving.firsts) {
            let found = cx.tables.inbound_slot(spi);
            self.flows.push(Flow::of(found.unwrap_or(0), None, cx));
            if let (Some(flow), (low, octets)) = (self.flows.last_mut(), *first) {
                flow.refusal = refusal(found, cx);
                if flow.refusal.is_none() {
                    flow.prefetch(low, octets, cx);
                }
            }
        }
        // What was asked for is on its way from all of them.
        self.flows.iter_mut().for_each(|flow| flow.highest = flow.window.highest());
    }

    /// The slots of the SAs, for [`Flows::again`].
    pub fn slots(&self) -> ArrayVec<u32, BURST> {
        self.flows.iter().map(|flow| flow.slot).collect()
    }

    /// The flows of a burst whose SAs were found before. The slots are still theirs: a quiescent point was not passed since.
    pub fn again(&mut self, slots: &[u32], cx: &Context<'a>) {
        slots.iter().for_each(|slot| self.flows.push(Flow::of(*slot, None, cx)));
    }

    /// The flow at a place.
    #[inline(always)]
    pub fn at(&self, place: u8) -> &Flow<'a> {
        &self.flows[usize::from(place)]
    }

    /// The flow at a place, to count.
    #[inline(always)]
    pub fn at_mut(&mut self, place: u8) -> &mut Flow<'a> {
        &mut self.flows[usize::from(place)]
    }

    /// Counts a refusal at its SA too.
    #[cold]
    pub fn refuse(&self, place: u8, verdict: Verdict, cx: &Context<'_>) {
        self.at(place).refuse(verdict, cx);
    }

    /// Adds what was opened to the counters: of each SA, and of the worker.
    #[inline(always)]
    pub fn close(&self, cx: &mut Context<'_>) {
        for flow in self.flows.iter().filter(|flow| flow.opened > 0) {
            cx.tally.note(Note::Opened, flow.opened);
            if flow.packets > 0 {
                flow.window.account(flow.packets, flow.bytes, cx.now);
            }
        }
    }
}
