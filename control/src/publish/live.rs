//! One tunnel that is in `tables` and its SAs: what control knows of them besides what stands there. RFC 4301 section 4.4
//! says what an SA holds, RFC 4303 section 3.3.3 when its numbers end.

use std::collections::BTreeMap;
use std::time::Instant;

use penstock_tables::TableFull;
use penstock_tables::{InboundSpec, KeyBlock, OutboundSpec, Selector, StateView, TablesWriter, TunnelSpec};

use super::journal::Journal;
use super::lab::{ChainId, Material, fixed_id};
use super::plan::{Keys, Plan};
use super::watch::Watch;

/// Sequence numbers are granted (and recorded on disk) in runs of 2 to this power.
const GRANT_LOG2_ESN: u8 = 30;
/// The same without extended sequence numbers, of which there are 2^32 - 1.
const GRANT_LOG2_SHORT: u8 = 26;
/// Packets and inner octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Inner octets.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn of((packets, bytes, _): (u64, u64, u64)) -> Traffic {
        Traffic { packets, bytes }
    }

    pub(super) fn since(self, earlier: Traffic) -> Traffic {
        Traffic {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    pub(super) fn add(&mut self, other: Traffic) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Packets that an SA was to open and did not, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refused {
    /// Replayed, or older than the window.
    pub replay: u64,
    /// With a wrong tag.
    pub auth_failed: u64,
}

impl Refused {
    fn of((replay, auth_failed): (u64, u64)) -> Refused {
        Refused { replay, auth_failed }
    }

    /// Each with its word.
    pub fn by_reason(self) -> [(&'static str, u64); 2] {
        [("replay", self.replay), ("auth_failed", self.auth_failed)]
    }

    pub(super) fn since(self, earlier: Refused) -> Refused {
        Refused {
            replay: self.replay.saturating_sub(earlier.replay),
            auth_failed: self.auth_failed.saturating_sub(earlier.auth_failed),
        }
    }

    pub(super) fn add(&mut self, other: Refused) {
        self.replay += other.replay;
        self.auth_failed += other.auth_failed;
    }
}

/// The SA that seals.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Its slot.
    pub slot: u32,
    /// Slot of the child that it seals for.
    pub tunnel: u32,
    /// Its SPI.
    pub spi: u32,
    /// Inbound SPI of the SA that was negotiated together with it; 0 for lab keys.
    pub pair: u32,
    /// The worker that alone seals with it (RFC 9611); otherwise all that have none of their own do.
    pub worker: Option<u32>,
    /// Generation of its key; 0 for a fixed and for a negotiated one.
    pub generation: u32,
    /// Last sequence number that is granted.
    pub granted: u64,
    /// Where its numbers begin on the slot's word.
    pub offset: u64,
    pub(super) first: u64,
    pub(super) before: Traffic,
}

impl Outbound {
    /// The last sequence number that was reserved.
    pub fn sequence(&self, state: &StateView) -> u64 {
        state.outbound(self.slot).last_reserved(self.offset)
    }

    /// What it sealed since this control knows it.
    pub fn traffic(&self, state: &StateView) -> Traffic {
        Traffic::of(state.outbound(self.slot).totals()).since(self.before)
    }
}

/// An SA that opens.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Its slot.
    pub slot: u32,
    /// Slot of the child whose selectors judge what it opens.
    pub tunnel: u32,
    /// Its SPI.
    pub spi: u32,
    /// Where its numbers begin on the slot's replay ring.
    pub base: u64,
    before: Traffic,
    refused_before: Refused,
}

impl Inbound {
    /// One whose slot has counted for others until now, in the slot `tunnel`.
    pub(super) fn new(slot: u32, tunnel: u32, spi: u32, base: u64, state: &StateView) -> Inbound {
        let counters = state.inbound(slot);
        let (before, refused_before) = (Traffic::of(counters.totals()), Refused::of(counters.refusals()));
        Inbound { slot, tunnel, spi, base, before, refused_before }
    }

    /// The highest sequence number that was opened, 0 before the first.
    pub fn sequence(&self, state: &StateView) -> u64 {
        state.inbound(self.slot).top().saturating_sub(self.base)
    }

    /// What it opened since this control knows it.
    pub fn traffic(&self, state: &StateView) -> Traffic {
        Traffic::of(state.inbound(self.slot).totals()).since(self.before)
    }

    /// What it refused since this control knows it.
    pub fn refused(&self, state: &StateView) -> Refused {
        Refused::of(state.inbound(self.slot).refusals()).since(self.refused_before)
    }
}

/// One child of a tunnel: selectors, the slot that they stand in for as long as it lives, and what seals what they cover.
#[derive(Debug)]
pub struct Child {
    /// Its slot.
    pub slot: u32,
    /// Inner addresses on this side.
    pub local: Vec<Selector>,
    /// Inner addresses on the peer's side.
    pub remote: Vec<Selector>,
    /// The SA that seals now.
    pub outbound: Option<Outbound>,
    /// The SAs that single workers seal with now, by worker (RFC 9611).
    pub of_worker: BTreeMap<u32, Outbound>,
}

impl Child {
    pub(super) fn new(slot: u32, spec: &TunnelSpec) -> Child {
        let (local, remote) = (spec.local.clone(), spec.remote.clone());
        Child { slot, local, remote, outbound: None, of_worker: BTreeMap::new() }
    }

    /// Whether these are its selectors.
    pub(super) fn is_for(&self, local: &[Selector], remote: &[Selector]) -> bool {
        self.local == local && self.remote == remote
    }

    /// The SAs that seal now.
    pub fn sealing(&self) -> impl Iterator<Item = &Outbound> {
        self.outbound.iter().chain(self.of_worker.values())
    }
}

/// A tunnel that is in the tables.
#[derive(Debug)]
pub struct Live {
    /// Its own slot, which routes lead to, with the selectors of the file: nothing passes that these do not cover.
    pub own: Child,
    /// Children whose selectors are others than the file's, newest first: the peer narrowed them, or the file has changed since.
    pub others: Vec<Child>,
    /// What it should be.
    pub plan: Plan,
    /// Negotiated SAs that sealed before and were not removed yet, by the inbound SPI of their pair.
    pub standby: BTreeMap<u32, Outbound>,
    /// The SAs that open, by generation; 0 for a fixed key. Negotiated ones by SPI.
    pub inbound: BTreeMap<u32, Inbound>,
    /// What was negotiated, where it is otherwise than the file says: selectors, the peer's address, the largest packet.
    pub negotiated: Option<TunnelSpec>,
    /// Generation of the keys; 0 for fixed ones.
    pub generation: u32,
    /// The highest generation that the peer is known to have reached.
    pub peer_generation: u32,
    /// Why it has no SA.
    pub problem: Option<String>,
    /// What was seen of it.
    pub watch: Watch,
    pub(super) stepped: Instant,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
    pub(super) refused: Refused,
}

impl Live {
    pub(super) fn new(own: Child, plan: Plan, journal: &Journal) -> Live {
        let (generation, peer_generation) = match &plan.keys {
            Keys::Fixed { .. } | Keys::Ike => (0, 0),
            Keys::Derived { chain, first } => match journal.get(chain.id()) {
                Some(record) => (record.generation, record.generation.saturating_sub(1)),
                None => (*first, *first),
            },
        };
        Live {
            own,
            others: Vec::new(),
            plan,
            standby: BTreeMap::new(),
            inbound: BTreeMap::new(),
            negotiated: None,
            generation,
            peer_generation,
            problem: None,
            watch: Watch::default(),
            stepped: Instant::now(),
            sent: Traffic::default(),
            received: Traffic::default(),
            refused: Refused::default(),
        }
    }

    /// Its children, in no order that matters.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        std::iter::once(&self.own).chain(&self.others)
    }

    pub(super) fn children_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        std::iter::once(&mut self.own).chain(&mut self.others)
    }

    /// The SA that seals now, of the first child that has one.
    pub fn outbound(&self) -> Option<&Outbound> {
        self.children().find_map(|child| child.outbound.as_ref())
    }

    /// Largest outer packet on the way to the peer, in octets.
    pub fn outer_mtu(&self) -> u16 {
        self.plan.outer_mtu
    }

    /// Its outbound SAs, those that are not in use any more last.
    pub fn all_outbound(&self) -> impl Iterator<Item = &Outbound> {
        self.children().flat_map(Child::sealing).chain(self.standby.values())
    }

    /// What was sent and received since this control knows the tunnel, over all its SAs.
    pub fn traffic(&self, state: &StateView) -> (Traffic, Traffic) {
        let (mut sent, mut received) = (self.sent, self.received);
        self.all_outbound().for_each(|sa| sent.add(sa.traffic(state)));
        self.inbound.values().for_each(|sa| received.add(sa.traffic(state)));
        (sent, received)
    }

    /// What was refused since this control knows the tunnel, over all its SAs.
    pub fn refused(&self, state: &StateView) -> Refused {
        let mut refused = self.refused;
        self.inbound.values().for_each(|sa| refused.add(sa.refused(state)));
        refused
    }

    /// Names its outbound key in the journal; negotiated keys are not in it, for none outlives a reboot.
    pub(super) fn chain(&self) -> Option<ChainId> {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => Some(chain.id()),
            Keys::Fixed { outbound, .. } => Some(fixed_id(outbound)),
            Keys::Ike => None,
        }
    }

    /// What it should seal with, where the file says it.
    pub(super) fn outbound_material(&self) -> Option<Material> {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => Some(chain.outbound(self.generation)),
            Keys::Fixed { outbound, .. } => Some(outbound.clone()),
            Keys::Ike => None,
        }
    }

    /// Generations that it should open.
    pub(super) fn open_generations(&self) -> std::ops::RangeInclusive<u32> {
        match &self.plan.keys {
            Keys::Derived { .. } => {
                self.generation.saturating_sub(1).max(1)..=self.generation.saturating_add(1)
            }
            Keys::Fixed { .. } => 0..=0,
            #[expect(clippy::reversed_empty_ranges, reason = "none")]
            Keys::Ike => 1..=0,
        }
    }

    /// Whether the file itself says its keys.
    pub(super) fn has_lab_keys(&self) -> bool {
        !matches!(self.plan.keys, Keys::Ike)
    }

    /// Whether it cannot open the generation in use although it has found room: another tunnel has the SPI.
    pub(super) fn is_shut_out(&self) -> bool {
        matches!(self.plan.keys, Keys::Derived { .. })
            && self.problem.is_none()
            && !self.inbound.contains_key(&self.generation)
    }

    pub(super) fn inbound_material(&self, generation: u32) -> Option<Material> {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => Some(chain.inbound(generation)),
            Keys::Fixed { inbound, .. } => Some(inbound.clone()),
            Keys::Ike => None,
        }
    }

    pub(super) fn grant_log2(&self) -> u8 {
        if self.plan.form.esn { GRANT_LOG2_ESN } else { GRANT_LOG2_SHORT }
    }

    /// The grant that follows `used`.
    pub(super) fn grant_after(&self, used: u64) -> u64 {
        let most = if self.plan.form.esn { u64::MAX - 1 } else { u64::from(u32::MAX) };
        used.saturating_add(1 << self.grant_log2()).min(most)
    }

    /// Whether keys or form are others than `plan`'s, so that its SAs cannot stay. What is negotiated stays until IKEv2
    /// replaces it.
    pub(super) fn other_sas(&self, plan: &Plan) -> bool {
        let same = |one: &Material, other: &Material| {
            one.spi == other.spi && one.salt == other.salt && one.key == other.key
        };
        let same_keys = match (&self.plan.keys, &plan.keys) {
            (Keys::Derived { chain: one, .. }, Keys::Derived { chain: other, .. }) => one == other,
            (
                Keys::Fixed { outbound, inbound },
                Keys::Fixed { outbound: new_outbound, inbound: new_inbound },
            ) => same(outbound, new_outbound) && same(inbound, new_inbound),
            (Keys::Ike, Keys::Ike) => true,
            _ => false,
        };
        self.plan.form != plan.form || !same_keys
    }
}

/// An SA that a tunnel should have and has not.
#[derive(Clone, Copy, Debug)]
pub(super) enum Missing {
    Outbound,
    Inbound(u32),
}

/// What is missing, inbound first: what the peer sends is opened before it can learn that this gateway is there.
pub(super) fn missing(live: &Live) -> impl Iterator<Item = Missing> {
    let inbound = live.open_generations().filter(|one| !live.inbound.contains_key(one)).map(Missing::Inbound);
    let seals = live.own.outbound.as_ref().is_some_and(|sa| sa.generation == live.generation);
    inbound.chain((live.has_lab_keys() && !seals).then_some(Missing::Outbound))
}

pub(super) fn add_inbound(
    live: &mut Live,
    tables: &mut TablesWriter,
    state: &StateView,
    generation: u32,
    spi: u32,
    key: KeyBlock,
) -> Result<(), TableFull> {
    let slot = tables.reserve_spi(spi)?;
    let sa = Inbound::new(slot, live.own.slot, spi, state.inbound(slot).top(), state);
    let form = &live.plan.form;
    let spec = InboundSpec { tunnel: live.own.slot, key, esn: form.esn, window: form.window };
    tables.install_inbound_at(slot, spi, spec, state);
    live.inbound.insert(generation, sa);
    Ok(())
}

/// Installs the SA of the present generation, switches to it and takes the old one out. Numbers up to `used` are gone.
pub(super) fn add_outbound(
    live: &mut Live,
    tables: &mut TablesWriter,
    state: &StateView,
    spi: u32,
    key: KeyBlock,
    used: u64,
    granted: u64,
) -> Result<(), TableFull> {
    let form = &live.plan.form;
    let spec = OutboundSpec {
        spi,
        tunnel: live.own.slot,
        key,
        esn: form.esn,
        udp: form.udp,
        dont_fragment: form.dont_fragment,
        template: form.template,
        last_used: used,
        hard_limit: granted,
        soft_log2: live.grant_log2() - 1,
    };
    let slot = tables.install_outbound(spec, state)?;
    let before = Traffic::of(state.outbound(slot).totals());
    let offset = state.outbound(slot).offset_after(used);
    tables.switch_outbound(live.own.slot, Some(slot));
    let fresh = Outbound {
        slot,
        tunnel: live.own.slot,
        spi,
        pair: 0,
        worker: None,
        generation: live.generation,
        granted,
        offset,
        first: used,
        before,
    };
    if let Some(old) = live.own.outbound.replace(fresh) {
        live.sent.add(old.traffic(state));
        tables.retire_outbound(old.slot);
    }
    Ok(())
}

/// Takes out what opens other generations than `live` should open.
pub(super) fn trim(live: &mut Live, tables: &mut TablesWriter, state: &StateView) {
    let wanted = live.open_generations();
    let over: Vec<u32> = live.inbound.keys().copied().filter(|one| !wanted.contains(one)).collect();
    over.iter().for_each(|one| retire_inbound(live, tables, state, *one));
}

pub(super) fn retire_inbound(live: &mut Live, tables: &mut TablesWriter, state: &StateView, generation: u32) {
    if let Some(old) = live.inbound.remove(&generation) {
        live.received.add(old.traffic(state));
        live.refused.add(old.refused(state));
        tables.retire_inbound(old.slot);
    }
}

/// Takes all SAs of a tunnel out; its packets are dropped from now on. Returns the slots of children that it has no more, to be
/// retired when no route leads to them.
pub(super) fn take_out(live: &mut Live, tables: &mut TablesWriter, state: &StateView) -> Vec<u32> {
    live.negotiated = None;
    live.children().for_each(|child| tables.switch_outbound(child.slot, None));
    let mut gone: Vec<Outbound> = std::mem::take(&mut live.standby).into_values().collect();
    for child in live.children_mut() {
        gone.extend(
            child.outbound.take().into_iter().chain(std::mem::take(&mut child.of_worker).into_values()),
        );
    }
    for old in gone {
        live.sent.add(old.traffic(state));
        tables.retire_outbound(old.slot);
    }
    for generation in live.inbound.keys().copied().collect::<Vec<_>>() {
        retire_inbound(live, tables, state, generation);
    }
    live.sweep(tables)
}
