//! What can be wrong with the secrets, certificates, CAs and revocation lists that `ike` sections name. The sections enter,
//! complaints leave; a file that many tunnels name is read once. RFC 4945 section 3.1, RFC 7296 section 2.15.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use penstock_ike::auth::{CertificateError, LocalCertificate, TrustStore};

use super::check::Found;
use super::ike::Ike;
use super::secret::{read_private, read_psk, read_public};

/// A certificate that expires within so many days is warned of.
pub const EXPIRY_WARNING_DAYS: u64 = 30;
/// Shorter pre-shared keys can be guessed by whoever poses as the peer once (RFC 7296 section 2.15).
const GOOD_PSK_LEN: usize = 20;
const DAY: u64 = 86_400;

/// The key that a complaint belongs to, and the complaint.
type Wrong = (&'static str, String);

/// What was read already, and what is wrong with it.
pub(super) struct Files {
    now: u64,
    psks: HashMap<PathBuf, Option<String>>,
    certificates: HashMap<(PathBuf, PathBuf), Result<LocalCertificate, Wrong>>,
    trusted: HashMap<(&'static str, PathBuf), Option<String>>,
}

impl Files {
    /// Nothing read yet; validity is checked against the clock of this machine.
    pub(super) fn new() -> Files {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Files { now, psks: HashMap::new(), certificates: HashMap::new(), trusted: HashMap::new() }
    }

    /// Checks how the two ends of a tunnel are to prove who they are.
    pub(super) fn authentication(&mut self, path: &str, ike: &Ike, found: &mut Found) {
        let belongs = "belongs to certificate: add that, or remove this";
        match (&ike.psk_file, &ike.certificate) {
            (Some(_), Some(_)) => {
                found.error(format!("{path}.certificate"), "the tunnel has psk_file too: keep one of them");
            }
            (None, None) => {
                let message = "does not say how the gateways prove who they are: write psk_file, or certificate, key and ca";
                found.error(path, message);
            }
            (Some(file), None) => self.psk(path, file, found),
            (None, Some(file)) => self.certificate(path, file, ike, found),
        }
        if ike.certificate.is_none() {
            let keys =
                [("key", ike.key.is_some()), ("ca", !ike.ca.0.is_empty()), ("crl", !ike.crl.0.is_empty())];
            for (key, _) in keys.iter().filter(|(_, written)| *written) {
                found.error(format!("{path}.{key}"), belongs);
            }
        }
    }

    fn psk(&mut self, path: &str, file: &Path, found: &mut Found) {
        let path = format!("{path}.psk_file");
        let wrong = match self.psks.get(file) {
            Some(known) => known.clone(),
            None => {
                let wrong = match read_psk(file) {
                    Ok(psk) => {
                        if psk.len() < GOOD_PSK_LEN {
                            let message = "has fewer than 20 octets: whoever poses as the peer can guess it; make one \
                                           with `openssl rand -base64 32`";
                            found.warning(&path, message);
                        }
                        None
                    }
                    Err(error) => Some(format!("`{}` {error}", file.display())),
                };
                self.psks.insert(file.into(), wrong.clone());
                wrong
            }
        };
        if let Some(wrong) = wrong {
            found.error(path, wrong);
        }
    }

    fn certificate(&mut self, path: &str, file: &Path, ike: &Ike, found: &mut Found) {
        match &ike.key {
            None => found.error(path, "key is missing: a certificate proves nothing without its private key"),
            Some(key) => self.own(path, file, key, ike, found),
        }
        if ike.remote_id.is_none() {
            let message = "remote_id is missing: write who the peer must prove to be, or any for everyone whom the CA certified";
            found.error(path, message);
        }
        if ike.ca.0.is_empty() {
            found.error(path, "ca is missing: without a CA no certificate of the peer can be trusted");
        }
        for (index, ca) in ike.ca.0.iter().enumerate() {
            self.trust("ca", &format!("{path}.ca[{index}]"), ca, found);
        }
        for (index, crl) in ike.crl.0.iter().enumerate() {
            self.trust("crl", &format!("{path}.crl[{index}]"), crl, found);
        }
    }

    /// Our own certificate: readable, of the key, valid now, and holding the identity that we claim.
    fn own(&mut self, path: &str, file: &Path, key: &Path, ike: &Ike, found: &mut Found) {
        let paths = (file.to_path_buf(), key.to_path_buf());
        let first = !self.certificates.contains_key(&paths);
        let now = self.now;
        let own = self.certificates.entry(paths).or_insert_with(|| read_own(file, key));
        let own = match own {
            Ok(own) => own,
            Err((key, wrong)) => return found.error(format!("{path}.{key}"), wrong.clone()),
        };
        let subject = own.subject();
        match validity(own.not_before(), own.not_after(), now) {
            Validity::Wrong(wrong) => {
                found.error(format!("{path}.certificate"), format!("the certificate of {subject} {wrong}"));
            }
            Validity::Ending(days) if first => {
                let message = format!("the certificate of {subject} expires in {days} days: renew it");
                found.warning(&format!("{path}.certificate"), &message);
            }
            Validity::Ending(_) | Validity::Good => (),
        }
        match &ike.local_id {
            Some(id) if !own.holds(&id.0) => {
                let message = format!(
                    "`{id}` is not in the certificate, so peers would refuse it: it holds {}",
                    own.names().join(", ")
                );
                found.error(format!("{path}.local_id"), message);
            }
            None if own.subject_identity().is_none() => {
                let message = format!(
                    "local_id is missing, and the certificate has no subject to take: write one of {}",
                    own.names().join(", ")
                );
                found.error(path, message);
            }
            _ => (),
        }
    }

    /// A file of CA certificates or of revocation lists.
    fn trust(&mut self, kind: &'static str, path: &str, file: &Path, found: &mut Found) {
        let now = self.now;
        let wrong = match self.trusted.get(&(kind, file.to_path_buf())) {
            Some(known) => known.clone(),
            None => {
                let wrong = check_trust(kind, path, file, now, found).err();
                self.trusted.insert((kind, file.into()), wrong.clone());
                wrong
            }
        };
        if let Some(wrong) = wrong {
            found.error(path, wrong);
        }
    }
}

fn read_own(file: &Path, key: &Path) -> Result<LocalCertificate, Wrong> {
    let shown = |file: &Path, error: &dyn std::fmt::Display| format!("`{}` {error}", file.display());
    let chain = read_public(file).map_err(|error| ("certificate", shown(file, &error)))?;
    let private = read_private(key).map_err(|error| ("key", shown(key, &error)))?;
    LocalCertificate::new(&chain, &private).map_err(|error| match error {
        CertificateError::Unreadable(_) | CertificateError::WeakKey => {
            ("certificate", format!("`{}`: {error}", file.display()))
        }
        CertificateError::KeyMismatch(_) | CertificateError::Key(_) => {
            ("key", format!("`{}`: {error}", key.display()))
        }
    })
}

/// What is wrong with a file of CA certificates or revocation lists; warns of CAs that end soon.
fn check_trust(kind: &str, path: &str, file: &Path, now: u64, found: &mut Found) -> Result<(), String> {
    let octets = read_public(file).map_err(|error| format!("`{}` {error}", file.display()))?;
    let store = match kind {
        "ca" => TrustStore::new(&[&octets], &[]),
        _ => TrustStore::new(&[], &[&octets]),
    };
    let store = store.map_err(|error| format!("`{}`: {error}", file.display()))?;
    for (subject, not_after) in store.validity() {
        match validity(0, *not_after, now) {
            Validity::Wrong(wrong) => return Err(format!("the certificate of the CA {subject} {wrong}")),
            Validity::Ending(days) => {
                let message = format!("the certificate of the CA {subject} expires in {days} days: renew it");
                found.warning(path, &message);
            }
            Validity::Good => (),
        }
    }
    Ok(())
}

enum Validity {
    Good,
    /// Days until it is over.
    Ending(u64),
    Wrong(String),
}

fn validity(not_before: u64, not_after: u64, now: u64) -> Validity {
    if now < not_before {
        let days = (not_before - now).div_ceil(DAY);
        return Validity::Wrong(format!("becomes valid in {days} days: is the clock of this machine right?"));
    }
    match not_after.checked_sub(now) {
        None => Validity::Wrong(format!("expired {} days ago: renew it", (now - not_after) / DAY)),
        Some(left) if left < EXPIRY_WARNING_DAYS * DAY => Validity::Ending(left / DAY),
        Some(_) => Validity::Good,
    }
}
