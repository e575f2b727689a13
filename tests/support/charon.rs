//! strongSwan's charon in the place of gateway B (`scripts/lab/strongswan`): in gateway B's namespace with its own ESP in user
//! space, always in UDP; or in a guest with the Linux kernel's ESP (`scripts/lab/linux-peer`), on the wire or behind a NAT.
//! What it shall offer enters; what it says about its SAs leaves. It ends when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::command::{self, script, succeed, until};
use super::lab::{Lab, Site};
use super::peer::LinuxPeer;

/// How the two ends prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Auth {
    /// A pre-shared key.
    Psk,
    /// Certificates with keys on P-256.
    Ecdsa,
    /// Certificates with RSA keys of 2048 bits.
    Rsa,
}

impl Auth {
    /// All.
    pub const ALL: [Auth; 3] = [Auth::Psk, Auth::Ecdsa, Auth::Rsa];

    /// In the names of the lab's files.
    pub fn word(self) -> &'static str {
        match self {
            Auth::Psk => "psk",
            Auth::Ecdsa => "ecdsa",
            Auth::Rsa => "rsa",
        }
    }
}

/// The lab's pre-shared key.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// What charon is told about the one connection, `site`, and its child, `net`.
#[derive(Clone, Debug)]
pub struct Offer {
    /// How both prove who they are.
    pub auth: Auth,
    /// Proposal for the IKE SA.
    pub ike: String,
    /// Proposal for ESP.
    pub esp: String,
    /// More lines of the connection.
    pub connection: String,
    /// More lines of the child.
    pub child: String,
}

impl Offer {
    /// Without more.
    pub fn new(auth: Auth, ike: impl Into<String>, esp: impl Into<String>) -> Offer {
        let (ike, esp) = (ike.into(), esp.into());
        Offer { auth, ike, esp, connection: String::new(), child: "rekey_time = 0".into() }
    }
}

enum Place {
    /// A network namespace.
    Namespace(String),
    /// A guest, which sees the folder as /shared.
    Guest(LinuxPeer),
}

/// A running charon.
pub struct Charon {
    place: Place,
    /// Configuration, keys and log, as this side sees them.
    folder: PathBuf,
    /// Its own outer address.
    own: &'static str,
}

impl Charon {
    /// In gateway B's namespace, on the wire and with site B behind it.
    pub fn beside(lab: &Lab) -> Charon {
        succeed(Command::new(script("lab/topology")).args(["kernel", lab.prefix(), "b"]));
        Charon::within(lab.gateway(Site::B), lab.file("strongswan"))
    }

    /// In a namespace whose devices and addresses are there already.
    pub fn within(namespace: String, folder: PathBuf) -> Charon {
        let charon = Charon { place: Place::Namespace(namespace), folder, own: "192.0.2.2" };
        charon.certify();
        charon.start();
        charon
    }

    /// In a guest with a kernel that has ESP: on the wire, or behind a NAT that has its address there.
    pub fn in_guest(lab: &Lab, nat: bool) -> Charon {
        let guest = LinuxPeer::boot(lab, nat, false);
        let (folder, own) = (guest.shared(), if nat { "198.51.100.2" } else { "192.0.2.2" });
        let charon = Charon { place: Place::Guest(guest), folder, own };
        charon.certify();
        succeed(&mut charon.script("conf"));
        charon.start();
        charon
    }

    fn script(&self, command: &str) -> Command {
        let mut strongswan = Command::new(script("lab/strongswan"));
        strongswan.arg(command).arg(&self.folder);
        if let Place::Namespace(name) = &self.place {
            strongswan.arg(name);
        }
        strongswan
    }

    /// Starts it, anew after [`Charon::kill`]; it knows no connection before [`Charon::configure`] or [`Charon::load`].
    pub fn start(&self) {
        match &self.place {
            Place::Namespace(_) => drop(succeed(&mut self.script("start"))),
            Place::Guest(guest) => drop(guest.run("charon && echo started")),
        }
    }

    /// Ends it as a crash would: nothing is said to its peer.
    pub fn kill(&self) {
        match &self.place {
            Place::Namespace(_) => drop(succeed(&mut self.script("kill"))),
            Place::Guest(guest) => {
                drop(guest.run("killall -9 charon-systemd; ip xfrm state flush; ip xfrm policy flush"))
            }
        }
    }

    fn certify(&self) {
        succeed(Command::new(script("lab/pki")).arg(self.pki()));
    }

    /// The folder with the lab's CA and certificates, as `scripts/lab/pki` makes them.
    pub fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    /// Forgets what it was told before, SAs stay.
    pub fn configure(&self, offer: &Offer) {
        let swanctl = self.folder.join("swanctl");
        for folder in ["x509", "private", "x509ca"] {
            for file in fs::read_dir(swanctl.join(folder)).expect("made by the script") {
                fs::remove_file(file.expect("readable").path()).expect("it is ours");
            }
        }
        let (local, remote) = match offer.auth {
            Auth::Psk => ("auth = psk", "auth = psk"),
            certificate => {
                let end = format!("b-{}", certificate.word());
                let files =
                    [("x509", format!("{end}.pem"), "b.pem"), ("private", format!("{end}.key"), "b.key")];
                for (folder, from, to) in files.into_iter().chain([("x509ca", "ca.pem".into(), "ca.pem")]) {
                    fs::copy(self.pki().join(from), swanctl.join(folder).join(to))
                        .expect("made by the script");
                }
                ("auth = pubkey\n certs = b.pem", "auth = pubkey\n cacerts = ca.pem")
            }
        };
        let Offer { ike, esp, connection, child, .. } = offer;
        let text = format!(
            "connections {{ site {{\n version = 2\n local_addrs = {own}\n remote_addrs = 192.0.2.1\n proposals = {ike}\n mobike = no\n\
             {connection}\n local {{ {local}\n id = gw-b.example\n }}\n remote {{ {remote}\n id = gw-a.example\n }}\n\
             children {{ net {{ local_ts = 10.2.0.0/24\n remote_ts = 10.1.0.0/24\n esp_proposals = {esp}\n start_action = none\n\
             {child}\n }} }} }} }}\n\
             secrets {{ ike-1 {{ secret = \"{SECRET}\" }} }}\n",
            own = self.own,
        );
        fs::write(swanctl.join("swanctl.conf"), text).expect("written");
        self.load();
    }

    /// Loads the last configuration again.
    pub fn load(&self) {
        let (loaded, said) = self.sw("--load-all --clear");
        assert!(loaded, "{said}\n{}", self.log());
    }

    /// Runs swanctl; says whether it succeeded, and what it said.
    pub fn sw(&self, arguments: &str) -> (bool, String) {
        match &self.place {
            Place::Namespace(_) => {
                let result = command::output(self.script("sw").args(arguments.split(' ')));
                (result.status.success(), command::text(&[result.stdout, result.stderr].concat()))
            }
            Place::Guest(guest) => {
                let line = format!(
                    "export STRONGSWAN_CONF=/shared/strongswan.conf SWANCTL_DIR=/shared/swanctl\n\
                     swanctl {arguments} --uri unix:///run/charon.vici 2>&1 && echo swanctl-is-content"
                );
                let said = guest.run(&line);
                (said.contains("swanctl-is-content"), said)
            }
        }
    }

    /// The same in the background, for who serves the other end on this thread.
    pub fn spawn(&self, arguments: &str) -> std::process::Child {
        let Place::Namespace(_) = &self.place else { panic!("only in a namespace") };
        let mut swanctl = self.script("sw");
        swanctl.args(arguments.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
        swanctl.spawn().expect("swanctl")
    }

    /// Negotiates the connection; says whether that succeeded, and what swanctl said.
    pub fn initiate(&self) -> (bool, String) {
        self.sw("--initiate --child net --timeout 20")
    }

    /// Ends the connection.
    pub fn terminate(&self) -> (bool, String) {
        self.sw("--terminate --ike site --timeout 10")
    }

    /// Its SAs, as swanctl lists them.
    pub fn list(&self) -> String {
        self.sw("--list-sas").1.replace("swanctl-is-content", "")
    }

    /// Waits until it has no SAs; says whether that came.
    pub fn is_idle(&self) -> bool {
        until(Duration::from_secs(15), || self.list().trim().is_empty())
    }

    /// The kernel's SAs, where it has a guest of its own.
    pub fn states(&self) -> String {
        match &self.place {
            Place::Namespace(_) => String::new(),
            Place::Guest(guest) => guest.run("ip -s xfrm state"),
        }
    }

    /// Pings site A's host from site B; says how many of `count` were answered.
    pub fn ping(&self, lab: &Lab, count: u32) -> u32 {
        match &self.place {
            Place::Namespace(_) => lab.ping(Site::B, "10.1.0.2", count),
            Place::Guest(guest) => guest.ping(count),
        }
    }

    /// The address at site B that answers pings, and has an iperf3 server in a guest.
    pub fn inner(&self) -> &'static str {
        match &self.place {
            Place::Namespace(_) => "10.2.0.2",
            Place::Guest(_) => "10.2.0.1",
        }
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        tail(&self.folder.join("charon.log"), 60)
    }
}

/// The last lines of a file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read(file).map(|octets| command::text(&octets)).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Drop for Charon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- charon said:\n{}", self.log());
        }
        if let Place::Namespace(_) = &self.place {
            command::output(&mut self.script("stop"));
        }
    }
}
