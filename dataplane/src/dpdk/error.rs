//! Why DPDK refused, and what to do about it. Error numbers and DPDK's log enter, sentences leave. No RFC rules this file.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::fmt;
use std::fs;

use penstock_dpdk_sys as sys;

use super::DeviceName;

/// What DPDK said: an error number, and what it logged meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    errno: i32,
    log: String,
}

impl Cause {
    /// From the (usually negative) result of a call. Takes what DPDK logged as errors since the last cause.
    pub(super) fn from_result(result: c_int) -> Cause {
        Cause { errno: result.saturating_abs(), log: take_log() }
    }

    /// As [`Cause::from_result`], with the words that the driver has for it.
    pub(super) fn from_driver(result: c_int, said: &str) -> Cause {
        let logged = Cause::from_result(result);
        if said.is_empty() { logged } else { Cause { log: said.into(), ..logged } }
    }

    /// From a call that left its error in rte_errno.
    pub(super) fn from_errno() -> Cause {
        // SAFETY: reads a thread-local number.
        Cause::from_result(unsafe { sys::penstock_errno() })
    }

    /// The error number, as in `errno.h`; 0 where DPDK gave none.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Whether DPDK complains about privileges. Drivers return -1, which is EPERM, for any failure: the log decides.
    fn is_permission(&self) -> bool {
        let said = ["permitted", "ermission denied"].iter().any(|words| self.log.contains(words));
        said || self.errno == EACCES
    }
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno == EPERM && !self.is_permission() {
            f.write_str("it fails")?;
        } else {
            // SAFETY: rte_strerror returns a string with NUL that lives in this thread until its next call.
            let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.errno)) };
            f.write_str(&text.to_string_lossy())?;
        }
        if self.log.is_empty() { Ok(()) } else { write!(f, " (DPDK's log: {})", self.log) }
    }
}

/// Whether this process may neither make interfaces nor open raw sockets. Drivers often do not say that this is why.
fn is_unprivileged() -> bool {
    const NET_ADMIN_AND_RAW: u64 = 1 << 12 | 1 << 13;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|effective| effective & NET_ADMIN_AND_RAW != NET_ADMIN_AND_RAW)
}

/// Empties the shim's buffer of logged errors.
pub(super) fn take_log() -> String {
    let mut text = [0u8; 1024];
    // SAFETY: the shim writes at most `text.len()` octets to `text` and returns how many.
    let len = unsafe { sys::penstock_log_take(text.as_mut_ptr().cast(), text.len()) };
    let lines = String::from_utf8_lossy(&text[..len.min(text.len())]);
    lines.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Everything that can fail between the configuration and a running port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`super::Eal::init`] was called before.
    #[error("DPDK can be started once in the life of a process: start a new process")]
    AlreadyStarted,
    /// Huge pages are asked for, and there are none.
    #[error(
        "no free huge page of any size: reserve some, for example \
         `echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages` for 1 GiB, or do without \
         (`memory: {{hugepages: off}}`, slower, virtual devices only)"
    )]
    NoHugePages,
    /// More memory is asked for than the free huge pages have.
    #[error(
        "{wanted_mib} MiB of huge pages are wanted, {free_mib} MiB are free: reserve more, for example \
         `echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages` for 1 GiB, or ask for less"
    )]
    TooFewHugePages {
        /// What the configuration asks for.
        wanted_mib: u32,
        /// What the kernel has.
        free_mib: u32,
    },
    /// `rte_eal_init` failed.
    #[error("DPDK does not start: {cause}: {}", start_advice(cause))]
    Start {
        /// What DPDK said.
        cause: Cause,
    },
    /// The text of a device is neither a PCI address nor a virtual device.
    #[error(
        "`{text}` is no device: expected a PCI address such as `0000:3b:00.0`, or a virtual device with its arguments \
         such as `net_tap0,iface=wan` or `net_af_packet0,iface=eth0`"
    )]
    Name {
        /// The text.
        text: String,
    },
    /// No driver made a port of the device.
    #[error("device {device}: {cause}: {}", open_advice(device, cause))]
    Open {
        /// The device.
        device: DeviceName,
        /// What DPDK said.
        cause: Cause,
    },
    /// The device has an owner in this process.
    #[error("device {device} is open already: name each device once")]
    InUse {
        /// The device.
        device: DeviceName,
    },
    /// The device is there and refused something.
    #[error("device {device}: cannot {action}: {cause}")]
    Refused {
        /// The device.
        device: DeviceName,
        /// What was tried.
        action: String,
        /// What DPDK said.
        cause: Cause,
    },
    /// More queues than the device has.
    #[error("device {device}: {wanted} queue pairs are wanted, it has at most {most}: lower `queues`")]
    Queues {
        /// The device.
        device: DeviceName,
        /// How many are asked for.
        wanted: u16,
        /// How many there are.
        most: u16,
    },
    /// The MTU is not in the device's range.
    #[error("device {device}: MTU {wanted} is outside of what it can do, {least} to {most}")]
    Mtu {
        /// The device.
        device: DeviceName,
        /// The MTU asked for, in octets of IP packet.
        wanted: u16,
        /// The least MTU of the device.
        least: u16,
        /// The greatest MTU of the device.
        most: u16,
    },
    /// A frame of the MTU does not fit into one buffer of the pool.
    #[error(
        "device {device}: a frame of MTU {mtu} needs {needed} octets, the pool's buffers have {room}: make the pool with a \
         larger `data_room`"
    )]
    BufferRoom {
        /// The device.
        device: DeviceName,
        /// The MTU, in octets of IP packet.
        mtu: u16,
        /// Octets of the longest frame.
        needed: u32,
        /// Octets of a buffer behind the headroom.
        room: u16,
    },
    /// A device is configured or started twice, or started before it was configured.
    #[error("device {device}: configure it once, then start it once")]
    Order {
        /// The device.
        device: DeviceName,
    },
    /// The pool's name cannot be one.
    #[error("`{name}` is no name for a pool: use 1 to 20 letters, digits, `-` or `_`")]
    PoolName {
        /// The name.
        name: String,
    },
    /// The pool could not be made.
    #[error(
        "pool {name} of {frames} frames, {mib} MiB: {cause}: give DPDK more memory, or ask for fewer frames"
    )]
    Pool {
        /// The pool.
        name: String,
        /// How many frames it should have.
        frames: u32,
        /// About how much memory that is.
        mib: u32,
        /// What DPDK said.
        cause: Cause,
    },
    /// The thread cannot become one of DPDK's.
    #[error(
        "cannot register this thread with DPDK: {cause}: run fewer workers, and no secondary DPDK process"
    )]
    Thread {
        /// What DPDK said.
        cause: Cause,
    },
    /// The thread is one of DPDK's already: it called `Eal::init`, or is registered.
    #[error("this thread is registered with DPDK already: register each worker once, on its own thread")]
    ThreadTwice,
}

const PRIVILEGES: &str = "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_SYS_ADMIN";

fn start_advice(cause: &Cause) -> &'static str {
    if cause.is_permission() {
        return PRIVILEGES;
    }
    "check the core, the memory and the device list of the configuration, and whether another DPDK process holds the \
     same `file_prefix`"
}

fn open_advice(device: &DeviceName, cause: &Cause) -> &'static str {
    if cause.is_permission() || is_unprivileged() {
        PRIVILEGES
    } else if device.is_pci() {
        "check the address with `dpdk-devbind.py --status`, and that the device is bound to vfio-pci (or, for NVIDIA NICs, \
         to mlx5_core)"
    } else {
        "check the driver's name (net_tap, net_af_packet, net_af_xdp, net_memif, net_ring, net_pcap, net_null and \
         others, followed by a number) and its arguments, and that an interface or a file named there exists"
    }
}
