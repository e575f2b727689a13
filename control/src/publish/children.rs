//! The slots of a tunnel's children in `tables`: selectors enter, slots leave that hold exactly these for as long as they live
//! (RFC 4301 sections 4.4.1 and 5.2). A tunnel's own slot holds the selectors of the file, which nothing passes by; a child that
//! was negotiated with others, or before the file changed, stands in a slot of its own, linked from there.

use std::collections::HashSet;
use std::net::IpAddr;

use penstock_ike::message::TrafficSelector;
use penstock_tables::tunnel::{MAX_CHILDREN, MAX_SELECTORS};
use penstock_tables::{Selector, TableFull, TablesWriter, TunnelSpec};

use super::live::{Child, Live};
use super::negotiated::InstallError;
use super::tunnels::Tunnels;

impl Live {
    /// What stands in the tables for one child.
    fn spec_of(&self, child: &Child) -> TunnelSpec {
        let (now, own) = (self.spec(), child.slot == self.own.slot);
        TunnelSpec {
            name: self.plan.spec.name.clone(),
            local: child.local.clone(),
            remote: child.remote.clone(),
            inner_mtu: now.inner_mtu,
            interface: if own { self.plan.spec.interface.clone() } else { String::new() },
            peer: now.peer,
        }
    }

    /// Tells all its slots of the peer, the largest packet and the interface.
    pub(super) fn tell(&self, tables: &mut TablesWriter) -> Result<(), TableFull> {
        self.children().try_for_each(|child| tables.update_tunnel(child.slot, &self.spec_of(child)))
    }

    fn link(&self, tables: &mut TablesWriter) {
        let slots: Vec<u32> = self.others.iter().map(|child| child.slot).collect();
        tables.link_tunnel(self.own.slot, &slots);
    }

    /// The child with these selectors; a new one where there is none yet.
    pub(super) fn child_for(
        &mut self,
        tables: &mut TablesWriter,
        local: Vec<Selector>,
        remote: Vec<Selector>,
    ) -> Result<u32, TableFull> {
        if let Some(child) = self.children().find(|child| child.is_for(&local, &remote)) {
            return Ok(child.slot);
        }
        if self.others.len() >= MAX_CHILDREN {
            return Err(TableFull::Children(self.plan.spec.name.clone()));
        }
        let spec = TunnelSpec { local, remote, interface: String::new(), ..self.spec_of(&self.own) };
        let slot = tables.add_tunnel(&spec)?;
        let way = tables.tunnel(self.own.slot).adjacency();
        tables.set_tunnel_adjacency(slot, way);
        self.others.insert(0, Child::new(slot, &spec));
        self.link(tables);
        Ok(slot)
    }

    /// Takes another slot where the file has other selectors than the tunnel's own slot. What was negotiated before goes on as a
    /// child with the selectors that it was negotiated with, as far as the file still has them; keys of the file move along.
    /// Returns the new slot. Routes must follow before the slots that [`Live::sweep`] returns go.
    pub(super) fn follow_selectors(&mut self, tables: &mut TablesWriter) -> Result<Option<u32>, TableFull> {
        if self.own.is_for(&self.plan.spec.local, &self.plan.spec.remote) {
            return Ok(None);
        }
        let old = self.own.slot;
        let (local, remote) = (self.plan.spec.local.clone(), self.plan.spec.remote.clone());
        let spec = TunnelSpec { local, remote, ..self.spec_of(&self.own) };
        let slot = tables.add_tunnel(&spec)?;
        let way = tables.tunnel(old).adjacency();
        tables.set_tunnel_adjacency(slot, way);
        let mut before = std::mem::replace(&mut self.own, Child::new(slot, &spec));
        if self.is_negotiated() {
            let device = tables.tunnel(old).device();
            tables.set_tunnel_device(slot, device);
        } else {
            for one in self.inbound.values_mut() {
                tables.move_inbound(one.slot, slot);
                one.tunnel = slot;
            }
            if let Some(mut sa) = before.outbound.take() {
                tables.move_outbound(sa.slot, slot);
                tables.switch_outbound(slot, Some(sa.slot));
                sa.tunnel = slot;
                self.own.outbound = Some(sa);
            }
        }
        self.others.insert(0, before);
        self.link(tables);
        Ok(Some(slot))
    }

    /// Lets go of children that nothing seals for and nothing is opened by. Returns their slots, to be retired.
    pub(super) fn sweep(&mut self, tables: &mut TablesWriter) -> Vec<u32> {
        if self.others.is_empty() {
            return Vec::new();
        }
        if self.plan.spec.interface.is_empty() || !self.is_negotiated() {
            tables.set_tunnel_device(self.own.slot, self.own.slot);
        }
        // The twins' thread knows the interface by that slot.
        let device = tables.tunnel(self.own.slot).device();
        let opening = self.inbound.values().map(|sa| sa.tunnel);
        let used: HashSet<u32> = opening.chain(self.standby.values().map(|sa| sa.tunnel)).collect();
        let stays = |child: &Child| {
            child.sealing().next().is_some() || used.contains(&child.slot) || child.slot == device
        };
        let (stay, gone): (Vec<Child>, Vec<Child>) =
            std::mem::take(&mut self.others).into_iter().partition(stays);
        self.others = stay;
        if !gone.is_empty() {
            self.link(tables);
        }
        gone.into_iter().map(|child| child.slot).collect()
    }
}

impl Tunnels {
    /// Retires slots that no tunnel has any more, and no route leads to.
    pub(super) fn let_go(&mut self, tables: &mut TablesWriter, slots: Vec<u32>) {
        for slot in slots {
            self.by_slot.remove(&slot);
            tables.retire_tunnel(slot);
        }
    }

    /// The slot for a child with these selectors of tunnel `name`.
    pub(super) fn slot_for(
        &mut self,
        tables: &mut TablesWriter,
        name: &str,
        (local, remote): (&[TrafficSelector], &[TrafficSelector]),
    ) -> Result<u32, InstallError> {
        let (local, remote) = (ranges(local)?, ranges(remote)?);
        // Half of the slots are kept for the tunnels of the file.
        let most = tables.capacity().tunnels;
        let full = self.by_slot.len().saturating_sub(self.live.len()) >= most as usize;
        let live = self.live.get_mut(name).ok_or(InstallError::NoTunnel)?;
        if full && !live.children().any(|child| child.is_for(&local, &remote)) {
            return Err(TableFull::Tunnels(most).into());
        }
        let slot = live.child_for(tables, local, remote)?;
        self.by_slot.entry(slot).or_insert_with(|| name.into());
        Ok(slot)
    }
}

/// The addresses of negotiated selectors, in as few ranges as there can be: these and no other.
///
/// # Errors
/// [`InstallError::Selectors`] where they do not fit.
fn ranges(negotiated: &[TrafficSelector]) -> Result<Vec<Selector>, InstallError> {
    let range = |one: &TrafficSelector| match (one.start, one.end) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Ok(Selector { first: first.to_bits(), last: last.to_bits() })
        }
        _ => Err(InstallError::Family),
    };
    let ranges = Selector::merged(negotiated.iter().map(range).collect::<Result<Vec<_>, _>>()?);
    match ranges.len() {
        1..=MAX_SELECTORS => Ok(ranges),
        count => Err(InstallError::Selectors(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &str, end: &str) -> TrafficSelector {
        let (start, end) = (start.parse().expect("address"), end.parse().expect("address"));
        TrafficSelector { protocol: 0, start_port: 0, end_port: 65535, start, end }
    }

    fn words(negotiated: &[TrafficSelector]) -> Result<Vec<String>, String> {
        let address = std::net::Ipv4Addr::from_bits;
        let word = |one: &Selector| format!("{}-{}", address(one.first), address(one.last));
        ranges(negotiated).map(|all| all.iter().map(word).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn any_range_is_taken_as_it_is_and_what_does_not_fit_is_refused() {
        let list = |all: &[&str]| Ok(all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(words(&[TrafficSelector::any_v4()]), list(&["0.0.0.0-255.255.255.255"]));
        assert_eq!(words(&[range("0.0.0.1", "255.255.255.254")]), list(&["0.0.0.1-255.255.255.254"]));
        assert_eq!(
            words(&[
                range("10.1.0.0", "10.1.0.9"),
                range("10.0.0.1", "10.0.255.254"),
                range("10.1.0.10", "10.2.0.0")
            ]),
            list(&["10.0.0.1-10.0.255.254", "10.1.0.0-10.2.0.0"])
        );
        let apart: Vec<_> =
            (0..17).map(|at| range(&format!("10.{at}.0.1"), &format!("10.{at}.0.9"))).collect();
        assert_eq!(
            words(&apart),
            Err("its selectors have 17 ranges on one side, and a tunnel holds 16".into())
        );
        assert_eq!(words(&apart[1..]).map(|all| all.len()), Ok(16));
        assert!(words(&[TrafficSelector::any_v6()]).is_err() && words(&[]).is_err());
    }
}
