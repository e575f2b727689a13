//! The Linux kernel's own ESP in the place of gateway B (`scripts/lab/linux-peer`), ended when it is dropped.

use std::path::PathBuf;
use std::process::Command;

use super::command::{self, script, succeed};
use super::decrypt::Sealing;
use super::lab::Lab;

/// A running guest.
pub struct LinuxPeer {
    folder: PathBuf,
    namespace: String,
}

impl LinuxPeer {
    /// Boots it on the lab's wire. `inbound` is how it expects packets, `outbound` how it seals them.
    pub fn start(lab: &Lab, inbound: &Sealing, outbound: &Sealing) -> LinuxPeer {
        assert_eq!((inbound.udp, inbound.esn), (outbound.udp, outbound.esn));
        let peer = LinuxPeer { folder: lab.file("linux-peer"), namespace: lab.wire() };
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

    fn script(&self, command: &str) -> Command {
        let mut script = Command::new(script("lab/linux-peer"));
        script.arg(command).arg(&self.folder);
        script
    }

    /// Runs a command inside.
    pub fn run(&self, line: &str) -> String {
        succeed(self.script("sh").args([&self.namespace, line]))
    }
}

impl Drop for LinuxPeer {
    fn drop(&mut self) {
        command::output(&mut self.script("stop"));
    }
}
