//! DPDK's environment: a typed configuration enters, a running DPDK leaves; it is cleaned up after its last user.
//!
//! DPDK starts no thread of ours: the thread that calls [`Eal::init`] becomes its main lcore, workers are Rust threads
//! that register themselves. No RFC rules this file.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_dpdk_sys as sys;

use super::error::take_log;
use super::{Cause, DeviceName, Error};

/// Where DPDK's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Huge pages, taken as needed; no hugetlbfs mount is needed. `reserve_mib` are taken at the start.
    HugePages {
        /// MiB that must be there at the start; 0 takes nothing yet.
        reserve_mib: u32,
    },
    /// Ordinary pages, all taken at the start: for laboratories and CI. NICs on the PCI bus may not work.
    Ordinary {
        /// MiB that are taken.
        mib: u32,
    },
}

/// The least severe messages of DPDK that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what stops DPDK.
    Critical = 3,
    /// What fails.
    Error = 4,
    /// What may be wrong.
    Warning = 5,
    /// What is worth knowing.
    Notice = 6,
    /// What happens.
    Info = 7,
    /// Everything.
    Debug = 8,
}

/// How to start DPDK.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// The CPU that the calling thread is pinned to: DPDK's main lcore, no worker.
    pub main_core: usize,
    /// Where memory comes from.
    pub memory: Memory,
    /// Sets this DPDK apart from others on the machine.
    pub file_prefix: String,
    /// All devices that will be opened: DPDK touches no other device on the PCI bus. Virtual devices may be left out.
    pub devices: Vec<DeviceName>,
    /// The least severe messages that go to stderr. What DPDK logs while a call fails is in the call's error too.
    pub log_level: LogLevel,
    /// Whether DPDK opens its telemetry socket, for `dpdk-telemetry.py`.
    pub telemetry: bool,
}

impl Default for EalConfig {
    /// Huge pages as needed, main lcore on CPU 0, errors only, no telemetry, no PCI device.
    fn default() -> EalConfig {
        EalConfig {
            main_core: 0,
            memory: Memory::HugePages { reserve_mib: 0 },
            file_prefix: "penstock".into(),
            devices: vec![],
            log_level: LogLevel::Error,
            telemetry: false,
        }
    }
}

impl EalConfig {
    /// The arguments of `rte_eal_init`, program name first.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "penstock".to_owned(),
            format!("--lcores=0@{}", self.main_core),
            format!("--file-prefix={}", self.file_prefix),
            // Errors are always logged, for the causes of ours, whether they are shown or not.
            format!("--log-level={}", self.log_level.max(LogLevel::Error) as u8),
        ];
        match self.memory {
            Memory::HugePages { reserve_mib } => {
                arguments.push("--in-memory".into());
                if reserve_mib > 0 {
                    arguments.extend(["-m".into(), reserve_mib.to_string()]);
                }
            }
            // DPDK refuses --in-memory here; --no-shconf keeps it from leaving files all the same.
            Memory::Ordinary { mib } => {
                arguments.extend(["--no-huge", "--no-shconf", "-m"].map(str::to_owned));
                arguments.push(mib.to_string());
            }
        }
        if !self.telemetry {
            arguments.push("--no-telemetry".into());
        }
        let mut pci = self.devices.iter().filter(|device| device.is_pci()).peekable();
        if pci.peek().is_none() {
            arguments.push("--no-pci".into());
        }
        arguments.extend(pci.flat_map(|device| ["-a".into(), device.as_str().to_owned()]));
        arguments
    }

    /// DPDK would fail later and say less.
    fn check_huge_pages(&self, sizes: &Path) -> Result<(), Error> {
        let Memory::HugePages { reserve_mib } = self.memory else { return Ok(()) };
        let free_mib = free_huge_mib(sizes);
        match free_mib {
            0 => Err(Error::NoHugePages),
            _ if free_mib < reserve_mib => Err(Error::TooFewHugePages { wanted_mib: reserve_mib, free_mib }),
            _ => Ok(()),
        }
    }
}

/// net_tap has the kernel send the process a real-time signal for every frame, where it finds one that nobody handles. They
/// queue up, and the thread that has to take them, the main one, does nothing else under load, and for seconds after it. With a
/// handler on each of them the driver does without and just reads, which is what polling means.
fn take_frame_signals() {
    // From SIGRTMIN, as glibc has it, to SIGRTMAX.
    for signal in 34..=64 {
        // A signal that cannot be taken leaves the driver as it was.
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// MiB in free huge pages of all sizes, from the folders `hugepages-2048kB` and the like.
fn free_huge_mib(sizes: &Path) -> u32 {
    let free_kib = |folder: fs::DirEntry| -> Option<u64> {
        let name = folder.file_name();
        let size = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
        let free =
            fs::read_to_string(folder.path().join("free_hugepages")).ok()?.trim().parse::<u64>().ok()?;
        size.checked_mul(free)
    };
    let folders = fs::read_dir(sizes).into_iter().flatten().flatten();
    let kib: u64 = folders.filter_map(free_kib).sum();
    u32::try_from(kib / 1024).unwrap_or(u32::MAX)
}

/// The running DPDK. Clones are handles; pools, devices and queues hold one each, and the last one cleans up.
#[derive(Clone, Debug)]
pub struct Eal {
    _running: Arc<Running>,
}

/// Proof that `rte_eal_init` succeeded and `rte_eal_cleanup` did not run yet.
#[derive(Debug)]
struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: constructed once, after rte_eal_init succeeded; everything that uses DPDK holds a handle on this. The
        // folder's name is a string with NUL in DPDK's static memory.
        let folder = unsafe {
            let folder = CStr::from_ptr(sys::rte_eal_get_runtime_dir()).to_owned();
            sys::rte_eal_cleanup();
            folder
        };
        // DPDK leaves it behind, empty. Where it is not, somebody else uses it.
        drop(fs::remove_dir(OsStr::from_bytes(folder.to_bytes())));
    }
}

impl Eal {
    /// Starts DPDK. The calling thread becomes its main lcore and is pinned to `main_core`; threads that it starts
    /// later inherit that until they are pinned themselves.
    ///
    /// # Errors
    /// [`Error::AlreadyStarted`] the second time in a process, [`Error::NoHugePages`], [`Error::TooFewHugePages`] and
    /// [`Error::Start`]. Too few huge pages may be mended and tried again; after [`Error::Start`] the process is spent.
    pub fn init(config: &EalConfig) -> Result<Eal, Error> {
        config.check_huge_pages(Path::new("/sys/kernel/mm/hugepages"))?;
        Eal::start(config.arguments(), config.log_level)
    }

    /// Starts DPDK with the arguments of `rte_eal_init`, program name first: for those who know them by heart.
    /// `shown` is the least severe message of DPDK that goes to stderr.
    ///
    /// # Errors
    /// [`Error::AlreadyStarted`] and [`Error::Start`].
    pub fn start(arguments: Vec<String>, shown: LogLevel) -> Result<Eal, Error> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyStarted);
        }
        let arguments = arguments.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let Ok(arguments) = arguments else { return Err(Error::Start { cause: Cause::from_result(-22) }) };
        // DPDK keeps pointers into its arguments: they live as long as the process.
        let arguments: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
        let argv = arguments.leak();
        take_frame_signals();
        // SAFETY: called once per process, by the guard above; argv holds that many strings with NUL, kept for ever.
        let result = unsafe {
            sys::penstock_log_open(shown as c_int);
            sys::rte_eal_init(argv.len() as c_int, argv.as_mut_ptr())
        };
        if result < 0 {
            return Err(Error::Start { cause: Cause::from_errno() });
        }
        // What was logged and did no harm belongs to no later error.
        take_log();
        Ok(Eal { _running: Arc::new(Running(())) })
    }

    /// The version of the DPDK that runs, as `DPDK 22.11.11`.
    pub fn version(&self) -> String {
        // SAFETY: returns a static string with NUL.
        unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
    }

    /// The CPUs of DPDK's lcores as its arguments say, that of the main lcore first. Where an lcore has several, the first.
    pub fn cpus(&self) -> Vec<usize> {
        let mut cpus = [0; 128];
        // SAFETY: DPDK runs; the shim writes at most as many numbers as there is room for.
        let count = unsafe { sys::penstock_lcore_cpus(cpus.as_mut_ptr(), cpus.len() as u32) };
        cpus.iter().take(count as usize).map(|cpu| *cpu as usize).collect()
    }

    /// Makes the calling thread one of DPDK's, with caches of its own in every pool, for as long as the result lives.
    ///
    /// # Errors
    /// [`Error::Thread`] where all of DPDK's lcores are taken, [`Error::ThreadTwice`] where the thread is one already.
    pub fn register_thread(&self) -> Result<RegisteredThread, Error> {
        // SAFETY: DPDK runs; the calls read and write the thread's own lcore number. A thread that has one already
        // would lose it for good by registering again, so that is refused.
        unsafe {
            if sys::penstock_lcore() != sys::PENSTOCK_NO_LCORE {
                return Err(Error::ThreadTwice);
            }
            if sys::rte_thread_register() != 0 {
                return Err(Error::Thread { cause: Cause::from_errno() });
            }
        }
        Ok(RegisteredThread { _eal: self.clone(), _this_thread: PhantomData })
    }
}

/// The calling thread is known to DPDK while this lives. It stays on its thread.
#[derive(Debug)]
pub struct RegisteredThread {
    _eal: Eal,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        // SAFETY: not Send, so this is the thread that registered; DPDK still runs, by the handle that is held.
        unsafe { sys::rte_thread_unregister() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_and_ordinary_ones_make_different_arguments() {
        let mut config = EalConfig { main_core: 3, ..EalConfig::default() };
        let common = ["penstock", "--lcores=0@3", "--file-prefix=penstock", "--log-level=4"];
        assert_eq!(
            config.arguments(),
            [&common[..], &["--in-memory", "--no-telemetry", "--no-pci"]].concat()
        );
        config.memory = Memory::HugePages { reserve_mib: 64 };
        config.telemetry = true;
        assert_eq!(config.arguments(), [&common[..], &["--in-memory", "-m", "64", "--no-pci"]].concat());
        config.memory = Memory::Ordinary { mib: 256 };
        config.log_level = LogLevel::Critical;
        let ordinary = ["--no-huge", "--no-shconf", "-m", "256", "--no-pci"];
        assert_eq!(config.arguments(), [&common[..], &ordinary].concat());
    }

    #[test]
    fn only_listed_pci_devices_are_touched() {
        let devices = ["net_tap0,iface=x", "3b:00.0", "0000:3b:00.1,a=1"];
        let devices = devices.into_iter().map(|text| text.parse().unwrap()).collect();
        let arguments = EalConfig { devices, ..EalConfig::default() }.arguments();
        assert_eq!(arguments[6..], ["-a", "0000:3b:00.0", "-a", "0000:3b:00.1,a=1"]);
        assert!(!arguments.contains(&"--no-pci".to_owned()));
    }

    #[test]
    fn counts_free_huge_pages_of_all_sizes() {
        let folder = std::env::temp_dir().join(format!("penstock-huge-{}", std::process::id()));
        for (size, free) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "1\n"), ("other", "9\n")] {
            fs::create_dir_all(folder.join(size)).unwrap();
            fs::write(folder.join(size).join("free_hugepages"), free).unwrap();
        }
        assert_eq!(free_huge_mib(&folder), 6 + 1024);
        let mut config =
            EalConfig { memory: Memory::HugePages { reserve_mib: 1031 }, ..EalConfig::default() };
        let few = config.check_huge_pages(&folder).unwrap_err();
        assert!(matches!(few, Error::TooFewHugePages { wanted_mib: 1031, free_mib: 1030 }), "{few}");
        config.memory = Memory::HugePages { reserve_mib: 1030 };
        assert!(config.check_huge_pages(&folder).is_ok());
        fs::remove_dir_all(&folder).unwrap();
        assert!(matches!(config.check_huge_pages(&folder), Err(Error::NoHugePages)));
        config.memory = Memory::Ordinary { mib: 1 };
        assert!(config.check_huge_pages(&folder).is_ok());
    }
}
