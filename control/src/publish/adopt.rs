//! A restarted control takes over what it finds: plans and the tables enter, tunnels with those of their SAs that are
//! still right leave; the rest is retired. Nothing that is right is touched, so no packet is lost.

use std::collections::{BTreeMap, HashMap};

use penstock_tables::tunnel::WORKER_SAS;
use penstock_tables::{OutboundSa, StateView, TablesWriter, TunnelSpec};

use super::lab::Material;
use super::live::{Child, Inbound, Live, Outbound, Traffic};
use super::plan::Plan;
use super::tunnels::Tunnels;

/// A slot of a tunnel as it was found.
struct Found {
    slot: u32,
    spec: TunnelSpec,
    /// Routes lead to it.
    is_own: bool,
}

impl Tunnels {
    /// Takes over the tunnels of `plans` that stand in `tables` already, with those of their SAs that are still right.
    /// SAs that are not are retired. Slots that no plan has are returned: they have no SA any more, and are to be retired
    /// when no route leads to them.
    pub fn adopt(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        plans: &BTreeMap<String, Plan>,
    ) -> Vec<u32> {
        let sealing: HashMap<u32, Option<u32>> =
            tables.tunnels().map(|(slot, tunnel)| (slot, tunnel.outbound())).collect();
        let mut leaving = self.adopt_slots(tables, plans);
        // Workers go back to the shared SA; IKEv2 gives them their own again.
        for slot in self
            .live
            .values()
            .filter(|live| live.is_negotiated())
            .flat_map(Live::children)
            .map(|one| one.slot)
        {
            (0..WORKER_SAS).for_each(|worker| {
                tables.switch_outbound_of_worker(slot, worker, None);
            });
        }
        let mut outbound: Vec<u32> = self.adopt_outbound(tables, state, &sealing);
        let mut inbound: Vec<u32> = self.adopt_inbound(tables, state);
        for live in self.live.values_mut().filter(|live| live.is_negotiated()) {
            live.pair_up(&mut outbound, &mut inbound);
        }
        for child in self.live.values().flat_map(Live::children).filter(|child| child.outbound.is_none()) {
            tables.switch_outbound(child.slot, None);
        }
        leaving.iter().for_each(|slot| tables.switch_outbound(*slot, None));
        outbound.into_iter().for_each(|slot| tables.retire_outbound(slot));
        inbound.into_iter().for_each(|slot| tables.retire_inbound(slot));
        for live in self.live.values_mut() {
            leaving.extend(live.sweep(tables));
        }
        leaving.iter().for_each(|slot| _ = self.by_slot.remove(slot));
        leaving
    }

    /// Returns the slots that belong to no tunnel of `plans`.
    fn adopt_slots(&mut self, tables: &TablesWriter, plans: &BTreeMap<String, Plan>) -> Vec<u32> {
        let mut leaving = Vec::new();
        let mut by_name: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for (slot, tunnel) in tables.tunnels() {
            let (spec, is_own) = (tunnel.spec(), tunnel.group() == slot);
            by_name.entry(spec.name.clone()).or_default().push(Found { slot, spec, is_own });
        }
        for (name, mut found) in by_name {
            // Two where control died while the tunnel took another slot: the newer one has the selectors of the file.
            let is_first = |plan: &Plan, one: &Found| {
                (one.is_own, one.spec.local == plan.spec.local && one.spec.remote == plan.spec.remote)
            };
            let first = plans.get(&name).filter(|_| !self.live.contains_key(&name)).and_then(|plan| {
                let (at, _) = found.iter().enumerate().max_by_key(|(_, one)| is_first(plan, one))?;
                Some((plan, found.swap_remove(at)))
            });
            let Some((plan, own)) = first else {
                leaving.extend(found.into_iter().map(|one| one.slot));
                continue;
            };
            self.by_slot.insert(own.slot, name.clone());
            let mut live = Live::new(Child::new(own.slot, &own.spec), plan.clone(), &self.journal);
            if live.is_negotiated() {
                live.others = found.iter().map(|one| Child::new(one.slot, &one.spec)).collect();
                self.by_slot.extend(found.iter().map(|one| (one.slot, name.clone())));
                live.negotiated = Some(own.spec);
            } else {
                leaving.extend(found.iter().map(|one| one.slot));
            }
            self.live.insert(name, live);
        }
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
                let child = live.children_mut().find(|child| child.slot == sa.tunnel());
                child.into_iter().for_each(|child| child.outbound = Some(adopted(slot, spi, sa, state)));
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
            live.own.outbound =
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
            live.inbound.insert(generation, Inbound::new(slot, sa.tunnel(), spi, sa.base(), state));
        }
        useless
    }
}

fn adopted(slot: u32, spi: u32, sa: &OutboundSa, state: &StateView) -> Outbound {
    Outbound {
        slot,
        tunnel: sa.tunnel(),
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
    /// Which inbound SA belongs to the outbound one is not written in the tables, and of those with the same selectors it does
    /// not matter: they go together when IKEv2 has replaced them. One direction without the other is of no use: its slots are
    /// told.
    fn pair_up(&mut self, outbound: &mut Vec<u32>, inbound: &mut Vec<u32>) {
        let mut paired = Vec::new();
        for child in std::iter::once(&mut self.own).chain(&mut self.others) {
            let with = self.inbound.iter().find(|(_, sa)| sa.tunnel == child.slot).map(|(spi_in, _)| *spi_in);
            match (&mut child.outbound, with) {
                (Some(sa), Some(spi_in)) => {
                    sa.pair = spi_in;
                    paired.push(child.slot);
                }
                _ => outbound.extend(child.outbound.take().map(|sa| sa.slot)),
            }
        }
        let alone = self.inbound.values().filter(|sa| !paired.contains(&sa.tunnel));
        inbound.extend(alone.map(|sa| sa.slot));
        self.inbound.retain(|_, sa| paired.contains(&sa.tunnel));
        if paired.is_empty() {
            self.negotiated = None;
        }
        self.account();
    }
}
