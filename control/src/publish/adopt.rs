//! A restarted control takes over what it finds: plans and the tables enter, tunnels with those of their SAs that are
//! still right leave; the rest is retired. Nothing that is right is touched, so no packet is lost.

use std::collections::{BTreeMap, HashMap};

use penstock_tables::tunnel::WORKER_SAS;
use penstock_tables::{OutboundSa, StateView, TablesWriter};

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
            tables.tunnels().map(|(slot, tunnel)| (slot, tunnel.spec(), tunnel.outbound())).collect();
        let mut leaving = Vec::new();
        let mut sealing = HashMap::new();
        for (slot, spec, outbound) in found {
            sealing.insert(slot, outbound);
            match plans.get(&spec.name) {
                Some(plan) if !self.live.contains_key(&spec.name) => {
                    self.by_slot.insert(slot, spec.name.clone());
                    let mut live = Live::new(slot, plan.clone(), &self.journal);
                    live.negotiated = Some(spec.clone()).filter(|_| live.is_negotiated());
                    self.live.insert(spec.name, live);
                }
                _ => leaving.push(slot),
            }
        }
        // Workers go back to the shared SA; IKEv2 gives them their own again.
        for slot in self.live.values().filter(|live| live.is_negotiated()).map(|live| live.slot) {
            (0..WORKER_SAS).for_each(|worker| {
                tables.switch_outbound_of_worker(slot, worker, None);
            });
        }
        let mut outbound: Vec<u32> = self.adopt_outbound(tables, state, &sealing);
        let mut inbound: Vec<u32> = self.adopt_inbound(tables, state);
        for live in self.live.values_mut().filter(|live| live.is_negotiated()) {
            live.pair_up(&mut outbound, &mut inbound);
        }
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
            let negotiated = live.is_negotiated() && sa.epoch() == state.epoch() && adoptable(&live.plan, sa);
            if let (true, Some(spi)) = (negotiated, sa.spi()) {
                live.outbound = Some(adopted(slot, spi, sa, state));
                continue;
            }
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
            live.outbound =
                Some(Outbound { generation: live.generation, ..adopted(slot, material.spi, sa, state) });
        }
        useless
    }

    /// Returns the slots that hold nothing of use.
    fn adopt_inbound(&mut self, tables: &TablesWriter, state: &StateView) -> Vec<u32> {
        let mut useless = Vec::new();
        for (slot, sa) in tables.inbound() {
            let live = self.by_slot.get(&sa.tunnel()).and_then(|name| self.live.get_mut(name));
            let found = live.and_then(|live| {
                if live.is_negotiated() && sa.epoch() == state.epoch() {
                    return sa.spi().map(|spi| (live, spi));
                }
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
            live.inbound.insert(generation, Inbound::new(slot, spi, sa.base(), state));
        }
        useless
    }
}

fn adopted(slot: u32, spi: u32, sa: &OutboundSa, state: &StateView) -> Outbound {
    Outbound {
        slot,
        spi,
        pair: 0,
        worker: None,
        generation: 0,
        granted: sa.hard_limit(),
        offset: sa.offset(),
        first: state.outbound(slot).last_reserved(sa.offset()),
        before: Traffic::of(state.outbound(slot).totals()),
    }
}

/// Whether a negotiated SA leads from the gateway to the peer that the file names now.
fn adoptable(plan: &Plan, sa: &OutboundSa) -> bool {
    let from = sa.template()[12..16] == plan.local.octets();
    from && (plan.peer.is_unspecified() || sa.template()[16..20] == plan.peer.octets())
}

impl Live {
    /// Which inbound SA belongs to the outbound one is not written in the tables, and it does not matter: they go together
    /// when IKEv2 has replaced them. One direction without the other is of no use: its slots are told.
    fn pair_up(&mut self, outbound: &mut Vec<u32>, inbound: &mut Vec<u32>) {
        if let (Some(sa), Some((spi_in, _))) = (&mut self.outbound, self.inbound.first_key_value()) {
            sa.pair = *spi_in;
            return;
        }
        self.negotiated = None;
        outbound.extend(self.outbound.take().map(|sa| sa.slot));
        inbound.extend(std::mem::take(&mut self.inbound).into_values().map(|sa| sa.slot));
    }
}
