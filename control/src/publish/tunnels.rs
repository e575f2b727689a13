//! Tunnels and their SAs in `tables`: plans enter, slots are added, changed in place, retired; a restarted control adopts
//! what it finds. RFC 4301 section 4.4 says what an SA holds, RFC 4303 section 3.3.3 when its numbers end.
//!
//! **Rekeying lab keys.** A gateway whose generation is g seals with g and opens g-1, g and g+1. To step is to retire
//! inbound g-1, install inbound g+2, install outbound g+1 and switch to it, in this order: the other gateway opens g+1
//! already. A gateway that opens a packet of g+1 steps as well. So either side may begin, and both may begin at once.
//! Stepping again before the other side has followed would leave it behind; that is refused ([`StepError::Behind`]).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use penstock_tables::tables::TableFull;
use penstock_tables::{InboundSpec, OutboundSpec, StateView, TablesWriter};
use rayon::prelude::*;

use super::journal::{Journal, JournalError, Record};
use super::lab::{ChainId, Material, fixed_id};
use super::plan::{Keys, Plan};

/// Sequence numbers are granted (and recorded on disk) in runs of 2 to this power.
const GRANT_LOG2_ESN: u8 = 30;
/// The same without extended sequence numbers, of which there are 2^32 - 1.
const GRANT_LOG2_SHORT: u8 = 26;
/// A gateway that has sent on its generation for so long is taken to be followed.
const FOLLOWED: Duration = Duration::from_millis(500);
/// Keys that are expanded before any of them is installed: 1 KiB each.
const BATCH: usize = 4096;
/// Tunnels that one round of [`Tunnels::watch`] looks at, so that 100,000 of them do not hold the process up.
const WATCHED: usize = 8192;

/// Packets and inner octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Inner octets.
    pub bytes: u64,
}

impl Traffic {
    fn of((packets, bytes, _): (u64, u64, u64)) -> Traffic {
        Traffic { packets, bytes }
    }

    fn since(self, earlier: Traffic) -> Traffic {
        Traffic {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    fn add(&mut self, other: Traffic) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// The SA that seals.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Its slot.
    pub slot: u32,
    /// Its SPI.
    pub spi: u32,
    /// Generation of its key; 0 for a fixed one.
    pub generation: u32,
    /// Last sequence number that is granted.
    pub granted: u64,
    /// Where its numbers begin on the slot's word.
    pub offset: u64,
    first: u64,
    before: Traffic,
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
    /// Its SPI.
    pub spi: u32,
    /// Where its numbers begin on the slot's replay ring.
    pub base: u64,
    before: Traffic,
}

impl Inbound {
    /// The highest sequence number that was opened, 0 before the first.
    pub fn sequence(&self, state: &StateView) -> u64 {
        state.inbound(self.slot).top().saturating_sub(self.base)
    }

    /// What it opened since this control knows it.
    pub fn traffic(&self, state: &StateView) -> Traffic {
        Traffic::of(state.inbound(self.slot).totals()).since(self.before)
    }
}

/// A tunnel that is in the tables.
#[derive(Debug)]
pub struct Live {
    /// Its slot.
    pub slot: u32,
    /// What it should be.
    pub plan: Plan,
    /// The SA that seals now.
    pub outbound: Option<Outbound>,
    /// The SAs that open, by generation; 0 for a fixed key.
    pub inbound: BTreeMap<u32, Inbound>,
    /// Generation of the keys; 0 for fixed ones.
    pub generation: u32,
    /// The highest generation that the peer is known to have reached.
    pub peer_generation: u32,
    /// Why it has no SA.
    pub problem: Option<String>,
    stepped: Instant,
    sent: Traffic,
    received: Traffic,
}

impl Live {
    fn new(slot: u32, plan: Plan, journal: &Journal) -> Live {
        let (generation, peer_generation) = match &plan.keys {
            Keys::Fixed { .. } => (0, 0),
            Keys::Derived { chain, first } => match journal.get(chain.id()) {
                Some(record) => (record.generation, record.generation.saturating_sub(1)),
                None => (*first, *first),
            },
        };
        Live {
            slot,
            plan,
            outbound: None,
            inbound: BTreeMap::new(),
            generation,
            peer_generation,
            problem: None,
            stepped: Instant::now(),
            sent: Traffic::default(),
            received: Traffic::default(),
        }
    }

    /// What was sent and received since this control knows the tunnel, over all its SAs.
    pub fn traffic(&self, state: &StateView) -> (Traffic, Traffic) {
        let (mut sent, mut received) = (self.sent, self.received);
        self.outbound.iter().for_each(|sa| sent.add(sa.traffic(state)));
        self.inbound.values().for_each(|sa| received.add(sa.traffic(state)));
        (sent, received)
    }

    /// Names its outbound key in the journal.
    fn chain(&self) -> ChainId {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => chain.id(),
            Keys::Fixed { outbound, .. } => fixed_id(outbound),
        }
    }

    fn outbound_material(&self) -> Material {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => chain.outbound(self.generation),
            Keys::Fixed { outbound, .. } => outbound.clone(),
        }
    }

    /// Generations that it should open.
    fn open_generations(&self) -> std::ops::RangeInclusive<u32> {
        match &self.plan.keys {
            Keys::Derived { .. } => self.generation.saturating_sub(1).max(1)..=self.generation.saturating_add(1),
            Keys::Fixed { .. } => 0..=0,
        }
    }

    fn inbound_material(&self, generation: u32) -> Material {
        match &self.plan.keys {
            Keys::Derived { chain, .. } => chain.inbound(generation),
            Keys::Fixed { inbound, .. } => inbound.clone(),
        }
    }

    fn grant_log2(&self) -> u8 {
        if self.plan.form.esn { GRANT_LOG2_ESN } else { GRANT_LOG2_SHORT }
    }

    /// The grant that follows `used`.
    fn grant_after(&self, used: u64) -> u64 {
        let most = if self.plan.form.esn { u64::MAX - 1 } else { u64::from(u32::MAX) };
        used.saturating_add(1 << self.grant_log2()).min(most)
    }

    /// Whether keys or form are others than `plan`'s, so that its SAs cannot stay.
    fn other_sas(&self, plan: &Plan) -> bool {
        let materials = |keys: &Keys| match keys {
            Keys::Derived { chain, .. } => (chain.outbound(1), chain.inbound(1)),
            Keys::Fixed { outbound, inbound } => (outbound.clone(), inbound.clone()),
        };
        let ((out, inn), (new_out, new_inn)) = (materials(&self.plan.keys), materials(&plan.keys));
        let same = |one: &Material, other: &Material| {
            one.spi == other.spi && one.salt == other.salt && one.key == other.key
        };
        self.plan.form != plan.form || !same(&out, &new_out) || !same(&inn, &new_inn)
    }
}

/// Why a tunnel's keys were not stepped.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is no such tunnel.
    #[error("there is no tunnel {0}: `penstock show tunnels` lists them")]
    Unknown(String),
    /// Its keys are written down.
    #[error("tunnel {0} has fixed keys, which cannot be rekeyed: give it a secret_file instead")]
    Fixed(String),
    /// The peer may not have followed the last step.
    #[error(
        "tunnel {name}: the peer has been seen on generation {seen} only, and this gateway is on {own}: another step \
         could leave it behind; send traffic, step the peer, or insist with --force"
    )]
    Behind {
        /// The tunnel.
        name: String,
        /// Highest generation that the peer used.
        seen: u32,
        /// This gateway's generation.
        own: u32,
    },
    /// A generation is never used again.
    #[error("tunnel {name} is on generation {own}: it cannot go back to {asked}")]
    Back {
        /// The tunnel.
        name: String,
        /// This gateway's generation.
        own: u32,
        /// The one that was asked for.
        asked: u32,
    },
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The new SAs could not be installed; the old ones stay in use.
    #[error("tunnel {name}: {error}")]
    Table {
        /// The tunnel.
        name: String,
        /// What is full.
        error: TableFull,
    },
}

/// What a changed configuration did to the tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Changes {
    /// New tunnels.
    pub added: usize,
    /// Tunnels whose SAs were replaced.
    pub replaced: usize,
    /// Tunnels that were changed in place, without losing a packet.
    pub updated: usize,
    /// Tunnels that were taken out.
    pub removed: usize,
    /// Tunnels that were not touched.
    pub untouched: usize,
}

/// All tunnels.
#[derive(Debug)]
pub struct Tunnels {
    live: BTreeMap<String, Live>,
    by_slot: HashMap<u32, String>,
    journal: Journal,
    cursor: String,
}

impl Tunnels {
    /// None yet.
    pub fn new(journal: Journal) -> Tunnels {
        Tunnels { live: BTreeMap::new(), by_slot: HashMap::new(), journal, cursor: String::new() }
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Live)> {
        self.live.iter()
    }

    /// The tunnel of that name.
    pub fn get(&self, name: &str) -> Option<&Live> {
        self.live.get(name)
    }

    /// Name of the tunnel in `slot`.
    pub fn name_of(&self, slot: u32) -> Option<&str> {
        self.by_slot.get(&slot).map(String::as_str)
    }

    /// Takes over the tunnels of `plans` that stand in `tables` already, with those of their SAs that are still right.
    /// SAs that are not are retired. Tunnels that no plan has are returned: they have no SA any more, and are to be retired
    /// when no route leads to them.
    pub fn adopt(&mut self, tables: &mut TablesWriter, state: &StateView, plans: &BTreeMap<String, Plan>) -> Vec<u32> {
        let found: Vec<_> = tables.tunnels().map(|(slot, tunnel)| (slot, tunnel.spec().name, tunnel.outbound())).collect();
        let mut leaving = Vec::new();
        let mut sealing = HashMap::new();
        for (slot, name, outbound) in found {
            sealing.insert(slot, outbound);
            match plans.get(&name) {
                Some(plan) if !self.live.contains_key(&name) => {
                    self.by_slot.insert(slot, name.clone());
                    self.live.insert(name, Live::new(slot, plan.clone(), &self.journal));
                }
                _ => leaving.push(slot),
            }
        }
        let outbound: Vec<u32> = self.adopt_outbound(tables, state, &sealing);
        let inbound: Vec<u32> = self.adopt_inbound(tables, state);
        for live in self.live.values().filter(|live| live.outbound.is_none()) {
            tables.switch_outbound(live.slot, None);
        }
        leaving.iter().for_each(|slot| tables.switch_outbound(*slot, None));
        outbound.into_iter().for_each(|slot| tables.retire_outbound(slot));
        inbound.into_iter().for_each(|slot| tables.retire_inbound(slot));
        leaving
    }

    /// Returns the slots that hold nothing of use.
    fn adopt_outbound(
        &mut self,
        tables: &TablesWriter,
        state: &StateView,
        sealing: &HashMap<u32, Option<u32>>,
    ) -> Vec<u32> {
        let mut useless = Vec::new();
        for (slot, sa) in tables.outbound() {
            let live = self.by_slot.get(&sa.tunnel()).and_then(|name| self.live.get_mut(name));
            let Some(live) = live.filter(|_| sealing.get(&sa.tunnel()) == Some(&Some(slot))) else {
                useless.push(slot);
                continue;
            };
            let (form, material) = (&live.plan.form, live.outbound_material());
            let key = tables.outbound_key(slot);
            let right = sa.spi() == Some(material.spi)
                && key.cipher() == Some(form.cipher)
                && key.raw_key() == &material.key[..]
                && key.salt() == material.salt
                && (sa.esn(), sa.udp(), sa.dont_fragment()) == (form.esn, form.udp, form.dont_fragment as u8)
                && *sa.template() == form.template
                && sa.epoch() == state.epoch();
            if !right {
                useless.push(slot);
                continue;
            }
            live.outbound = Some(Outbound {
                slot,
                spi: material.spi,
                generation: live.generation,
                granted: sa.hard_limit(),
                offset: sa.offset(),
                first: state.outbound(slot).last_reserved(sa.offset()),
                before: Traffic::of(state.outbound(slot).totals()),
            });
        }
        useless
    }

    /// Returns the slots that hold nothing of use.
    fn adopt_inbound(&mut self, tables: &TablesWriter, state: &StateView) -> Vec<u32> {
        let mut useless = Vec::new();
        for (slot, sa) in tables.inbound() {
            let live = self.by_slot.get(&sa.tunnel()).and_then(|name| self.live.get_mut(name));
            let found = live.and_then(|live| {
                let (form, key) = (live.plan.form.clone(), tables.inbound_key(slot));
                let right = |material: &Material| {
                    sa.spi() == Some(material.spi)
                        && key.cipher() == Some(form.cipher)
                        && key.raw_key() == &material.key[..]
                        && key.salt() == material.salt
                        && (sa.esn(), sa.window()) == (form.esn, form.window)
                        && sa.epoch() == state.epoch()
                };
                let generation = live.open_generations().find(|one| right(&live.inbound_material(*one)))?;
                Some((live, generation))
            });
            let (Some((live, generation)), Some(spi)) = (found, sa.spi()) else {
                useless.push(slot);
                continue;
            };
            let before = Traffic::of(state.inbound(slot).totals());
            live.inbound.insert(generation, Inbound { slot, spi, base: sa.base(), before });
        }
        useless
    }

    /// Compares with `plans`: changes in place what can be, takes the SAs of the rest out. Returns the slots of tunnels
    /// that leave; retire them when no route leads to them. Call [`Tunnels::fill`] when `tables` has reclaimed.
    pub fn prepare(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        plans: &BTreeMap<String, Plan>,
    ) -> (Changes, Vec<u32>) {
        let mut changes = Changes::default();
        let gone: Vec<String> = self.live.keys().filter(|name| !plans.contains_key(*name)).cloned().collect();
        let mut leaving = Vec::new();
        for name in gone {
            if let Some(mut live) = self.live.remove(&name) {
                take_out(&mut live, tables, state);
                self.by_slot.remove(&live.slot);
                leaving.push(live.slot);
                changes.removed += 1;
            }
        }
        for (name, plan) in plans {
            let Some(live) = self.live.get_mut(name) else {
                changes.added += 1;
                continue;
            };
            if live.other_sas(plan) {
                take_out(live, tables, state);
                let fresh = Live::new(live.slot, plan.clone(), &self.journal);
                *live = Live { sent: live.sent, received: live.received, ..fresh };
                changes.replaced += 1;
            } else if live.plan.spec != plan.spec || live.plan.routes != plan.routes {
                changes.updated += 1;
            } else {
                changes.untouched += 1;
            }
            live.plan = plan.clone();
            live.problem = tables.update_tunnel(live.slot, &plan.spec).err().map(|error| error.to_string());
        }
        (changes, leaving)
    }

    /// Adds the tunnels of `plans` that are not there and installs every SA that is missing, keys expanded on all cores.
    ///
    /// # Errors
    /// [`JournalError`]: nothing more was installed then. What finds no room is returned, and kept as the tunnel's `problem`.
    pub fn fill(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        plans: &BTreeMap<String, Plan>,
    ) -> Result<Vec<String>, JournalError> {
        let mut problems = Vec::new();
        for (name, plan) in plans {
            if self.live.contains_key(name) {
                continue;
            }
            match tables.add_tunnel(&plan.spec) {
                Ok(slot) => {
                    self.by_slot.insert(slot, name.clone());
                    self.live.insert(name.clone(), Live::new(slot, plan.clone(), &self.journal));
                }
                Err(error) => problems.push(format!("tunnel {name}: {error}")),
            }
        }
        let incomplete: Vec<String> =
            self.live.iter().filter(|(_, live)| !missing(live).is_empty()).map(|(name, _)| name.clone()).collect();
        for names in incomplete.chunks(BATCH / 4) {
            self.install(tables, state, names)?;
        }
        let failed = self.live.iter().filter_map(|(name, live)| Some(format!("tunnel {name}: {}", live.problem.as_ref()?)));
        problems.extend(failed);
        Ok(problems)
    }

    /// Installs what the tunnels called `names` lack.
    fn install(&mut self, tables: &mut TablesWriter, state: &StateView, names: &[String]) -> Result<(), JournalError> {
        let lacking: Vec<(&String, Missing)> =
            names.iter().flat_map(|name| missing(&self.live[name]).into_iter().map(move |sa| (name, sa))).collect();
        let expanded: Vec<_> = lacking
            .into_par_iter()
            .map(|(name, sa)| {
                let live = &self.live[name];
                let material = match sa {
                    Missing::Outbound => live.outbound_material(),
                    Missing::Inbound(generation) => live.inbound_material(generation),
                };
                (name, sa, material.spi, live.plan.form.expand(&material))
            })
            .collect();
        let grants: Vec<(ChainId, Record, u64)> = names.iter().map(|name| self.grant(&self.live[name])).collect();
        self.journal.put(&grants.iter().map(|(chain, record, _)| (*chain, *record)).collect::<Vec<_>>())?;
        let grants: HashMap<&String, (u64, u64)> =
            names.iter().zip(&grants).map(|(name, (_, record, used))| (name, (*used, record.granted))).collect();
        for (name, sa, spi, key) in expanded {
            let Some(live) = self.live.get_mut(name) else { continue };
            let result = match (key, sa) {
                (Err(error), _) => Err(error.to_string()),
                (Ok(key), Missing::Inbound(generation)) => {
                    add_inbound(live, tables, state, generation, spi, key).map_err(|error| error.to_string())
                }
                (Ok(key), Missing::Outbound) => {
                    let (used, granted) = grants.get(name).copied().unwrap_or_default();
                    add_outbound(live, tables, state, spi, key, used, granted).map_err(|error| error.to_string())
                }
            };
            live.problem = result.err().or(live.problem.take());
        }
        Ok(())
    }

    /// What to record before the present generation of `live` may send, and the last number that was used.
    fn grant(&self, live: &Live) -> (ChainId, Record, u64) {
        let chain = live.chain();
        let known = self.journal.get(chain).filter(|record| record.generation == live.generation);
        match &live.outbound {
            Some(outbound) => {
                let granted = known.map_or(outbound.granted, |record| record.granted.max(outbound.granted));
                (chain, Record { generation: live.generation, granted }, 0)
            }
            None => {
                let used = known.map_or(0, |record| record.granted);
                let granted = live.grant_after(used);
                (chain, Record { generation: live.generation, granted }, used)
            }
        }
    }

    /// Steps the keys of tunnel `name` to generation `to`, or to the next. Stepping to where it is does nothing.
    ///
    /// # Errors
    /// [`StepError`]; the SA in use stays in use then.
    pub fn step(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        name: &str,
        to: Option<u32>,
        force: bool,
    ) -> Result<u32, StepError> {
        let live = self.live.get(name).ok_or_else(|| StepError::Unknown(name.into()))?;
        if matches!(live.plan.keys, Keys::Fixed { .. }) {
            return Err(StepError::Fixed(name.into()));
        }
        let own = live.generation;
        let target = to.unwrap_or(own.saturating_add(1));
        if target < own {
            return Err(StepError::Back { name: name.into(), own, asked: target });
        }
        if target == own {
            return Ok(own);
        }
        let sent = live.outbound.as_ref().is_some_and(|sa| sa.sequence(state) > sa.first);
        let followed = live.peer_generation >= own || (sent && live.stepped.elapsed() >= FOLLOWED);
        if to.is_none() && !followed && !force {
            return Err(StepError::Behind { name: name.into(), seen: live.peer_generation, own });
        }
        self.set_generation(tables, state, name, target)?;
        Ok(target)
    }

    fn set_generation(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        name: &str,
        generation: u32,
    ) -> Result<(), StepError> {
        let Some(live) = self.live.get_mut(name) else { return Err(StepError::Unknown(name.into())) };
        let before = Record {
            generation: std::mem::replace(&mut live.generation, generation),
            granted: live.outbound.as_ref().map_or(0, |outbound| outbound.granted),
        };
        let granted = live.grant_after(0);
        self.journal.put(&[(live.chain(), Record { generation, granted })]).inspect_err(|_| live.generation = before.generation)?;
        let switched = switch_generation(live, tables, state, granted);
        if let Err(error) = switched {
            live.generation = before.generation;
            self.journal.put(&[(live.chain(), before)])?;
            return Err(StepError::Table { name: name.into(), error });
        }
        live.stepped = Instant::now();
        Ok(())
    }

    /// Follows peers that have stepped, extends grants that run out, steps what nears its last number. Looks at a part of
    /// the tunnels, the next one at the next call. Returns what went wrong.
    pub fn watch(&mut self, tables: &mut TablesWriter, state: &StateView) -> Vec<String> {
        let mut problems = Vec::new();
        let after = (std::ops::Bound::Excluded(self.cursor.clone()), std::ops::Bound::Unbounded);
        let part: Vec<&String> = self.live.range(after).map(|(name, _)| name).take(WATCHED).collect();
        let full = part.len() == WATCHED;
        let due: Vec<(String, Due)> =
            part.iter().filter_map(|name| Some(((*name).clone(), due(&self.live[*name], state)?))).collect();
        self.cursor = part.last().filter(|_| full).map(|name| (*name).clone()).unwrap_or_default();
        let mut grants = Vec::new();
        for (name, due) in due {
            let result = match due {
                Due::PeerAt(seen) => {
                    let Some(live) = self.live.get_mut(&name) else { continue };
                    live.peer_generation = seen;
                    if seen > live.generation { self.set_generation(tables, state, &name, seen) } else { Ok(()) }
                }
                Due::Step => self.step(tables, state, &name, None, false).map(|_| ()),
                Due::Grant(granted) => {
                    grants.push((name, granted));
                    Ok(())
                }
            };
            result.err().into_iter().for_each(|error| problems.push(error.to_string()));
        }
        if let Err(error) = self.raise(tables, &grants) {
            problems.push(error.to_string());
        }
        problems
    }

    /// Records grants, all with one write, and only then tells the data plane.
    fn raise(&mut self, tables: &mut TablesWriter, grants: &[(String, u64)]) -> Result<(), JournalError> {
        let record = |(name, granted): &(String, u64)| {
            let live = &self.live[name];
            (live.chain(), Record { generation: live.generation, granted: *granted })
        };
        self.journal.put(&grants.iter().map(record).collect::<Vec<_>>())?;
        for (name, granted) in grants {
            if let Some(outbound) = self.live.get_mut(name).and_then(|live| live.outbound.as_mut()) {
                tables.raise_hard_limit(outbound.slot, *granted);
                outbound.granted = *granted;
            }
        }
        Ok(())
    }
}

/// An SA that a tunnel should have and has not.
#[derive(Clone, Copy, Debug)]
enum Missing {
    Outbound,
    Inbound(u32),
}

/// What is missing, inbound first: what the peer sends is opened before it can learn that this gateway is there.
fn missing(live: &Live) -> Vec<Missing> {
    let inbound = live.open_generations().filter(|one| !live.inbound.contains_key(one)).map(Missing::Inbound);
    inbound.chain(live.outbound.is_none().then_some(Missing::Outbound)).collect()
}

/// What a tunnel needs now.
enum Due {
    PeerAt(u32),
    Step,
    Grant(u64),
}

fn due(live: &Live, state: &StateView) -> Option<Due> {
    let newer = live.inbound.range(live.peer_generation.saturating_add(1)..).rev();
    if let Some((seen, _)) = newer.into_iter().find(|(_, sa)| sa.sequence(state) > 0) {
        return Some(Due::PeerAt(*seen));
    }
    let outbound = live.outbound.as_ref()?;
    let used = outbound.sequence(state);
    let half = 1 << (live.grant_log2() - 1);
    if used.saturating_add(half) < outbound.granted {
        return None;
    }
    let next = live.grant_after(outbound.granted);
    let ends = next < outbound.granted.saturating_add(half);
    if ends && matches!(live.plan.keys, Keys::Derived { .. }) {
        return Some(Due::Step);
    }
    (next > outbound.granted).then_some(Due::Grant(next))
}

fn add_inbound(
    live: &mut Live,
    tables: &mut TablesWriter,
    state: &StateView,
    generation: u32,
    spi: u32,
    key: penstock_tables::KeyBlock,
) -> Result<(), TableFull> {
    let slot = tables.reserve_spi(spi)?;
    let (base, before) = (state.inbound(slot).top(), Traffic::of(state.inbound(slot).totals()));
    let form = &live.plan.form;
    let spec = InboundSpec { tunnel: live.slot, key, esn: form.esn, window: form.window };
    tables.install_inbound_at(slot, spi, spec, state);
    live.inbound.insert(generation, Inbound { slot, spi, base, before });
    Ok(())
}

/// Installs the SA of the present generation and switches to it. Numbers up to `used` are gone.
fn add_outbound(
    live: &mut Live,
    tables: &mut TablesWriter,
    state: &StateView,
    spi: u32,
    key: penstock_tables::KeyBlock,
    used: u64,
    granted: u64,
) -> Result<(), TableFull> {
    let form = &live.plan.form;
    let spec = OutboundSpec {
        spi,
        tunnel: live.slot,
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
    tables.switch_outbound(live.slot, Some(slot));
    live.outbound = Some(Outbound { slot, spi, generation: live.generation, granted, offset, first: used, before });
    Ok(())
}

/// Makes the SAs those of the generation that `live` says.
fn switch_generation(
    live: &mut Live,
    tables: &mut TablesWriter,
    state: &StateView,
    granted: u64,
) -> Result<(), TableFull> {
    let wanted = live.open_generations();
    let over: Vec<u32> = live.inbound.keys().copied().filter(|one| !wanted.contains(one)).collect();
    over.iter().for_each(|one| retire_inbound(live, tables, state, *one));
    for one in wanted.filter(|one| !live.inbound.contains_key(one)).collect::<Vec<_>>() {
        let material = live.inbound_material(one);
        let Ok(key) = live.plan.form.expand(&material) else { continue };
        add_inbound(live, tables, state, one, material.spi, key)?;
    }
    let material = live.outbound_material();
    let Ok(key) = live.plan.form.expand(&material) else { return Ok(()) };
    let old = live.outbound.clone();
    add_outbound(live, tables, state, material.spi, key, 0, granted)?;
    if let Some(old) = old {
        live.sent.add(old.traffic(state));
        tables.retire_outbound(old.slot);
    }
    Ok(())
}

fn retire_inbound(live: &mut Live, tables: &mut TablesWriter, state: &StateView, generation: u32) {
    if let Some(old) = live.inbound.remove(&generation) {
        live.received.add(old.traffic(state));
        tables.retire_inbound(old.slot);
    }
}

/// Takes all SAs of a tunnel out; its packets are dropped from now on.
fn take_out(live: &mut Live, tables: &mut TablesWriter, state: &StateView) {
    tables.switch_outbound(live.slot, None);
    if let Some(old) = live.outbound.take() {
        live.sent.add(old.traffic(state));
        tables.retire_outbound(old.slot);
    }
    for generation in live.inbound.keys().copied().collect::<Vec<_>>() {
        retire_inbound(live, tables, state, generation);
    }
}
