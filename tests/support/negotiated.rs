//! Tunnels whose keys are negotiated: what the gateway of a site shall propose enters, the YAML of the tunnel leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::charon::{Auth, SECRET};
use super::gateway::tunnel;
use super::lab::{Lab, Site};

/// The `ike` section of the tunnel `site`.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// How both prove who they are.
    pub auth: Auth,
    /// The folder of the lab's certificates.
    pub pki: PathBuf,
    /// `now`, `traffic` or `wait`.
    pub start: &'static str,
    /// More lines of the section.
    pub more: String,
}

impl Negotiated {
    /// With these proposals.
    pub fn new(auth: Auth, pki: &Path, start: &'static str, ike: &str, esp: &str) -> Negotiated {
        let more = format!("proposals: [{ike}]\nesp_proposals: [{esp}]\n");
        Negotiated { auth, pki: pki.into(), start, more }
    }

    /// With a named suite.
    pub fn suite(auth: Auth, pki: &Path, start: &'static str, suite: &str) -> Negotiated {
        Negotiated { auth, pki: pki.into(), start, more: format!("suite: {suite}\n") }
    }

    /// One more line.
    pub fn with(mut self, line: &str) -> Negotiated {
        self.more += line;
        self.more.push('\n');
        self
    }

    /// The tunnel, for [`super::gateway::Setup`].
    pub fn tunnel(&self, lab: &Lab, site: Site) -> String {
        tunnel(site, "ike:", &self.section(lab, site))
    }

    fn section(&self, lab: &Lab, site: Site) -> String {
        let (own, other) = (site.letter(), site.other().letter());
        let pki = self.pki.display();
        let proof = match self.auth {
            Auth::Psk => format!("psk_file: {}\n", secret(lab).display()),
            kind => {
                let kind = kind.word();
                format!(
                    "certificate: {pki}/{own}-{kind}.pem\nkey: {pki}/{own}-{kind}.key\nca: {pki}/ca.pem\n"
                )
            }
        };
        let lines = format!(
            "{proof}local_id: gw-{own}.example\nremote_id: gw-{other}.example\nstart: {}\n{}",
            self.start, self.more
        );
        lines.lines().map(|line| format!("  {line}\n")).collect()
    }
}

/// The lab's pre-shared key, in a file that only its owner may read.
pub fn secret(lab: &Lab) -> PathBuf {
    let file = lab.file("psk");
    if !file.exists() {
        fs::write(&file, SECRET).expect("the lab's folder is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    file
}
