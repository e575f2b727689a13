//! Commands: arguments enter, output leaves; a command that fails ends the test with what it said.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A command inside a network namespace.
pub fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

/// A script of this tree.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Runs a command to its end, whatever it says.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed and returns what it printed.
pub fn succeed(command: &mut Command) -> String {
    let result = output(command);
    let (out, err) = (text(&result.stdout), text(&result.stderr));
    assert!(result.status.success(), "{command:?} failed with {}:\n{out}\n{err}", result.status);
    out
}

/// Runs a command that must fail and returns what it complained about.
pub fn refuse(command: &mut Command) -> String {
    let result = output(command);
    let (out, err) = (text(&result.stdout), text(&result.stderr));
    assert!(!result.status.success(), "{command:?} succeeded:\n{out}\n{err}");
    assert!(result.status.code().is_some(), "{command:?} crashed: {}", result.status);
    err
}

/// Octets of a program as text.
pub fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    // It may have ended by itself meanwhile.
    let _ = kill_process(pid, signal);
}

/// Asks a child to end and waits; kills it where it does not within a minute: on a machine whose cores are all taken, the kernel
/// has been seen to take ten seconds for the memory of a process alone. Says whether it ended by itself.
pub fn end(child: &mut Child, with: Signal) -> bool {
    signal(child.id(), with);
    let ended = until(Duration::from_secs(60), || child.try_wait().expect("it is our child").is_some());
    if !ended {
        signal(child.id(), Signal::KILL);
        child.wait().expect("it is our child");
    }
    ended
}

/// Asks again and again until it holds, at most so long. Says whether it held.
pub fn until(most: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + most;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
