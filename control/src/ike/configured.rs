//! The connections of a configuration, and what of them is new: the file and the secrets that it names enter, connections
//! with digests leave. By the digests it is known which SAs can stay when the file is read again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use penstock_ike::Connection;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::connections::{ConnectionError, connections};
use crate::config::{Config, Ike, Tunnel};

/// SHA-256 of what something was made of.
pub(crate) type Digest = [u8; 32];

/// A connection as the file has it.
pub(crate) struct Configured {
    /// For the machine.
    pub connection: Connection,
    /// Outer address of this gateway.
    pub local: Ipv4Addr,
    /// Addresses, identities, secrets, proposals: where it changes, the IKE SA is made anew.
    pub peer: Digest,
    /// Selectors and proposals of each child, by the name of its tunnel.
    pub children: BTreeMap<Arc<str>, Digest>,
    /// Everything.
    pub whole: Digest,
}

impl std::fmt::Debug for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configured").field("name", &self.connection.name).finish_non_exhaustive()
    }
}

/// The connections of a checked configuration, by name.
///
/// # Errors
/// [`ConnectionError`].
pub(crate) fn configured(config: &Config) -> Result<BTreeMap<Arc<str>, Configured>, ConnectionError> {
    let one = |connection: Connection| {
        let name = connection.name.clone();
        let tunnels: Vec<(&Arc<str>, &Tunnel)> = connection
            .children
            .iter()
            .filter_map(|child| Some((&child.name, config.tunnels.get(&*child.name)?)))
            .collect();
        let owner = config.tunnels.get(&*name).and_then(|tunnel| Some((tunnel, tunnel.ike.as_ref()?)));
        let children: BTreeMap<Arc<str>, Digest> = tunnels
            .iter()
            .map(|(child, tunnel)| ((*child).clone(), child_digest(tunnel, owner.map(|(_, ike)| ike))))
            .collect();
        let parts: Vec<&Option<Ike>> = tunnels.iter().map(|(_, tunnel)| &tunnel.ike).collect();
        let peer = owner.map_or([0; 32], |(tunnel, ike)| peer_digest(&connection, tunnel, ike));
        let digests: Vec<String> = children.values().map(hex).collect();
        let whole = digest(&(hex(&peer), parts, digests));
        let local = match connection.local {
            IpAddr::V4(local) => local,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        (name, Configured { local, peer, children, whole, connection })
    };
    Ok(connections(config)?.into_iter().map(one).collect())
}

/// What the IKE SA was negotiated with.
fn peer_digest(connection: &Connection, tunnel: &Tunnel, ike: &Ike) -> Digest {
    // What these say holds from the next exchange on, without a new IKE SA.
    let lasting = Ike {
        start: None,
        lifetime: None,
        rekey_margin: None,
        rekey_bytes: None,
        rekey_packets: None,
        ike_lifetime: None,
        ike_rekey_margin: None,
        dpd: None,
        fragment_size: None,
        per_worker: None,
        esp_proposals: Vec::new(),
        pfs: None,
        ..ike.clone()
    };
    let files = [&ike.psk_file, &ike.certificate, &ike.key].into_iter().flatten();
    let contents: Vec<String> =
        files.chain(&ike.ca.0).chain(&ike.crl.0).map(|path| hex(&file_digest(path))).collect();
    digest(&(connection.local, &tunnel.peer, lasting, contents))
}

/// What a child SA was negotiated with.
fn child_digest(tunnel: &Tunnel, owner: Option<&Ike>) -> Digest {
    let proposals = [tunnel.ike.as_ref(), owner].map(|ike| ike.map(|ike| (&ike.esp_proposals, &ike.pfs)));
    digest(&(&tunnel.local_prefixes, &tunnel.remote_prefixes, proposals))
}

fn digest(of: &impl Serialize) -> Digest {
    Sha256::digest(serde_json::to_vec(of).unwrap_or_default()).into()
}

/// The check has read the file already; one that is gone meanwhile differs from what it was.
fn file_digest(path: &Path) -> Digest {
    Sha256::digest(zeroize::Zeroizing::new(std::fs::read(path).unwrap_or_default())).into()
}

fn hex(digest: &Digest) -> String {
    digest.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::Machine;

    /// What the file says with these remote prefixes of the tunnel.
    fn with(folder: &Path, prefixes: &str) -> Configured {
        let text = format!(
            "name: a\nports:\n  wan: {{device: net_null0, addresses: [192.0.2.1/24]}}\n  lan: {{device: net_null1, addresses: \
             [10.1.0.1/24]}}\ntunnels:\n  t:\n    peer: 192.0.2.2\n    local_prefixes: [10.1.0.0/24]\n    \
             remote_prefixes: {prefixes}\n    ike: {{psk_file: a.psk}}\n"
        );
        let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
        let checked = Config::parse(&folder.join("a.yaml"), &text, &machine).expect("good");
        configured(&checked.config).expect("readable").remove("t").expect("the tunnel")
    }

    #[test]
    fn other_selectors_reach_the_machine_and_keep_the_ike_sa() {
        let folder = tempfile::tempdir().expect("a folder");
        let psk = folder.path().join("a.psk");
        std::fs::write(&psk, "f3Lh2Zk1pQ9xVb7NcR5tYw8sUe4oAi6D\n").expect("written");
        std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o600)).expect("mode");
        let [before, same, after] = ["[10.2.0.0/24]", "[10.2.0.0/24]", "[10.2.0.0/24, 10.102.0.0/24]"]
            .map(|prefixes| with(folder.path(), prefixes));
        assert_eq!(before.whole, same.whole);
        assert_eq!(before.peer, after.peer, "the IKE SA stays");
        assert_ne!(before.children, after.children, "its child does not");
        assert_ne!(before.whole, after.whole, "and the machine is told");
    }
}
