//! SAs that IKEv2 negotiated, in `tables`: what the protocol machine wants enters, slots are filled, switched to and given
//! back. The inbound half is there before the peer can use it, the outbound half when the peer can open it (RFC 7296
//! section 2.8). A key never outlives the slot that counts its numbers, so that no nonce is used twice without any journal.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use penstock_ike::ChildSa;
use penstock_ike::crypto::{DirectionKey, EspCipher};
use penstock_tables::events::Source;
use penstock_tables::sa::OuterTemplate;
use penstock_tables::tunnel::{MAX_SELECTORS, WORKER_SAS};
use penstock_tables::{
    Cipher, InboundSpec, KeyBlock, KeyError, OutboundSpec, Selector, StateView, TableFull, TablesWriter,
    TunnelSpec,
};

use super::live::{Child, Inbound, Live, Outbound, Traffic, retire_inbound};
use super::plan::{Keys, Plan, inner_mtu, template};
use super::tunnels::Tunnels;

/// Sequence numbers that are left out where an outbound SA goes on in another slot: far more than all workers can take from
/// the old slot before they see the new one.
const GAP: u64 = 1 << 20;
/// A rekey is asked for so many numbers (as a power of two) before the last one: a minute at 14 million packets a second.
const SOFT_LOG2: u8 = 30;

/// Why an SA is not in the tables.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No free slot.
    #[error(transparent)]
    Table(#[from] TableFull),
    /// The key has not the cipher's length.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The tunnel is not in the tables.
    #[error("the tunnel is not in the tables: `capacity.tunnels` is too small, or it was taken out")]
    NoTunnel,
    /// A worker's own SA.
    #[error("it is for one worker, and the tunnel has none for all, or no place for that worker")]
    NoShared,
    /// Its addresses.
    #[error("its outer or inner addresses are not IPv4")]
    Family,
    /// More ranges than a slot holds.
    #[error("its selectors have {0} ranges on one side, and a tunnel holds {MAX_SELECTORS}")]
    Selectors(usize),
}

impl Live {
    /// What stands in the tables for the tunnel: what was negotiated where there is an SA, else what the file says.
    pub fn spec(&self) -> &TunnelSpec {
        self.negotiated.as_ref().unwrap_or(&self.plan.spec)
    }

    /// Outer address of the peer; 0.0.0.0 as long as only the peer knows it.
    pub fn peer(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.spec().peer)
    }

    /// Takes a new plan. What was negotiated stays as long as its SAs do.
    pub(super) fn follow(&mut self, plan: &Plan, tables: &TablesWriter) {
        self.plan = plan.clone();
        let udp = self.outbound().is_some_and(|outbound| tables.outbound_sa(outbound.slot).udp());
        if let Some(negotiated) = &mut self.negotiated {
            negotiated.interface.clone_from(&plan.spec.interface);
            negotiated.inner_mtu = inner_mtu(plan.outer_mtu, udp);
        }
    }

    /// Whether IKEv2 makes its SAs.
    pub fn is_negotiated(&self) -> bool {
        matches!(self.plan.keys, Keys::Ike)
    }

    /// The outbound SA that was negotiated together with this inbound SPI.
    fn outbound_of(&mut self, spi_in: u32) -> Option<&mut Outbound> {
        let children = std::iter::once(&mut self.own).chain(&mut self.others);
        let sealing =
            children.flat_map(|child| child.outbound.iter_mut().chain(child.of_worker.values_mut()));
        sealing.chain(self.standby.values_mut()).find(|outbound| outbound.pair == spi_in)
    }

    /// Whether a child, or a worker, seals with this SA now.
    fn seals_with(&self, spi_in: u32) -> bool {
        self.children().flat_map(Child::sealing).any(|outbound| outbound.pair == spi_in)
    }

    /// What of the file's selectors there are SAs for, as far as it goes into one list for each side.
    fn covered(&self) -> (Vec<Selector>, Vec<Selector>) {
        let live = || self.children().filter(|child| child.outbound.is_some());
        let all = |side: fn(&Child) -> &Vec<Selector>| Selector::merged(live().flat_map(side).copied());
        (all(|child| &child.local), all(|child| &child.remote))
    }

    /// Takes note of what is covered now.
    pub(super) fn account(&mut self) {
        let (local, remote) = self.covered();
        if let Some(negotiated) = self.negotiated.as_mut().filter(|_| !local.is_empty()) {
            (negotiated.local, negotiated.remote) = (local, remote);
        }
    }

    /// Seals with `new`, and keeps what it replaces.
    fn seal_with(&mut self, tables: &mut TablesWriter, new: Outbound) {
        let Some(child) = self.children_mut().find(|child| child.slot == new.tunnel) else { return };
        let old = match new.worker {
            Some(worker) => {
                tables.switch_outbound_of_worker(child.slot, worker as usize, Some(new.slot));
                child.of_worker.insert(worker, new)
            }
            None => {
                tables.switch_outbound(child.slot, Some(new.slot));
                child.outbound.replace(new)
            }
        };
        self.standby.extend(old.map(|old| (old.pair, old)));
    }

    /// Takes the SA away from the tunnel, or from its worker, and stops sealing with it.
    fn stop_sealing_with(&mut self, tables: &mut TablesWriter, spi_in: u32) -> Option<Outbound> {
        let child = self.children_mut().find(|child| child.sealing().any(|one| one.pair == spi_in));
        let Some(child) = child else { return self.standby.remove(&spi_in) };
        let shared = child.outbound.take_if(|outbound| outbound.pair == spi_in);
        if shared.is_some() {
            // Without the shared one no worker seals (RFC 9611 section 3).
            tables.switch_outbound(child.slot, None);
            let own = std::mem::take(&mut child.of_worker);
            self.standby.extend(own.into_values().map(|own| (own.pair, own)));
            return shared;
        }
        let worker = child.of_worker.values().find(|own| own.pair == spi_in).and_then(|own| own.worker)?;
        tables.switch_outbound_of_worker(child.slot, worker as usize, None);
        child.of_worker.remove(&worker)
    }
}

impl Tunnels {
    /// Installs the inbound half; it opens at once.
    ///
    /// # Errors
    /// [`InstallError`]; the SPI is free again then.
    pub fn install_inbound(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        sa: &ChildSa,
    ) -> Result<(), InstallError> {
        let found = self.place_for(tables, sa).inspect_err(|_| tables.release_spi(sa.spi_in))?;
        let (tunnel, key) = found;
        let live = self.live.get_mut(&*sa.child).ok_or(InstallError::NoTunnel)?;
        let slot = sa.spi_in & (tables.capacity().inbound_slots() as u32 - 1);
        let fresh = Inbound::new(slot, tunnel, sa.spi_in, state.inbound(slot).top(), state);
        let spec = InboundSpec { tunnel, key, esn: sa.esp.esn, window: live.plan.form.window };
        tables.install_inbound(sa.spi_in, spec, state);
        let followed = sa.encapsulation.filter(|udp| udp.follow);
        let source = followed.and_then(|udp| source(SocketAddr::new(sa.outer.1, udp.remote_port)));
        tables.expect_from(slot, source);
        live.inbound.insert(sa.spi_in, fresh);
        Ok(())
    }

    /// The slot with the selectors of a new SA, and its key.
    fn place_for(
        &mut self,
        tables: &mut TablesWriter,
        sa: &ChildSa,
    ) -> Result<(u32, KeyBlock), InstallError> {
        self.live.get(&*sa.child).filter(|live| live.is_negotiated()).ok_or(InstallError::NoTunnel)?;
        let key = expand(sa.esp.cipher, &sa.key_in)?;
        Ok((self.slot_for(tables, &sa.child, (&sa.local_ts, &sa.remote_ts))?, key))
    }

    /// Installs the outbound half and seals with it from now on; the one before stays until it is removed. Returns whether
    /// the peer's address is another than before.
    ///
    /// # Errors
    /// [`InstallError`]; the one before stays in use then.
    pub fn switch_to(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        sa: &ChildSa,
    ) -> Result<bool, InstallError> {
        let live = self.live.get_mut(&*sa.child).filter(|live| live.is_negotiated());
        let live = live.ok_or(InstallError::NoTunnel)?;
        let (IpAddr::V4(local), IpAddr::V4(peer)) = sa.outer else { return Err(InstallError::Family) };
        let worker = sa.resource.filter(|worker| (*worker as usize) < WORKER_SAS);
        let tunnel = live.inbound.get(&sa.spi_in).map(|inbound| inbound.tunnel);
        let tunnel = tunnel.ok_or(InstallError::NoTunnel)?;
        let child = live.children().find(|child| child.slot == tunnel).ok_or(InstallError::NoTunnel)?;
        if sa.resource.is_some() && (worker.is_none() || child.outbound.is_none()) {
            return Err(InstallError::NoShared);
        }
        let key = expand(sa.esp.cipher, &sa.key_out)?;
        let ports = sa.encapsulation.map(|udp| (udp.local_port, udp.remote_port));
        let last = if sa.esp.esn { u64::MAX - 1 } else { u64::from(u32::MAX) };
        let spec = OutboundSpec {
            spi: sa.spi_out,
            tunnel,
            key,
            esn: sa.esp.esn,
            udp: ports.is_some(),
            dont_fragment: live.plan.form.dont_fragment,
            template: outer(local, peer, ports),
            last_used: 0,
            hard_limit: last,
            soft_log2: SOFT_LOG2,
        };
        let slot = tables.install_outbound(spec, state)?;
        let moved = live.peer() != peer;
        let outbound = Outbound {
            slot,
            tunnel,
            spi: sa.spi_out,
            pair: sa.spi_in,
            worker,
            generation: 0,
            granted: last,
            offset: state.outbound(slot).offset_after(0),
            first: 0,
            before: Traffic::of(state.outbound(slot).totals()),
        };
        live.negotiated = Some(TunnelSpec {
            inner_mtu: inner_mtu(live.plan.outer_mtu, ports.is_some()),
            peer: peer.to_bits(),
            ..live.plan.spec.clone()
        });
        live.tell(tables)?;
        live.seal_with(tables, outbound);
        live.account();
        Ok(moved)
    }

    /// Seals again with an SA that was switched away from and not removed. False where there is none.
    pub fn switch_back(&mut self, tables: &mut TablesWriter, name: &str, spi_in: u32) -> bool {
        let Some(live) = self.live.get_mut(name) else { return false };
        if live.seals_with(spi_in) {
            return true;
        }
        let Some(back) = live.standby.remove(&spi_in) else { return false };
        live.seal_with(tables, back);
        live.account();
        true
    }

    /// Takes the outbound half out; if it was in use, the tunnel's packets are dropped from now on.
    pub fn remove_outbound(&mut self, tables: &mut TablesWriter, state: &StateView, name: &str, spi_in: u32) {
        let Some(live) = self.live.get_mut(name) else { return };
        if let Some(old) = live.stop_sealing_with(tables, spi_in) {
            live.sent.add(old.traffic(state));
            tables.retire_outbound(old.slot);
            live.account();
            let gone = live.sweep(tables);
            self.let_go(tables, gone);
        }
    }

    /// Takes the inbound half out. Returns whether it was the last SA of its tunnel, which is as the file says from now on.
    pub fn remove_inbound(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        name: &str,
        spi_in: u32,
    ) -> bool {
        let Some(live) = self.live.get_mut(name) else { return false };
        retire_inbound(live, tables, state, spi_in);
        let last = live.inbound.is_empty() && live.outbound().is_none() && live.negotiated.take().is_some();
        if last {
            live.problem = live.tell(tables).err().map(|error| error.to_string());
        }
        let gone = live.sweep(tables);
        self.let_go(tables, gone);
        last
    }

    /// What the peer sends on an SA comes from there from now on, where the SA is followed.
    pub fn expect_from(&self, tables: &TablesWriter, (name, spi_in): (&str, u32), from: SocketAddr) {
        let inbound =
            self.live.get(name).and_then(|live| live.inbound.values().find(|one| one.spi == spi_in));
        if let Some(inbound) = inbound.filter(|one| tables.inbound_sa(one.slot).source() != 0) {
            tables.expect_from(inbound.slot, source(from));
        }
    }

    /// Sends to another outer address of the peer with the same keys: the SA goes on in another slot, behind all numbers
    /// that the old one can still hand out (RFC 4106 section 3.1).
    ///
    /// # Errors
    /// [`InstallError`]; the old address stays in use then.
    pub fn move_peer(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        (name, spi_in): (&str, u32),
        to: SocketAddr,
    ) -> Result<(), InstallError> {
        let IpAddr::V4(peer) = to.ip() else { return Err(InstallError::Family) };
        let live = self.live.get_mut(name).ok_or(InstallError::NoTunnel)?;
        let in_use = live.seals_with(spi_in);
        let dont_fragment = live.plan.form.dont_fragment;
        let outbound = live.outbound_of(spi_in).ok_or(InstallError::NoTunnel)?;
        let (tunnel, old, sa) = (outbound.tunnel, outbound.slot, tables.outbound_sa(outbound.slot));
        let (esn, udp, mut headers) = (sa.esn(), sa.udp(), *sa.template());
        headers[16..20].copy_from_slice(&peer.octets());
        if udp {
            headers[22..24].copy_from_slice(&to.port().to_be_bytes());
        }
        let block = tables.outbound_key(old);
        let cipher = block.cipher().ok_or(InstallError::NoTunnel)?;
        let key = KeyBlock::expand(cipher, block.raw_key(), block.salt())?;
        let last = tables.cap_hard_limit(old, outbound.sequence(state).saturating_add(GAP));
        let spec = OutboundSpec {
            spi: outbound.spi,
            tunnel,
            key,
            esn,
            udp,
            dont_fragment,
            template: headers,
            last_used: last,
            hard_limit: outbound.granted,
            soft_log2: SOFT_LOG2,
        };
        let slot = tables.install_outbound(spec, state)?;
        let carried = outbound.traffic(state);
        *outbound = Outbound {
            slot,
            offset: state.outbound(slot).offset_after(last),
            first: last,
            before: Traffic::of(state.outbound(slot).totals()),
            ..outbound.clone()
        };
        let worker = outbound.worker;
        live.sent.add(carried);
        match worker.filter(|_| in_use) {
            Some(worker) => {
                tables.switch_outbound_of_worker(tunnel, worker as usize, Some(slot));
            }
            None if in_use => tables.switch_outbound(tunnel, Some(slot)),
            None => {}
        }
        tables.retire_outbound(old);
        if let Some(negotiated) = live.negotiated.as_mut().filter(|_| in_use) {
            negotiated.peer = peer.to_bits();
            live.tell(tables)?;
        }
        Ok(())
    }
}

fn source(of: SocketAddr) -> Option<Source> {
    let IpAddr::V4(address) = of.ip() else { return None };
    Some(Source { address: address.to_bits(), port: of.port() })
}

fn expand(cipher: EspCipher, key: &DirectionKey) -> Result<KeyBlock, KeyError> {
    let cipher = match cipher {
        EspCipher::AesGcm128 => Cipher::Aes128Gcm16,
        EspCipher::AesGcm256 => Cipher::Aes256Gcm16,
        EspCipher::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
    };
    let mut salt = [0; 4];
    salt.iter_mut().zip(key.salt.iter()).for_each(|(to, from)| *to = *from);
    KeyBlock::expand(cipher, &key.key, salt)
}

/// Outer headers; `ports` are this side's and the peer's, where ESP is in UDP.
fn outer(local: Ipv4Addr, peer: Ipv4Addr, ports: Option<(u16, u16)>) -> OuterTemplate {
    let mut octets = template(local, peer, ports.is_some());
    if let Some((own, other)) = ports {
        octets[20..22].copy_from_slice(&own.to_be_bytes());
        octets[22..24].copy_from_slice(&other.to_be_bytes());
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_translated_peer_stand_in_the_header() {
        let headers =
            outer(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7), Some((4500, 61_001)));
        assert_eq!(headers[9], 17);
        assert_eq!(headers[20..24], [0x11, 0x94, 0xee, 0x49]);
    }
}
