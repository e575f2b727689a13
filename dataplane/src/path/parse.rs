//! Reads a frame once: Ethernet, one 802.1Q tag, IPv4 (RFC 791). Frames in, checked values out; what is wrong is named.

use penstock_tables::Verdict;

use super::PortFacts;
use crate::port::Frame;
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4, Wrong};

/// What a frame turned out to be.
pub enum Parsed {
    /// An IPv4 packet to a station's address: its header.
    Ip(Ipv4),
    /// Something for the kernel: another protocol, or a group address.
    Other,
    /// Nothing that is used.
    Wrong(Verdict),
}

/// Reads a frame of a port. A tag of the port's VLAN is taken off; octets behind the packet are cut.
#[inline(always)]
pub fn frame<F: Frame>(frame: &mut F, port: &PortFacts) -> Parsed {
    if port.spec.vlan != 0 || !ethernet::is_ipv4_to(frame.data(), port.mac) {
        match read_header(frame, port) {
            Ether::Ip => {}
            Ether::Other => return Parsed::Other,
            Ether::Wrong(verdict) => return Parsed::Wrong(verdict),
        }
    }
    match ip(frame, ethernet::HEADER) {
        Ok(ip) => Parsed::Ip(ip),
        Err(verdict) => Parsed::Wrong(verdict),
    }
}

/// What an Ethernet header says.
enum Ether {
    Ip,
    Other,
    Wrong(Verdict),
}

/// What is not at first sight an untagged IPv4 packet to the port's own address, on a port without a VLAN.
#[inline(never)]
fn read_header<F: Frame>(frame: &mut F, port: &PortFacts) -> Ether {
    let Some(header) = ethernet::parse(frame.data()) else { return Ether::Wrong(Verdict::EthernetRunt) };
    match header.vlan {
        // A priority tag names no VLAN (0): it counts as untagged.
        Some(vlan) if vlan == port.spec.vlan => {
            ethernet::remove_tag(frame.data_mut());
            frame.trim_front(ethernet::TAG);
        }
        None if port.spec.vlan == 0 => {}
        _ => return Ether::Wrong(Verdict::VlanOther),
    }
    if header.destination[0] & 1 != 0 {
        return Ether::Other;
    }
    if header.destination != port.mac {
        return Ether::Wrong(Verdict::MacOther);
    }
    if header.ether_type == ethernet::IPV4 { Ether::Ip } else { Ether::Other }
}

/// Reads the IPv4 header at `l3` and cuts what follows the packet.
///
/// # Errors
/// The verdict of a packet that is malformed or has a wrong checksum.
#[inline(always)]
pub fn ip<F: Frame>(frame: &mut F, l3: usize) -> Result<Ipv4, Verdict> {
    let octets = frame.data().get(l3..).unwrap_or_default();
    let ip = ipv4::parse(octets).map_err(|wrong| match wrong {
        Wrong::Malformed => Verdict::Ipv4Malformed,
        Wrong::Checksum => Verdict::Ipv4Checksum,
    })?;
    let behind = octets.len() - usize::from(ip.total_len());
    if behind > 0 {
        frame.trim_back(behind);
    }
    Ok(ip)
}
