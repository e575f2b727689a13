//! A restarted control takes over what it finds: plans and the tables enter, tunnels with those of their SAs that are
//! still right leave; the rest is retired. Nothing that is right is touched, so no packet is lost.

use std::collections::{BTreeMap, HashMap};

use penstock_tables::{StateView, TablesWriter};

use super::lab::Material;
use super::live::{Inbound, Live, Outbound, Traffic};
use super::plan::Plan;
use super::tunnels::Tunnels;

impl Tunnels {
    /// Takes over the tunnels of `plans` that stand in `tables` already, with those of their SAs that are still right.
    /// SAs that are not are retired. Tunnels that no plan has are returned: they have no SA any more, and are to be retired
    /// when no route leads to them.
    pub fn adopt(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        plans: &BTreeMap<String, Plan>,
    ) -> Vec<u32> {
        let found: Vec<_> =
            tables.tunnels().map(|(slot, tunnel)| (slot, tunnel.spec().name, tunnel.outbound())).collect();
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
            let form = &live.plan.form;
            let Some(material) = live.outbound_material() else {
                useless.push(slot);
                continue;
            };
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
                let generation = live
                    .open_generations()
                    .find(|one| live.inbound_material(*one).is_some_and(|material| right(&material)))?;
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
}
