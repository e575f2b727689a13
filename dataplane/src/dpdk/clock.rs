//! The time stamp counter: cycles in, cycles out. No RFC rules this file.

#![allow(unsafe_code)]

use penstock_dpdk_sys as sys;

use super::Eal;

/// The time stamp counter of this core, in cycles; ordered neither before nor after the code around it.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter and touches no memory; every x86-64 CPU has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Cycles of [`tsc`] in a second, as DPDK measured them when it started.
pub fn tsc_hz(_: &Eal) -> u64 {
    // SAFETY: reads a number that rte_eal_init wrote; the Eal proves that it ran.
    unsafe { sys::rte_get_tsc_hz() }
}
