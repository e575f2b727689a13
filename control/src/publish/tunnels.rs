//! All tunnels and their SAs in `tables`: plans enter, slots are added, changed in place, retired. What can stay is not
//! touched. RFC 4301 section 4.4.

use std::collections::{BTreeMap, HashMap};

use penstock_tables::{StateView, TablesWriter};
use rayon::prelude::*;

use super::journal::{Journal, JournalError, Record};
use super::lab::ChainId;
use super::live::{Live, Missing, add_inbound, add_outbound, missing, take_out};
use super::plan::Plan;

/// Keys that are expanded before any of them is installed: 1 KiB each.
const BATCH: usize = 4096;
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
            live.follow(plan, tables);
            live.problem = tables.update_tunnel(live.slot, live.spec()).err().map(|error| error.to_string());
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
        let incomplete: Vec<String> = self
            .live
            .iter()
            .filter(|(_, live)| !missing(live).is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        for names in incomplete.chunks(BATCH / 4) {
            self.install(tables, state, names)?;
        }
        let failed = self
            .live
            .iter()
            .filter_map(|(name, live)| Some(format!("tunnel {name}: {}", live.problem.as_ref()?)));
        problems.extend(failed);
        Ok(problems)
    }

    /// Installs what the tunnels called `names` lack.
    fn install(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        names: &[String],
    ) -> Result<(), JournalError> {
        let lacking: Vec<(&String, Missing)> = names
            .iter()
            .flat_map(|name| missing(&self.live[name]).into_iter().map(move |sa| (name, sa)))
            .collect();
        let expanded: Vec<_> = lacking
            .into_par_iter()
            .filter_map(|(name, sa)| {
                let live = &self.live[name];
                let material = match sa {
                    Missing::Outbound => live.outbound_material(),
                    Missing::Inbound(generation) => live.inbound_material(generation),
                }?;
                Some((name, sa, material.spi, live.plan.form.expand(&material)))
            })
            .collect();
        let grants: Vec<(&String, (ChainId, Record, u64))> =
            names.iter().filter_map(|name| Some((name, self.grant(&self.live[name])?))).collect();
        let records: Vec<_> = grants.iter().map(|(_, (chain, record, _))| (*chain, *record)).collect();
        self.journal.put(&records)?;
        let grants: HashMap<&String, (u64, u64)> =
            grants.into_iter().map(|(name, (_, record, used))| (name, (used, record.granted))).collect();
        for (name, sa, spi, key) in expanded {
            let Some(live) = self.live.get_mut(name) else { continue };
            let result = match (key, sa) {
                (Err(error), _) => Err(error.to_string()),
                (Ok(key), Missing::Inbound(generation)) => {
                    add_inbound(live, tables, state, generation, spi, key).map_err(|error| error.to_string())
                }
                (Ok(key), Missing::Outbound) => {
                    let (used, granted) = grants.get(name).copied().unwrap_or_default();
                    add_outbound(live, tables, state, spi, key, used, granted)
                        .map_err(|error| error.to_string())
                }
            };
            live.problem = result.err().or(live.problem.take());
        }
        Ok(())
    }

    /// What to record before the present generation of `live` may send, and the last number that was used.
    fn grant(&self, live: &Live) -> Option<(ChainId, Record, u64)> {
        let chain = live.chain()?;
        let known = self.journal.get(chain).filter(|record| record.generation == live.generation);
        match &live.outbound {
            Some(outbound) => {
                let granted = known.map_or(outbound.granted, |record| record.granted.max(outbound.granted));
                Some((chain, Record { generation: live.generation, granted }, 0))
            }
            None => {
                let used = known.map_or(0, |record| record.granted);
                let granted = live.grant_after(used);
                Some((chain, Record { generation: live.generation, granted }, used))
            }
        }
    }
}
