//! The lab: two sites and a wire in five network namespaces (`scripts/lab/topology`), gone again when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;

use super::command::{self, inside, script, succeed};

/// One of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// 10.1.0.0/24 behind 192.0.2.1.
    A,
    /// 10.2.0.0/24 behind 192.0.2.2.
    B,
}

impl Site {
    /// Both.
    pub const BOTH: [Site; 2] = [Site::A, Site::B];

    /// As the scripts call it.
    pub fn letter(self) -> &'static str {
        match self {
            Site::A => "a",
            Site::B => "b",
        }
    }

    /// Its number in addresses.
    pub fn number(self) -> u8 {
        match self {
            Site::A => 1,
            Site::B => 2,
        }
    }

    /// The other one.
    pub fn other(self) -> Site {
        match self {
            Site::A => Site::B,
            Site::B => Site::A,
        }
    }

    /// The host's address.
    pub fn host(self) -> String {
        format!("10.{}.0.2", self.number())
    }

    /// The gateway's outer address.
    pub fn outer(self) -> String {
        format!("192.0.2.{}", self.number())
    }
}

/// The network of one test.
pub struct Lab {
    prefix: String,
    files: TempDir,
}

impl Lab {
    /// Makes the namespaces. Their names begin with PENSTOCK_LAB where that is set, so that whoever started the tests
    /// can clean up after a test that was killed.
    pub fn make() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::getuid().is_root(),
            "this test makes network namespaces: run it as root, by `scripts/test`"
        );
        let family = std::env::var("PENSTOCK_LAB").unwrap_or_else(|_| "lab".into());
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{family}-{}-{number}", std::process::id());
        let files = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder");
        let lab = Lab { prefix, files };
        lab.topology(&["up", &lab.prefix]);
        lab
    }

    fn topology(&self, arguments: &[&str]) {
        succeed(Command::new(script("lab/topology")).args(arguments));
    }

    /// What the names of this lab's namespaces and gateways begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Name of a namespace: `ha`, `ga`, `wire`, `gb` or `hb`.
    pub fn namespace(&self, which: &str) -> String {
        format!("{}-{which}", self.prefix)
    }

    /// Namespace of a site's host.
    pub fn host(&self, site: Site) -> String {
        self.namespace(&format!("h{}", site.letter()))
    }

    /// Namespace of a site's gateway.
    pub fn gateway(&self, site: Site) -> String {
        self.namespace(&format!("g{}", site.letter()))
    }

    /// Namespace of the wire, and the bridge `wire` in it.
    pub fn wire(&self) -> String {
        self.namespace("wire")
    }

    /// Puts the kernel ends of a started gateway's soft NICs in place.
    pub fn plug(&self, site: Site) {
        self.topology(&["plug", &self.prefix, site.letter()]);
    }

    /// Gives the NAT of `scripts/lab/nat` that outer address, and has it forget its mappings.
    pub fn move_nat(&self, address: &str) {
        succeed(Command::new(script("lab/nat")).args(["move", &self.prefix, address]));
    }

    /// A folder that goes with the lab.
    pub fn folder(&self) -> &Path {
        self.files.path()
    }

    /// A file in that folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Pings from a site's host; returns how many of `count` were answered.
    pub fn ping(&self, from: Site, to: &str, count: u32) -> u32 {
        ping(&self.host(from), to, count)
    }
}

/// Pings from a namespace, five a second; returns how many of `count` were answered. Who asks for one tries again, so it is
/// waited for a second only; of several none shall be missed because the machine stood still.
pub fn ping(namespace: &str, to: &str, count: u32) -> u32 {
    let (wait, count) = (if count == 1 { "1" } else { "3" }, count.to_string());
    let options = ["-n", "-i", "0.2", "-W", wait, "-c", &count, to];
    let said = command::output(inside(namespace, "ping").args(options));
    answered(&command::text(&said.stdout))
}

/// How many answers `ping` counted, by what it said.
pub fn answered(said: &str) -> u32 {
    let received = said.split(" received").next().and_then(|text| text.rsplit(' ').next());
    received.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("ping said: {said}"))
}

impl Drop for Lab {
    fn drop(&mut self) {
        for which in ["ha", "ga", "wire", "nat", "gb", "hb"] {
            let name = self.namespace(which);
            if Path::new("/run/netns").join(&name).exists() {
                // The namespaces are ours alone, so what runs in them is ours too.
                let pids = succeed(Command::new("ip").args(["netns", "pids", &name]));
                pids.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .for_each(|pid| command::signal(pid, Signal::KILL));
            }
        }
        let down = command::output(Command::new(script("lab/topology")).args(["down", &self.prefix]));
        if !down.status.success() {
            eprintln!("{}", command::text(&down.stderr));
        }
        for folder in ["/run/penstock", "/dev/shm/penstock", "/dev/hugepages/penstock"] {
            for site in Site::BOTH {
                let _ = fs::remove_dir_all(format!("{folder}/{}-{}", self.prefix, site.letter()));
            }
        }
    }
}
