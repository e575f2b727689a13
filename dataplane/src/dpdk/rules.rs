//! Flow rules (rte_flow) that choose the receive queue of ESP: which rules are wanted enters, what the driver answers leaves.
//! Which of them to ask for is decided in [`crate::steering`]. ESP in UDP is that of RFC 3948.

#![allow(unsafe_code)]

use std::ffi::c_char;

use penstock_dpdk_sys as sys;

use super::Cause;

/// How the queue of a packet is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// By a hash of the SPI, over the queues that the device's own table has for RSS.
    HashOverTable,
    /// By a hash of the SPI, over a list of queues.
    HashOverList,
    /// By the low bits of the SPI, which are the queue's number: for a power of two of queues.
    LowBits,
}

/// Where ESP stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Behind IPv4.
    Ip,
    /// Behind UDP to port 4500.
    Udp,
    /// Behind UDP, whatever port the device's parser takes for it: 4500, where it is made so.
    UdpOfParser,
}

/// Rules for one carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How the queue is chosen.
    pub choice: Choice,
    /// Which packets.
    pub carrier: Carrier,
}

/// Has the driver validate and make `rules` on a started port with so many queues: all of them or none.
pub(super) fn make(port: u16, rules: Rules, queues: u16) -> Result<(), Cause> {
    let raw = sys::penstock_rules {
        low_bits: rules.choice == Choice::LowBits,
        udp: rules.carrier != Carrier::Ip,
        any_port: rules.carrier == Carrier::UdpOfParser,
        list: rules.choice == Choice::HashOverList,
        queues,
    };
    let mut said = [0u8; 256];
    let room = said.len();
    // SAFETY: the port is open; the shim reads `raw`, and writes at most `room` octets to `said`, of which one is NUL.
    let result =
        unsafe { sys::penstock_rules_make(port, &raw const raw, said.as_mut_ptr().cast::<c_char>(), room) };
    if result >= 0 {
        return Ok(());
    }
    let len = said.iter().position(|&octet| octet == 0).unwrap_or(room);
    Err(Cause::from_driver(result, &String::from_utf8_lossy(&said[..len])))
}

/// Removes all flow rules of a port.
pub(super) fn end(port: u16) {
    // SAFETY: the port is open; a driver without flow rules refuses, which is as good.
    unsafe { sys::penstock_rules_end(port) }
}
