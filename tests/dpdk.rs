//! The DPDK wrappers on real drivers. DPDK starts once in a process, so every case is this program started again, in a
//! network namespace of its own: what it makes there ends with it.

#[path = "dpdk/eal.rs"]
mod eal;
#[path = "dpdk/kernel.rs"]
mod kernel;
#[path = "dpdk/lab.rs"]
mod lab;
#[path = "dpdk/pci.rs"]
mod pci;
#[path = "dpdk/virtual.rs"]
mod virtual_devices;

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

/// Names the case to run, in a process that is started for it.
const CASE: &str = "PENSTOCK_DPDK_CASE";

/// What a case is run as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    /// With all privileges in its namespaces.
    Root,
    /// With none.
    Nobody,
}

struct Case {
    name: &'static str,
    user: User,
    run: fn(),
}

macro_rules! cases {
    ($($user:ident $module:ident :: $name:ident),* $(,)?) => {
        [$(Case { name: stringify!($name), user: User::$user, run: $module::$name }),*]
    };
}

const CASES: &[Case] = &cases![
    Root eal::starts_on_huge_pages,
    Root eal::says_how_to_get_huge_pages,
    Root eal::says_what_is_wrong_with_the_start,
    Root eal::cleans_up_behind_itself,
    Root eal::registers_threads_once,
    Root eal::counts_frames_and_refuses_bad_pools,
    Root eal::keeps_a_pool_whose_frames_are_held,
    Nobody eal::says_which_privileges_lack,
    Root virtual_devices::null_gives_and_takes_without_a_leak,
    Root virtual_devices::ring_returns_every_frame_in_order,
    Root virtual_devices::ring_pushes_back_and_leaves_the_rest,
    Root virtual_devices::pcap_in_and_out,
    Root virtual_devices::pcap_frames_of_many_segments_are_counted,
    Root virtual_devices::ring_carries_a_jumbo_mtu,
    Root virtual_devices::memif_pair,
    Root virtual_devices::refuses_what_a_device_cannot_do,
    Root virtual_devices::soft_devices_leave_steering_to_software,
    Root virtual_devices::says_what_is_wrong_with_a_device,
    Root virtual_devices::opens_a_device_again_after_it_was_closed,
    Root kernel::tap_talks_to_the_kernel,
    Root kernel::tap_runs_two_queues_on_two_workers,
    Root kernel::tap_refuses_rules_for_esp_and_receives,
    Root kernel::tap_follows_the_link,
    Root kernel::tap_tells_the_kernel_its_mtu,
    Root kernel::tap_becomes_promiscuous,
    Root kernel::af_packet_over_a_wire,
    Root kernel::af_xdp_over_a_wire,
    Root pci::two_ports_wired_to_each_other,
];

fn main() -> ExitCode {
    if let Ok(name) = env::var(CASE) {
        let case = CASES.iter().find(|case| case.name == name).expect("the case is in the list");
        (case.run)();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let needs_a_nic =
        |case: &Case| case.name == "two_ports_wired_to_each_other" && env::var(pci::PORTS).is_err();
    let trial = |case: &'static Case| {
        Trial::test(case.name, move || start(case)).with_ignored_flag(needs_a_nic(case))
    };
    let trials = CASES.iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a case in namespaces of its own. Without privileges it is root in a user namespace, as far as that goes.
fn start(case: &Case) -> Result<(), Failed> {
    let this = env::current_exe()?;
    let is_root = lab::run("id -u").trim() == "0";
    // Everybody's, and DPDK's runtime folder: what is left there goes with it.
    let folder = lab::Folder::shared(case.name);
    let mut command = match case.user {
        User::Nobody if is_root => {
            let copy = folder.join("program");
            fs::copy(this, &copy)?;
            let mut command = Command::new(copy);
            command.uid(65534).gid(65534);
            command
        }
        User::Nobody => Command::new(this),
        User::Root => {
            let mut command = Command::new("unshare");
            command.args(["--net", "--mount"]).args((!is_root).then_some("--map-root-user")).arg(this);
            command
        }
    };
    command.env(CASE, case.name).env("RUNTIME_DIRECTORY", &*folder).current_dir(&*folder);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&text)).into())
}
