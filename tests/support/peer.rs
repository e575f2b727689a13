//! The Linux kernel's own ESP in the place of gateway B (`scripts/lab/linux-peer`), with fixed keys or for an IKE daemon inside.
//! It ends when it is dropped.

use std::path::PathBuf;
use std::process::Command;

use super::command::{self, script, succeed};
use super::decrypt::Sealing;
use super::lab::{Lab, answered};

/// A running guest.
pub struct LinuxPeer {
    folder: PathBuf,
    namespace: String,
    nat: bool,
}

impl LinuxPeer {
    /// Boots it on the lab's wire. `inbound` is how it expects packets, `outbound` how it seals them.
    pub fn start(lab: &Lab, inbound: &Sealing, outbound: &Sealing) -> LinuxPeer {
        assert_eq!((inbound.udp, inbound.esn), (outbound.udp, outbound.esn));
        let peer = LinuxPeer { folder: lab.file("linux-peer"), namespace: lab.wire(), nat: false };
        let mode = match (inbound.udp, inbound.esn) {
            (true, false) => "udp",
            (false, true) => "esn",
            (false, false) => "esp",
            (true, true) => panic!("the peer's script knows no ESN in UDP"),
        };
        succeed(&mut peer.script("build"));
        let mut start = peer.script("start");
        start.args([&peer.namespace, mode]).env("KEY_IN", &inbound.key).env("KEY_OUT", &outbound.key);
        start.env("SPI_IN", format!("{:#x}", inbound.spi)).env("SPI_OUT", format!("{:#x}", outbound.spi));
        succeed(&mut start);
        peer
    }

    /// Boots it on the lab's wire without keys, or behind a NAT that has its address there; with libreswan where that is asked for.
    pub fn boot(lab: &Lab, nat: bool, libreswan: bool) -> LinuxPeer {
        let namespace = if nat { lab.namespace("nat") } else { lab.wire() };
        if nat {
            succeed(Command::new(script("lab/nat")).args(["up", lab.prefix()]));
        }
        let peer = LinuxPeer { folder: lab.file("linux-peer"), namespace, nat };
        let mut build = peer.script("build");
        if libreswan {
            build.env("LIBRESWAN", "1");
        }
        succeed(&mut build);
        succeed(peer.script("start").args([&peer.namespace, "ike"]));
        peer
    }

    /// The folder that it sees as /shared.
    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    fn script(&self, command: &str) -> Command {
        let mut script = Command::new(script("lab/linux-peer"));
        script.arg(command).arg(&self.folder);
        if self.nat {
            script.envs([("GUEST", "198.51.100.2"), ("HOST", "198.51.100.254"), ("VIA", "198.51.100.254")]);
        }
        script
    }

    /// Runs a command inside.
    pub fn run(&self, line: &str) -> String {
        succeed(self.script("sh").args([&self.namespace, line]))
    }

    /// Pings site A's host from the inner address; says how many of `count` were answered. BusyBox's own ping at times leaves
    /// an answer uncounted that the guest's kernel has delivered.
    pub fn ping(&self, count: u32) -> u32 {
        answered(&self.run(&format!("/usr/bin/ping -n -c {count} -i 0.2 -W 3 -I 10.2.0.1 10.1.0.2")))
    }
}

impl Drop for LinuxPeer {
    fn drop(&mut self) {
        command::output(&mut self.script("stop"));
    }
}
