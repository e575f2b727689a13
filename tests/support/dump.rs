//! Core dumps: a process enters, what gdb or the kernel writes of its memory leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::Signal;

use super::command;

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What `gcore` writes of a running process; `None` where it is refused.
pub fn gcore(pid: u32, folder: &Path) -> Option<Vec<u8>> {
    let prefix = folder.join("gcore");
    let said = command::output(Command::new("gcore").arg("-o").arg(&prefix).arg(pid.to_string()));
    let core = fs::read(prefix.with_extension(pid.to_string())).ok();
    assert_eq!(said.status.success(), core.is_some(), "{}", command::text(&said.stderr));
    core
}

/// Which of the secrets stand in a dump: whole, or half of them, or as hexadecimal digits.
pub fn found<'a>(dump: &[u8], secrets: &'a [(String, Vec<u8>)]) -> Vec<&'a str> {
    let holds = |secret: &[u8]| dump.windows(secret.len()).any(|window| window == secret);
    let digits = |secret: &[u8]| secret.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let stands = |(_, secret): &&(String, Vec<u8>)| {
        let (first, second) = secret.split_at(secret.len() / 2);
        holds(first) || holds(second) || holds(digits(secret).as_bytes())
    };
    secrets.iter().filter(stands).map(|(name, _)| name.as_str()).collect()
}

/// A process that anybody may dump, with the secret in its memory.
pub fn careless(secret: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; read -r line", "sh", secret]);
    command.stdin(std::process::Stdio::piped()).spawn().expect("a shell")
}

/// What a crash leaves, for as long as this lives: the machine's own pattern is put back when it is dropped.
pub struct Pattern {
    before: String,
    folder: PathBuf,
}

impl Pattern {
    /// Dumps become files of `folder`.
    pub fn file(folder: &Path) -> Pattern {
        Pattern::set(folder, &format!("{}/core.%P", folder.display()))
    }

    /// Dumps are given to a program, which writes them to `folder`. For it no limit holds.
    pub fn pipe(folder: &Path) -> Pattern {
        let program = folder.join("take");
        fs::write(&program, "#!/bin/sh\nexec cat >\"${0%/*}/core.$1\"\n").expect("the lab's folder is ours");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is ours");
        Pattern::set(folder, &format!("|{} %P", program.display()))
    }

    fn set(folder: &Path, pattern: &str) -> Pattern {
        let before = fs::read_to_string(PATTERN).expect("the kernel has a pattern");
        assert!(pattern.len() < 128, "{pattern} is cut off by the kernel");
        fs::write(PATTERN, pattern).expect("root may set the pattern");
        Pattern { before, folder: folder.into() }
    }

    /// Ends a process as a crash would. Says whether the kernel dumped it, by its own word and by the file.
    pub fn crash(&self, child: &mut Child) -> bool {
        command::signal(child.id(), Signal::ABORT);
        let status = child.wait().expect("it is our child");
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
        let file = self.has_core(child.id());
        assert_eq!(status.core_dumped(), file, "{status}");
        file
    }

    /// Whether a dump of the process is there.
    pub fn has_core(&self, pid: u32) -> bool {
        self.folder.join(format!("core.{pid}")).exists()
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        fs::write(PATTERN, &self.before).expect("root may set the pattern");
    }
}
