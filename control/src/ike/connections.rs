//! What the protocol machine is told about peers: a checked configuration enters, with the secrets and certificates that it
//! names, connections leave, one for each tunnel that does not share another's peer. RFC 7296 section 2.9, RFC 4945.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use penstock_ike::auth::{
    CertificateError, Identity, IdentityPattern, LocalCertificate, SharedKey, TrustStore,
};
use penstock_ike::crypto::{EspProposal, IkeProposal, Suite, SuiteError};
use penstock_ike::message::TrafficSelector;
use penstock_ike::{ChildConfig, Connection, Lifetime, LocalAuth, Remote, RemoteAuth, Settings, Start};
use penstock_tables::tunnel::MAX_SELECTORS;

use crate::config::ike::{DPD, FRAGMENT_SIZE};
use crate::config::scalar::{Peer, Prefix};
use crate::config::secret::{SecretError, read_private, read_psk, read_public};
use crate::config::{Config, Ike, StartWhen, Tunnel};

/// Octets of the IPv4 and UDP headers and of the marker before an IKE message on port 4500 (RFC 3948 section 2.2).
const AROUND_IKE: u16 = 20 + 8 + 4;

/// Why no connection can be made. What the configuration check has found already cannot happen here, except that files
/// changed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A file cannot be read, or others can.
    #[error("tunnel {tunnel}: {path} {error}")]
    File {
        /// The tunnel.
        tunnel: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: SecretError,
    },
    /// A certificate, key or revocation list does not hold what it should.
    #[error("tunnel {tunnel}: {error}")]
    Certificate {
        /// The tunnel.
        tunnel: String,
        /// What is wrong with it.
        error: CertificateError,
    },
    /// A proposal.
    #[error("tunnel {tunnel}: {error}")]
    Proposal {
        /// The tunnel.
        tunnel: String,
        /// What is wrong with it.
        error: SuiteError,
    },
    /// The tunnel lacks something that the check asks for.
    #[error("tunnel {tunnel}: {what}: run `penstock check`")]
    Incomplete {
        /// The tunnel.
        tunnel: String,
        /// What it lacks.
        what: &'static str,
    },
}

/// The connections of all tunnels with `ike`, in the order of their names. A connection has the name of the tunnel that owns
/// the peer, a child that of its tunnel.
///
/// # Errors
/// [`ConnectionError`].
pub fn connections(config: &Config) -> Result<Vec<Connection>, ConnectionError> {
    let mut sharers: BTreeMap<&str, Vec<(&str, &Tunnel, &Ike)>> = BTreeMap::new();
    let with_ike = || {
        config.tunnels.iter().filter_map(|(name, tunnel)| Some((name.as_str(), tunnel, tunnel.ike.as_ref()?)))
    };
    for (name, tunnel, ike) in with_ike() {
        if let Some(owner) = &ike.share {
            sharers.entry(owner).or_default().push((name, tunnel, ike));
        }
    }
    let mut files = Files::default();
    with_ike()
        .filter(|(_, _, ike)| ike.share.is_none())
        .map(|owner| connection(config, owner, sharers.get(owner.0).map_or(&[], Vec::as_slice), &mut files))
        .collect()
}

/// What the file says about IKEv2 as a whole.
pub fn settings(config: &Config) -> Settings {
    let ike = &config.ike;
    Settings {
        retransmit_first: ike.retransmit_first.0,
        retransmit_max: ike.retransmit_max.0,
        transmissions: ike.transmissions,
        cookie_threshold: ike.cookie_threshold as usize,
        max_half_open: ike.max_half_open as usize,
        reconnect: (ike.reconnect_first.0, ike.reconnect_max.0),
        keepalive: ike.keepalive.0,
        ranges: MAX_SELECTORS,
        export_keys: config.lab && ike.save_keys.is_some(),
        ..Settings::default()
    }
}

type Named<'a> = (&'a str, &'a Tunnel, &'a Ike);

fn connection(
    config: &Config,
    owner: Named<'_>,
    sharers: &[Named<'_>],
    files: &mut Files,
) -> Result<Connection, ConnectionError> {
    let (name, tunnel, ike) = owner;
    let incomplete = |what| ConnectionError::Incomplete { tunnel: name.into(), what };
    let local = IpAddr::V4(config.local_of(tunnel).ok_or_else(|| incomplete("no port leads to its peer"))?);
    let remote = match tunnel.peer.ok_or_else(|| incomplete("has no peer"))? {
        Peer::Address(address) => Remote::Address(address.into()),
        Peer::Network(network) => Remote::Network(selector(network)),
    };
    let (local_auth, remote_auth) = files.authentication(name, ike)?;
    let of_subject = || match &local_auth {
        LocalAuth::Psk(_) => Some(Identity::Address(local)),
        LocalAuth::Certificate(own) => own.subject_identity(),
    };
    let local_id = ike.local_id.as_ref().map(|id| id.0.clone()).or_else(of_subject);
    let remote_id = ike.remote_id.as_ref().map(|id| id.0.clone()).unwrap_or(match remote {
        Remote::Address(address) => IdentityPattern::Exact(Identity::Address(address)),
        Remote::Network(_) => IdentityPattern::Any,
    });
    let suite = suite(name, ike)?;
    let cores = config.dataplane.cores.len();
    let children = std::iter::once(&owner)
        .chain(sharers)
        .map(|child| child_config(child, (ike, &suite), cores))
        .collect::<Result<_, _>>()?;
    Ok(Connection {
        name: name.into(),
        local,
        remote,
        local_id: local_id.ok_or_else(|| incomplete("its certificate has no subject: write local_id"))?,
        remote_id,
        local_auth,
        remote_auth,
        ike: if ike.proposals.is_empty() { suite.ike } else { ike_proposals(name, ike)? },
        children,
        lifetime: Lifetime {
            hard: ike.ike_lifetime.map_or(suite.ike_lifetime, |period| period.0),
            margin: margin(
                ike.ike_rekey_margin.map(|it| it.0),
                ike.ike_lifetime.map_or(suite.ike_lifetime, |it| it.0),
            ),
            soft_bytes: None,
            soft_packets: None,
        },
        dpd: ike.dpd.map_or(Some(DPD), |dpd| dpd.0),
        force_encapsulation: ike.force_encapsulation.unwrap_or(false),
        fragment_bytes: ike
            .fragment_size
            .map_or(Some(FRAGMENT_SIZE), |size| size.0)
            .map(|octets| usize::from(octets.saturating_sub(AROUND_IKE))),
    })
}

/// One tunnel as a child; what it does not say follows from the owner of the peer.
fn child_config(
    (name, tunnel, ike): &Named<'_>,
    (owner, suite): (&Ike, &Suite),
    cores: usize,
) -> Result<Arc<ChildConfig>, ConnectionError> {
    let hard = ike.lifetime.or(owner.lifetime).map_or(suite.child_lifetime, |period| period.0);
    let starts = match (tunnel.peer, ike.start) {
        (_, Some(StartWhen::Wait)) | (Some(Peer::Network(_)), None) => Start::Wait,
        (_, Some(StartWhen::Now) | None) => Start::Now,
        (_, Some(StartWhen::Traffic)) => Start::OnTraffic,
    };
    Ok(Arc::new(ChildConfig {
        name: (*name).into(),
        local_ts: selectors(&tunnel.local_prefixes),
        remote_ts: selectors(&tunnel.remote_prefixes),
        esp: esp_proposals(name, ike, owner, suite)?,
        lifetime: Lifetime {
            hard,
            margin: margin(ike.rekey_margin.or(owner.rekey_margin).map(|period| period.0), hard),
            soft_bytes: ike.rekey_bytes.or(owner.rekey_bytes),
            soft_packets: ike.rekey_packets.or(owner.rekey_packets),
        },
        start: starts,
        per_worker: match ike.per_worker.or(owner.per_worker) {
            Some(true) => u16::try_from(cores).unwrap_or(u16::MAX).max(1),
            Some(false) | None => 1,
        },
    }))
}

/// A tenth, where nothing else is written.
fn margin(written: Option<Duration>, lifetime: Duration) -> Duration {
    written.unwrap_or(lifetime / 10)
}

fn suite(tunnel: &str, ike: &Ike) -> Result<Suite, ConnectionError> {
    let proposal = |error| ConnectionError::Proposal { tunnel: tunnel.into(), error };
    Suite::named(ike.suite.unwrap_or_default().word()).map_err(proposal)
}

fn ike_proposals(tunnel: &str, ike: &Ike) -> Result<Vec<IkeProposal>, ConnectionError> {
    let proposal = |error| ConnectionError::Proposal { tunnel: tunnel.into(), error };
    ike.proposals.iter().map(|text| IkeProposal::parse(text).map_err(proposal)).collect()
}

fn esp_proposals(
    tunnel: &str,
    ike: &Ike,
    owner: &Ike,
    suite: &Suite,
) -> Result<Vec<EspProposal>, ConnectionError> {
    let proposal = |error| ConnectionError::Proposal { tunnel: tunnel.into(), error };
    let written = if ike.esp_proposals.is_empty() { &owner.esp_proposals } else { &ike.esp_proposals };
    if !written.is_empty() {
        return written.iter().map(|text| EspProposal::parse(text).map_err(proposal)).collect();
    }
    let with_pfs = |esp: &EspProposal| match ike.pfs.or(owner.pfs) {
        Some(pfs) => esp.clone().with_pfs(pfs.0.into_iter().collect()),
        None => esp.clone(),
    };
    Ok(suite.esp.iter().map(with_pfs).collect())
}

/// No prefix at all means any.
fn selectors(prefixes: &[Prefix]) -> Vec<TrafficSelector> {
    if prefixes.is_empty() {
        return vec![TrafficSelector::any_v4()];
    }
    prefixes.iter().map(|prefix| selector(prefix.0)).collect()
}

fn selector(network: Ipv4Net) -> TrafficSelector {
    TrafficSelector::network(network.network().into(), network.prefix_len())
}

/// What was read already: many tunnels name the same files.
#[derive(Default)]
struct Files {
    psks: HashMap<PathBuf, SharedKey>,
    certificates: HashMap<(PathBuf, PathBuf), LocalCertificate>,
    stores: HashMap<(Vec<PathBuf>, Vec<PathBuf>), Arc<TrustStore>>,
}

impl Files {
    fn authentication(
        &mut self,
        tunnel: &str,
        ike: &Ike,
    ) -> Result<(LocalAuth, RemoteAuth), ConnectionError> {
        match (&ike.psk_file, &ike.certificate, &ike.key) {
            (Some(path), None, None) => {
                let psk = self.psk(tunnel, path)?;
                Ok((LocalAuth::Psk(psk.clone()), RemoteAuth::Psk(psk)))
            }
            (None, Some(certificate), Some(key)) => Ok((
                LocalAuth::Certificate(Box::new(self.certificate(tunnel, certificate, key)?)),
                RemoteAuth::Certificate(self.store(tunnel, &ike.ca.0, &ike.crl.0)?),
            )),
            _ => Err(ConnectionError::Incomplete {
                tunnel: tunnel.into(),
                what: "expected psk_file, or certificate and key",
            }),
        }
    }

    fn psk(&mut self, tunnel: &str, path: &Path) -> Result<SharedKey, ConnectionError> {
        if let Some(known) = self.psks.get(path) {
            return Ok(known.clone());
        }
        let psk = SharedKey::new(read_psk(path).map_err(|error| unread(tunnel, path, error))?.to_vec());
        self.psks.insert(path.into(), psk.clone());
        Ok(psk)
    }

    fn certificate(
        &mut self,
        tunnel: &str,
        certificate: &Path,
        key: &Path,
    ) -> Result<LocalCertificate, ConnectionError> {
        let paths = (certificate.to_path_buf(), key.to_path_buf());
        if let Some(known) = self.certificates.get(&paths) {
            return Ok(known.clone());
        }
        let chain = read_public(certificate).map_err(|error| unread(tunnel, certificate, error))?;
        let private = read_private(key).map_err(|error| unread(tunnel, key, error))?;
        let own = LocalCertificate::new(&chain, &private).map_err(|error| wrong(tunnel, error))?;
        self.certificates.insert(paths, own.clone());
        Ok(own)
    }

    fn store(
        &mut self,
        tunnel: &str,
        cas: &[PathBuf],
        crls: &[PathBuf],
    ) -> Result<Arc<TrustStore>, ConnectionError> {
        let paths = (cas.to_vec(), crls.to_vec());
        if let Some(known) = self.stores.get(&paths) {
            return Ok(known.clone());
        }
        let read = |files: &[PathBuf]| {
            let one = |path: &PathBuf| read_public(path).map_err(|error| unread(tunnel, path, error));
            files.iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        let (cas, crls) = (read(cas)?, read(crls)?);
        let store = TrustStore::new(&slices(&cas), &slices(&crls)).map_err(|error| wrong(tunnel, error))?;
        let store = Arc::new(store);
        self.stores.insert(paths, store.clone());
        Ok(store)
    }
}

fn slices(files: &[Vec<u8>]) -> Vec<&[u8]> {
    files.iter().map(Vec::as_slice).collect()
}

fn unread(tunnel: &str, path: &Path, error: SecretError) -> ConnectionError {
    ConnectionError::File { tunnel: tunnel.into(), path: path.into(), error }
}

fn wrong(tunnel: &str, error: CertificateError) -> ConnectionError {
    ConnectionError::Certificate { tunnel: tunnel.into(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Machine;

    const TEXT: &str = "
ports: {wan: {device: net_null0, addresses: [192.0.2.1/24]}}
tunnels:
  a:
    peer: 192.0.2.2
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.2.0.0/16]
    ike: {psk_file: a.psk}
  b:
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.3.0.0/16]
    ike: {share: a, start: traffic, esp_proposals: [aes128gcm16-x25519-noesn]}
  c:
    peer: any
    local: 192.0.2.1
    interface: c
    ike: {psk_file: a.psk, remote_id: '*.example.org', suite: aws, pfs: ecp384, dpd: off}
ike: {transmissions: 5}
";

    #[test]
    fn tunnels_become_connections_and_children() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let psk = directory.path().join("a.psk");
        std::fs::write(&psk, "correct horse battery staple\n").expect("written");
        std::fs::set_permissions(&psk, PermissionsExt::from_mode(0o600)).expect("mode set");
        let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
        let config = Config::parse(&directory.path().join("a.yaml"), TEXT, &machine).expect("good").config;
        let all = connections(&config).expect("complete");
        let [a, c] = &all[..] else { panic!("two peers") };
        assert_eq!((&*a.name, a.remote.clone()), ("a", Remote::Address([192, 0, 2, 2].into())));
        let LocalAuth::Psk(psk) = &a.local_auth else { panic!("a pre-shared key") };
        assert!(*psk == SharedKey::new(*b"correct horse battery staple"));
        assert_eq!(a.remote_id.to_string(), "192.0.2.2");
        let children: Vec<_> = a
            .children
            .iter()
            .map(|child| (&*child.name, child.start, child.remote_ts[0].to_string()))
            .collect();
        assert_eq!(
            children,
            [("a", Start::Now, "10.2.0.0/16".into()), ("b", Start::OnTraffic, "10.3.0.0/16".into())]
        );
        assert_eq!(a.children[1].esp, [EspProposal::parse("aes128gcm16-x25519-noesn").expect("good")]);
        assert_eq!((a.dpd, c.dpd, c.children[0].start), (Some(DPD), None, Start::Wait));
        assert_eq!(
            c.children[0].esp,
            [EspProposal::parse("aes256gcm16-aes128gcm16-ecp384-noesn").expect("good")]
        );
        assert_eq!(c.remote, Remote::Network(TrafficSelector::any_v4()));
        assert_eq!(c.children[0].remote_ts, [TrafficSelector::any_v4()]);
        assert_eq!((settings(&config).transmissions, settings(&config).export_keys), (5, false));
    }
}
