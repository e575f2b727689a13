//! libreswan's pluto in the place of gateway B, with the Linux kernel's ESP (`scripts/lab/libreswan`, `scripts/lab/linux-peer`).
//! It ends when it is dropped.

use std::path::PathBuf;
use std::process::Command;

use super::charon::{Auth, tail};
use super::command::{script, succeed};
use super::lab::Lab;
use super::peer::LinuxPeer;

const WHACK: &str = "/usr/libexec/ipsec/whack";

/// A guest in which pluto can run.
pub struct Libreswan {
    guest: LinuxPeer,
}

impl Libreswan {
    /// Boots the guest on the lab's wire and makes the lab's certificates.
    pub fn boot(lab: &Lab) -> Libreswan {
        let guest = LinuxPeer::boot(lab, false, true);
        succeed(Command::new(script("lab/pki")).arg(guest.shared().join("pki")));
        Libreswan { guest }
    }

    /// The folder with the lab's CA and certificates.
    pub fn pki(&self) -> PathBuf {
        self.guest.shared().join("pki")
    }

    /// Starts pluto anew with these proposals and no memory; `more` are lines of the connection.
    pub fn configure(&self, auth: Auth, ike: &str, esp: &str, more: &[&str]) {
        self.guest.run("killall -9 pluto; ip xfrm state flush; ip xfrm policy flush; rm -f /run/pluto/*");
        let mut conf = Command::new(script("lab/libreswan"));
        conf.arg("conf").arg(self.guest.shared()).args([auth.word(), ike, esp]).args(more);
        succeed(&mut conf);
        let said = self.guest.run("pluto && echo pluto-is-content");
        assert!(said.contains("pluto-is-content"), "{said}\n{}", self.log());
    }

    /// Runs whack on the connection; says what it said.
    pub fn whack(&self, arguments: &str) -> String {
        self.guest.run(&format!("timeout 20 {WHACK} {arguments} --name site 2>&1"))
    }

    /// The numbers of the newest IKE SA and of the newest child, as pluto counts; 0 for none.
    pub fn newest(&self) -> (u32, u32) {
        let status = self.guest.run(&format!("{WHACK} --status"));
        let number = |what: &str| {
            let rest = status.split(what).nth(1).unwrap_or_default();
            rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        (number("newest IKE SA: #"), number("newest IPsec SA: #"))
    }

    /// Runs a command inside.
    pub fn run(&self, line: &str) -> String {
        self.guest.run(line)
    }

    /// Pings site A's host from site B; says how many of `count` were answered.
    pub fn ping(&self, count: u32) -> u32 {
        self.guest.ping(count)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        tail(&self.guest.shared().join("pluto.log"), 60)
    }
}

impl Drop for Libreswan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- pluto said:\n{}", self.log());
        }
    }
}
