//! ESP in, inner IPv4 packets out (RFC 4303 section 3.4, RFC 4106): SA by SPI, replay window before and after the tag,
//! trailer, selectors (RFC 4301 section 5.2), ECN (RFC 6040).

use arrayvec::ArrayVec;
use penstock_tables::events::Source;
use penstock_tables::replay::{Marked, Window};
use penstock_tables::{Tunnel, Verdict};

use super::Context;
use super::batch::{Batch, Meta, Origin, Picks};
use super::flow::{Arriving, Flow, Flows, outer_source};
use crate::crypto::{Aad, Direction, Job, TAG_LEN};
use crate::port::{BURST, Frame};
use crate::wire::{esp, ipv4};

/// A packet whose SA is found and whose number may still be accepted.
#[derive(Clone, Copy)]
struct Opening {
    number: u64,
    index: u8,
    /// Its SA among the [`Flows`] of the burst.
    flow: u8,
    /// What is wrong inside, where [`verify`] looked.
    wrong: Option<Verdict>,
}

/// SAs of a burst whose peers may have moved, at most; of others the next burst tells.
const MOVES: usize = 4;

/// The newest packet of an SA whose tag was right and that came from elsewhere.
#[derive(Clone, Copy)]
struct Move {
    flow: u8,
    /// In the batch.
    index: u8,
    number: u64,
    source: Source,
}

type Moves = ArrayVec<Move, MOVES>;

/// Packets of a burst that are looked at twice, at most: nobody can make us work much more than that by sending what is
/// old.
const OLDS: usize = 4;
/// Octets of text that are looked at twice, at most.
const OLD_TEXT: usize = 2048;

/// The packets of a burst between the look at their SA and the marking of their numbers.
#[derive(Default)]
pub struct Openings {
    list: ArrayVec<Opening, BURST>,
    /// Slots of the SAs, in the order of the [`Flows`].
    slots: ArrayVec<u32, BURST>,
    /// Places in `list` of those whose tag was right.
    right: Picks,
    moves: Moves,
}

/// Opens what arrived; returns the packets that are whole, new and allowed.
#[inline(always)]
pub fn open<'a, F: Frame>(arriving: &Arriving, batch: &mut Batch<F>, cx: &mut Context<'a>) -> Picks {
    if arriving.picks().is_empty() {
        return Picks::default();
    }
    let mut flows = Flows::new();
    flows.find(arriving, cx);
    let (mut list, mut moves) = (ArrayVec::new(), Moves::new());
    let right = decrypt(arriving.picks(), &mut list, &mut moves, &flows, batch, cx);
    accept_all(&list, right, &mut moves, &mut flows, batch, cx, |_, frame, meta, flow, tunnel, cx| {
        unwrap(frame, meta, flow, tunnel, cx)
    })
}

/// The part of [`open`] that needs no order among packets, for a worker that does it for another: all but the marking.
pub fn verify<F: Frame>(
    arriving: &Arriving,
    work: &mut Openings,
    batch: &mut Batch<F>,
    cx: &mut Context<'_>,
) {
    let mut flows = Flows::new();
    flows.find(arriving, cx);
    work.list.clear();
    work.moves.clear();
    work.slots = flows.slots();
    work.right = decrypt(arriving.picks(), &mut work.list, &mut work.moves, &flows, batch, cx);
    let right = work.right;
    for (_, opening) in work.list.iter_mut().enumerate().filter(|(at, _)| right.contains(*at)) {
        let Some((frame, meta)) = batch.get(usize::from(opening.index)) else { continue };
        let flow = flows.at(opening.flow);
        opening.wrong = unwrap(frame, meta, flow, cx.tables.tunnel(flow.tunnel()), cx).err();
    }
}

/// The rest of [`open`], in the order of arrival: window and account. Returns the packets that are whole, new and allowed.
pub fn accept<F: Frame>(work: &mut Openings, batch: &mut Batch<F>, cx: &mut Context<'_>) -> Picks {
    let mut flows = Flows::new();
    flows.again(&work.slots, cx);
    accept_all(&work.list, work.right, &mut work.moves, &mut flows, batch, cx, |opening, _, meta, _, _, _| {
        opening.wrong.map_or(Ok(meta.ip.total_len()), Err)
    })
}

/// Admits the picked packets and runs the engine over them; returns places in `list` of those whose tag was right.
#[inline(never)]
fn decrypt<'a, F: Frame>(
    sealed: Picks,
    list: &mut ArrayVec<Opening, BURST>,
    moves: &mut Moves,
    flows: &Flows<'a>,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
) -> Picks {
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    let mut refused: ArrayVec<(u8, Verdict), BURST> = ArrayVec::new();
    let (mut elsewhere, mut olds) = (Picks::default(), OLDS);
    for (index, frame, meta) in batch.each(sealed) {
        if flows.at(meta.sa).is_elsewhere(frame, meta) {
            elsewhere.insert(list.len());
        }
        if olds > 0 && flows.at(meta.sa).seems_old(frame, meta) {
            olds -= 1;
            if is_old(frame, meta, flows.at(meta.sa), cx) {
                refused.push((index as u8, Verdict::TooOld));
                continue;
            }
        }
        match admit(frame, meta, flows) {
            Ok((number, job)) => {
                list.push(Opening { number, index: index as u8, flow: meta.sa, wrong: None });
                jobs.push(job);
            }
            Err(verdict) => refused.push((index as u8, verdict)),
        }
    }
    cx.engine.run(&mut jobs);
    let right = Picks::of(jobs.iter().map(|job| job.done));
    drop(jobs);
    if !elsewhere.is_empty() {
        find_moves(elsewhere, right, list, moves, batch);
    }
    for (index, verdict) in refused {
        let meta = batch.meta(usize::from(index));
        flows.refuse(meta.sa, verdict, cx);
        cx.end_of(batch, usize::from(index), verdict);
    }
    right
}

/// Whether a packet whose extended number seems to lie far ahead lies left of the window instead: its tag is right for the
/// number 2^32 before (RFC 4303 appendix A2.2 knows only the one ahead). Looks at a copy, and forgets it.
#[cold]
#[inline(never)]
fn is_old<F: Frame>(frame: &F, meta: &Meta, flow: &Flow<'_>, cx: &Context<'_>) -> bool {
    let packet = frame.data().get(usize::from(meta.esp)..).unwrap_or_default();
    let Some(header) = esp::parse(packet) else { return false };
    let text = packet.get(esp::HEADER + esp::IV..).unwrap_or_default();
    let mut copy = [0; OLD_TEXT];
    let Some(to) = copy.get_mut(..text.len()) else { return false };
    to.copy_from_slice(text);
    let number = flow.number(header.sequence).wrapping_sub(1 << 32);
    let aad = Aad::with_esn(header.spi, number);
    let job = Job { key: flow.key(), iv: header.iv, aad, direction: Direction::Open, text: to, done: false };
    let mut jobs = [job];
    cx.engine.run(&mut jobs);
    let done = jobs[0].done;
    copy.fill(0);
    std::hint::black_box(&copy);
    done
}

/// The newest one of each SA among the packets from elsewhere whose tag was right. While the outer header is still at hand.
#[cold]
#[inline(never)]
fn find_moves<F: Frame>(
    elsewhere: Picks,
    right: Picks,
    list: &[Opening],
    moves: &mut Moves,
    batch: &mut Batch<F>,
) {
    let places = elsewhere.into_iter().filter(|place| right.contains(*place));
    for opening in places.filter_map(|place| list.get(place)) {
        let (flow, index, number) = (opening.flow, opening.index, opening.number);
        let Some((frame, meta)) = batch.get(usize::from(index)) else { continue };
        let Some(source) = outer_source(frame, meta) else { continue };
        let new = Move { flow, index, number, source };
        match moves.iter_mut().find(|old| old.flow == flow) {
            Some(old) if old.number < number => *old = new,
            Some(_) => {}
            None => _ = moves.try_push(new),
        }
    }
}

/// Marks the numbers of all whose tag was right, in order, and looks `inside` those that are new.
#[inline(never)]
fn accept_all<'a, F: Frame>(
    list: &[Opening],
    right: Picks,
    moves: &mut Moves,
    flows: &mut Flows<'a>,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
    inside: impl Fn(&Opening, &mut F, &mut Meta, &Flow<'a>, Option<&Tunnel>, &Context<'a>) -> Result<u16, Verdict>,
) -> Picks {
    let mut opened = Picks::default();
    // A packet that was held back on the way says nothing of where the peer is now.
    moves.retain(|it| it.number > flows.at(it.flow).window().highest());
    let mut rest = list;
    while let Some(group) = Group::mark(rest, list.len() - rest.len(), right, flows) {
        let (now, later) = rest.split_at(group.len);
        let flow = flows.at_mut(now[0].flow);
        let tunnel = cx.tables.tunnel(flow.tunnel());
        let (mut packets, mut bytes) = (0, 0);
        for (at, opening) in now.iter().enumerate() {
            let index = usize::from(opening.index);
            let Some((frame, meta)) = batch.get(index) else { continue };
            let done = group
                .verdict(at, opening, flow)
                .and_then(|()| inside(opening, frame, meta, flow, tunnel, cx));
            match done {
                Ok(octets) => {
                    (packets, bytes) = (packets + 1, bytes + u64::from(octets));
                    opened.insert(index);
                }
                Err(verdict) => {
                    flow.refuse(verdict, cx);
                    cx.end_of(batch, index, verdict);
                }
            }
        }
        flow.count(group.opened(), packets, bytes);
        rest = later;
    }
    for it in moves.iter().filter(|it| opened.contains(usize::from(it.index))) {
        let flow = flows.at(it.flow);
        if flow.window().highest() == it.number {
            flow.tell_moved(it.source, cx);
        }
    }
    flows.close(cx);
    opened
}

/// Checks the sequence number (RFC 4303 3.4.3); touches no octet.
#[inline(always)]
fn admit<'f, 'a: 'f, F: Frame>(
    frame: &'f mut F,
    meta: &Meta,
    flows: &Flows<'a>,
) -> Result<(u64, Job<'f>), Verdict> {
    let at = usize::from(meta.esp);
    let packet = frame.data_mut().get_mut(at..).unwrap_or_default();
    let header = esp::parse(packet).ok_or(Verdict::EspTruncated)?;
    let flow = flows.at(meta.sa);
    flow.usable()?;
    let number = flow.number(header.sequence);
    flow.check(number)?;
    let aad =
        if flow.esn() { Aad::with_esn(header.spi, number) } else { Aad::new(header.spi, header.sequence) };
    let text = packet.get_mut(esp::HEADER + esp::IV..).unwrap_or_default();
    Ok((number, Job { key: flow.key(), iv: header.iv, aad, direction: Direction::Open, text, done: false }))
}

/// Packets in a row of one SA and one block of its window, whose numbers are marked at once.
struct Group {
    len: usize,
    /// One bit for each packet that may go on: its tag was right, and its number is new.
    new: u64,
    /// The bits of its numbers that lie left of the window.
    old: u32,
    /// One bit for each packet whose tag was right.
    right: u64,
}

impl Group {
    /// Marks the first ones of `openings`, the first of which is number `from` in its burst; `None` where there is none.
    #[inline(always)]
    fn mark(openings: &[Opening], from: usize, right: Picks, flows: &Flows<'_>) -> Option<Group> {
        let first = openings.first()?;
        let window = flows.at(first.flow).window();
        let block = window.block(first.number).0;
        let (mut len, mut bits, mut twice) = (0, 0, 0);
        for opening in openings {
            let (its, bit) = window.block(opening.number);
            if opening.flow != first.flow || its != block {
                break;
            }
            twice |= bits & bit;
            bits |= bit;
            len += 1;
        }
        let (all, right) = (u64::MAX >> (64 - len), right.bits() >> from);
        if right & all != all || twice != 0 {
            return Some(Group::mark_some(&openings[..len], right & all, window));
        }
        let marked = window.mark_block(block, bits);
        Some(match marked.new == bits {
            true => Group { len, new: all, old: 0, right: all },
            false => Group::sorted(&openings[..len], all, window, marked),
        })
    }

    /// As `mark`, where not every tag was right, or a number is there twice: the first one with it counts.
    #[cold]
    #[inline(never)]
    fn mark_some(openings: &[Opening], right: u64, window: Window<'_>) -> Group {
        let of = |at: usize| window.block(openings[at].number);
        let some = (0..openings.len()).filter(|at| right >> at & 1 != 0);
        let bits = some.fold(0, |bits, at| bits | of(at).1);
        let marked = if bits == 0 { Marked { new: 0, old: 0 } } else { window.mark_block(of(0).0, bits) };
        Group::sorted(openings, right, window, marked)
    }

    /// What became of each packet, where not all may go on.
    #[cold]
    #[inline(never)]
    fn sorted(openings: &[Opening], right: u64, window: Window<'_>, marked: Marked) -> Group {
        let (mut new, mut left) = (0, marked.new);
        for (at, opening) in openings.iter().enumerate().filter(|(at, _)| right >> at & 1 != 0) {
            let (_, bit) = window.block(opening.number);
            new |= u64::from(left & bit != 0) << at;
            left &= !bit;
        }
        Group { len: openings.len(), new, old: marked.old, right }
    }

    /// Packets whose tag and number were right.
    #[inline(always)]
    fn opened(&self) -> u64 {
        u64::from(self.new.count_ones())
    }

    /// Whether packet `at` may go on.
    #[inline(always)]
    fn verdict(&self, at: usize, opening: &Opening, flow: &Flow<'_>) -> Result<(), Verdict> {
        if self.new >> at & 1 != 0 { Ok(()) } else { Err(self.refusal(at, opening, flow)) }
    }

    #[cold]
    fn refusal(&self, at: usize, opening: &Opening, flow: &Flow<'_>) -> Verdict {
        let (_, bit) = flow.window().block(opening.number);
        match self.right >> at & 1 {
            0 => Verdict::AuthFailed,
            _ if self.old & bit != 0 => Verdict::TooOld,
            _ => Verdict::Replayed,
        }
    }
}

/// Takes the wrapping off and checks what was inside; returns the octets of the inner packet.
#[inline(always)]
fn unwrap<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    flow: &Flow<'_>,
    tunnel: Option<&Tunnel>,
    cx: &Context<'_>,
) -> Result<u16, Verdict> {
    let at = usize::from(meta.esp) + esp::HEADER + esp::IV;
    let Some((text, _tag)) = frame.data().get(at..).and_then(|text| text.split_last_chunk::<TAG_LEN>())
    else {
        return Err(Verdict::EspTrailer);
    };
    let payload = match esp::read_ipv4_trailer(text) {
        Some(payload) => payload,
        None => trailer(text)?,
    };
    let Some(packet) = text.get(..payload) else { return Err(Verdict::InnerMalformed) };
    let ip = ipv4::parse(packet).map_err(|_| Verdict::InnerMalformed)?;
    let outer = meta.ip.tos();
    let group = tunnel.map_or(penstock_tables::NONE, Tunnel::group);
    meta.begin(ip, 0, meta.port, Origin::Tunnel(group));
    let ip = &meta.ip;
    if !tunnel.is_some_and(|tunnel| tunnel.covers_inbound(ip.source(), ip.destination())) {
        return Err(Verdict::SelectorInbound);
    }
    if group != flow.tunnel() {
        own_selectors(group, ip, cx)?;
    }
    let count = ip.total_len();
    meta.route = cx.fib.find(ip.destination());
    frame.narrow(at, usize::from(count));
    // Other codepoints of the outer header change nothing inside.
    if outer & 1 != 0 {
        take_ecn(outer, frame, meta)?;
    }
    Ok(count)
}

/// Of a tunnel with several children: what the file says of the tunnel goes before what was negotiated for a child.
#[inline(never)]
fn own_selectors(group: u32, ip: &ipv4::Ipv4, cx: &Context<'_>) -> Result<(), Verdict> {
    let covers = |tunnel: &Tunnel| tunnel.covers_inbound(ip.source(), ip.destination());
    cx.tables.tunnel(group).is_some_and(covers).then_some(()).ok_or(Verdict::SelectorInbound)
}

/// Octets of payload of a text whose trailer is not the shortest that there is.
#[cold]
#[inline(never)]
fn trailer(text: &[u8]) -> Result<usize, Verdict> {
    match esp::read_trailer(text) {
        Some((payload, esp::NEXT_IPV4)) => Ok(payload),
        Some((_, esp::NEXT_NONE)) => Err(Verdict::EspDummy),
        _ => Err(Verdict::EspTrailer),
    }
}

/// What congestion on the way, or ECT(1), leaves on the inner packet (RFC 6040 figure 4).
#[cold]
#[inline(never)]
fn take_ecn<F: Frame>(outer: u8, frame: &mut F, meta: &mut Meta) -> Result<(), Verdict> {
    let ecn = ipv4::ecn_after_tunnel(outer, meta.ip.tos()).ok_or(Verdict::EcnInvalid)?;
    if ecn != meta.ip.tos() & 3 {
        ipv4::set_ecn(frame.data_mut(), ecn);
        // The next tunnel copies it from here.
        meta.ip = meta.ip.with_ecn(ecn);
    }
    Ok(())
}
