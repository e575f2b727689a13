//! All tunnels and their SAs in `tables`: plans enter, slots are added, changed in place, retired. What can stay is not
//! touched. RFC 4301 section 4.4.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use penstock_tables::{KeyBlock, KeyError, StateView, TableFull, TablesWriter};
use rayon::prelude::*;

use super::journal::{Journal, JournalError, Record};
use super::lab::ChainId;
use super::live::{Child, Live, Missing, add_inbound, add_outbound, missing, take_out, trim};
use super::plan::Plan;

/// Tunnels whose keys are expanded before any of them is installed: up to 4 KiB each.
const BATCH: usize = 1024;
/// How often a tunnel steps on, one generation after the other, where its SPIs belong to others.
const SKIPS: usize = 8;

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
    pub(super) live: BTreeMap<String, Live>,
    pub(super) by_slot: HashMap<u32, String>,
    pub(super) journal: Journal,
    pub(super) cursor: String,
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

    /// By name, from one on, to be looked at.
    pub(crate) fn watched(&mut self, from: Bound<&str>) -> impl Iterator<Item = (&String, &mut Live)> {
        self.live.range_mut::<str, _>((from, Bound::Unbounded))
    }

    /// By name, from one on.
    pub fn from<'a>(&'a self, from: Bound<&str>) -> impl Iterator<Item = (&'a String, &'a Live)> {
        self.live.range::<str, _>((from, Bound::Unbounded))
    }

    /// The tunnel of that name.
    pub fn get(&self, name: &str) -> Option<&Live> {
        self.live.get(name)
    }

    /// Forgets everything, to adopt it anew.
    pub fn forget(&mut self) {
        self.live.clear();
        self.by_slot.clear();
    }

    /// Name of the tunnel in `slot`.
    pub fn name_of(&self, slot: u32) -> Option<&str> {
        self.by_slot.get(&slot).map(String::as_str)
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
                leaving.extend(take_out(&mut live, tables, state));
                leaving.extend(live.children().map(|child| child.slot));
                changes.removed += 1;
            }
        }
        for (name, plan) in plans {
            let Some(live) = self.live.get_mut(name) else {
                changes.added += 1;
                continue;
            };
            if live.other_sas(plan) {
                leaving.extend(take_out(live, tables, state));
                let own = Child::new(live.own.slot, &tables.tunnel(live.own.slot).spec());
                let fresh = Live::new(own, plan.clone(), &self.journal);
                let watch = std::mem::take(&mut live.watch);
                let others = std::mem::take(&mut live.others);
                let (sent, received, refused) = (live.sent, live.received, live.refused);
                *live = Live { sent, received, refused, watch, others, ..fresh };
                changes.replaced += 1;
            } else if live.plan.spec != plan.spec || live.plan.routes != plan.routes {
                changes.updated += 1;
            } else {
                changes.untouched += 1;
                if live.has_lab_keys() {
                    continue;
                }
            }
            live.follow(plan, tables);
            live.problem = None;
            leaving.extend(settle(name, live, &mut self.by_slot, tables));
        }
        leaving.iter().for_each(|slot| _ = self.by_slot.remove(slot));
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
                    let own = Child::new(slot, &plan.spec);
                    self.live.insert(name.clone(), Live::new(own, plan.clone(), &self.journal));
                }
                Err(error) => problems.push(format!("tunnel {name}: {error}")),
            }
        }
        let mut lacking: Vec<&mut Live> =
            self.live.values_mut().filter(|live| missing(live).next().is_some()).collect();
        complete(&mut lacking, &mut self.journal, tables, state)?;
        let failed = self
            .live
            .iter()
            .filter_map(|(name, live)| Some(format!("tunnel {name}: {}", live.problem.as_ref()?)));
        problems.extend(failed);
        Ok(problems)
    }
}

/// Has the slots of a tunnel say what its plan says. Returns those that it has no more.
fn settle(
    name: &str,
    live: &mut Live,
    by_slot: &mut HashMap<u32, String>,
    tables: &mut TablesWriter,
) -> Vec<u32> {
    match live.follow_selectors(tables) {
        Ok(slot) => by_slot.extend(slot.map(|slot| (slot, name.into()))),
        Err(error) => live.problem = Some(error.to_string()),
    }
    live.problem = live.problem.take().or(live.tell(tables).err().map(|error| error.to_string()));
    live.sweep(tables)
}

/// Installs what these tunnels lack, keys expanded on all cores. What may be sent is on disk first, with one write for all.
/// What finds no room is kept as the tunnel's `problem`.
///
/// An SPI that a lab secret derives may belong to another tunnel already: of 100,000 tunnels a few meet that. Where it is that of
/// the generation in use, the tunnel steps on: its peer opens the next generation too, and follows when it sees it. Where it is
/// that of the next generation, it is tried again when the other tunnel may have left it ([`Tunnels::watch`]).
///
/// # Errors
/// [`JournalError`]: nothing more was installed then.
pub(super) fn complete(
    lives: &mut [&mut Live],
    journal: &mut Journal,
    tables: &mut TablesWriter,
    state: &StateView,
) -> Result<(), JournalError> {
    for round in 0..=SKIPS {
        let mut lacking: Vec<&mut Live> = lives
            .iter_mut()
            .filter(|live| round == 0 || live.is_shut_out())
            .map(|live| &mut **live)
            .collect();
        if lacking.is_empty() {
            break;
        }
        if round > 0 {
            lacking.iter_mut().for_each(|live| live.generation = live.generation.saturating_add(1));
        }
        install(&mut lacking, journal, tables, state)?;
        lacking.iter_mut().for_each(|live| trim(live, tables, state));
    }
    for live in lives.iter_mut().filter(|live| live.is_shut_out()) {
        live.problem =
            Some("every SPI that its secret derives is another tunnel's: give it a context".into());
    }
    Ok(())
}

fn install(
    lives: &mut [&mut Live],
    journal: &mut Journal,
    tables: &mut TablesWriter,
    state: &StateView,
) -> Result<(), JournalError> {
    let grants: Vec<Option<(ChainId, Record, u64)>> = lives.iter().map(|live| grant(live, journal)).collect();
    journal.put(&grants.iter().flatten().map(|(chain, record, _)| (*chain, *record)).collect::<Vec<_>>())?;
    for (lives, grants) in lives.chunks_mut(BATCH).zip(grants.chunks(BATCH)) {
        let expanded: Vec<Vec<_>> = lives.par_iter().map(|live| expand(live)).collect();
        for ((live, keys), grant) in lives.iter_mut().zip(expanded).zip(grants) {
            let (used, granted) = grant.map_or((0, 0), |(_, record, used)| (used, record.granted));
            live.problem = None;
            for (sa, spi, key) in keys {
                let result = match (key, sa) {
                    (Err(error), _) => Err(error.to_string()),
                    (Ok(key), Missing::Inbound(generation)) => {
                        match add_inbound(live, tables, state, generation, spi, key) {
                            Err(TableFull::Spi(_)) if generation > 0 => Ok(()),
                            result => result.map_err(|error| error.to_string()),
                        }
                    }
                    (Ok(key), Missing::Outbound) => {
                        add_outbound(live, tables, state, spi, key, used, granted)
                            .map_err(|error| error.to_string())
                    }
                };
                live.problem = live.problem.take().or(result.err());
            }
        }
    }
    Ok(())
}

/// The SAs that `live` lacks, with their SPIs and keys.
fn expand(live: &Live) -> Vec<(Missing, u32, Result<KeyBlock, KeyError>)> {
    let expand = |sa| {
        let material = match sa {
            Missing::Outbound => live.outbound_material(),
            Missing::Inbound(generation) => live.inbound_material(generation),
        }?;
        Some((sa, material.spi, live.plan.form.expand(&material)))
    };
    missing(live).filter_map(expand).collect()
}

/// What to record before the present generation of `live` may send, and the last number that was used.
fn grant(live: &Live, journal: &Journal) -> Option<(ChainId, Record, u64)> {
    let (chain, generation) = (live.chain()?, live.generation);
    let known = journal.get(chain).filter(|record| record.generation == generation);
    match live.own.outbound.as_ref().filter(|outbound| outbound.generation == generation) {
        Some(outbound) => {
            let granted = known.map_or(outbound.granted, |record| record.granted.max(outbound.granted));
            Some((chain, Record { generation, granted }, 0))
        }
        None => {
            let used = known.map_or(0, |record| record.granted);
            Some((chain, Record { generation, granted: live.grant_after(used) }, used))
        }
    }
}
