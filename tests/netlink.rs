//! The kernel's side of the gateway on the real kernel: mirror, twins, and the thread between twins and workers.
//! Every case is this program started again in a network namespace of its own: what it makes there ends with it.

#[path = "netlink/lab.rs"]
mod lab;
#[path = "netlink/mirror.rs"]
mod mirror;
#[path = "netlink/twins.rs"]
mod twins;

use std::env;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

/// Names the case to run, in a process that is started for it.
const CASE: &str = "PENSTOCK_NETLINK_CASE";

struct Case {
    name: &'static str,
    run: fn(),
}

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => { [$(Case { name: stringify!($name), run: $module::$name }),*] };
}

const CASES: &[Case] = &cases![
    mirror::what_was_there_before_is_read,
    mirror::routes_come_change_and_go,
    mirror::the_lowest_metric_wins,
    mirror::nexthop_objects_are_resolved,
    mirror::many_hops_with_weights,
    mirror::what_the_kernel_removes_in_silence_is_found,
    mirror::neighbours_are_resolved_and_kept,
    mirror::a_neighbour_that_appears_late_is_found,
    mirror::a_permanent_neighbour_stays_permanent,
    mirror::lost_news_are_made_up_for,
    mirror::a_wait_that_is_given_up_loses_nothing,
    twins::are_made_adopted_changed_and_removed,
    twins::of_others_are_left_alone,
    twins::routes_are_installed_changed_and_removed,
    twins::have_the_carrier_that_is_set,
    twins::never_forward,
    twins::frames_pass_both_ways,
    twins::devices_made_anew_are_attached_again,
    twins::what_the_workers_do_not_take_waits,
];

fn main() -> ExitCode {
    if let Ok(name) = env::var(CASE) {
        let case = CASES.iter().find(|case| case.name == name).expect("the case is in the list");
        (case.run)();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let able = namespace("true").output().is_ok_and(|output| output.status.success());
    if !able {
        eprintln!("SKIPPED: these tests need root, or user namespaces that give CAP_NET_ADMIN");
    }
    let trial = |case: &'static Case| Trial::test(case.name, || start(case)).with_ignored_flag(!able);
    let trials = CASES.iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A command in new namespaces, as root of them.
fn namespace(program: &str) -> Command {
    let is_root = lab::run("id -u").trim() == "0";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).args((!is_root).then_some("--map-root-user")).arg(program);
    command
}

fn start(case: &Case) -> Result<(), Failed> {
    let this = env::current_exe()?;
    let output = namespace(this.to_str().ok_or("odd path")?).env(CASE, case.name).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&text)).into())
}
