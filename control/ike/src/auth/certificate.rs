//! Certificates: our own chain, and the verification of a peer's. Path validation, validity dates, key usage and
//! revocation are `webpki`'s; here are the identity rules of RFC 4945 and the translation into reasons.

use super::signature::{CERTIFICATE_SCHEMES, is_rsa};
use super::{Identity, KeyFormatError, PrivateKey, PublicKey};
use crate::reason::{Failure, Reason};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use sha1::{Digest, Sha1};
use std::time::Duration;
use webpki::{CertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyPurposeIdIter, OwnedCertRevocationList, RevocationCheckDepth,
};
use x509_cert::Certificate;
use x509_cert::der::asn1::OctetString;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{SubjectAltName, name::GeneralName};

/// No sane peer sends more certificates.
const MAX_CERTIFICATES: usize = 10;

/// A certificate, list or key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Neither PEM nor DER of the right kind.
    #[error("no usable {0} in the file: write it as PEM or DER")]
    Unreadable(&'static str),
    /// The private key is not the certificate's.
    #[error("the private key does not belong to the certificate of {0}")]
    KeyMismatch(String),
    /// The private key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFormatError),
    /// The certificate's key is too weak or of a foreign kind.
    #[error("the certificate's key is too weak: RSA needs 2048 bits, ECDSA P-256 or P-384")]
    WeakKey,
}

/// What a file of PEM blocks or one DER value holds.
fn blocks(bytes: &[u8], label: &'static str, what: &'static str) -> Result<Vec<Vec<u8>>, CertificateError> {
    if !bytes.starts_with(b"-----") && bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec()]);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| CertificateError::Unreadable(what))?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut out = Vec::new();
    for part in text.split(&begin).skip(1) {
        let body = part.split(&end).next().unwrap_or_default();
        let lines: Vec<&str> = body.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let pem = format!("{begin}\n{}\n{end}\n", lines.join("\n"));
        let (_, der) = x509_cert::der::pem::decode_vec(pem.as_bytes())
            .map_err(|_| CertificateError::Unreadable(what))?;
        out.push(der);
    }
    if out.is_empty() { Err(CertificateError::Unreadable(what)) } else { Ok(out) }
}

/// Our certificate, its intermediates, and its key.
#[derive(Clone)]
pub struct LocalCertificate {
    /// DER, our own first.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: PrivateKey,
    subject: String,
    not_after: u64,
}

impl LocalCertificate {
    /// Reads a chain (PEM with our own certificate first, or one DER certificate) and its private key (PEM or DER).
    ///
    /// # Errors
    /// [`CertificateError`]: unreadable, or key and certificate do not belong together.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<LocalCertificate, CertificateError> {
        let chain = blocks(chain, "CERTIFICATE", "certificate")?;
        let own = chain.first().ok_or(CertificateError::Unreadable("certificate"))?;
        let own = Certificate::from_der(own).map_err(|_| CertificateError::Unreadable("certificate"))?;
        let key = match std::str::from_utf8(key) {
            Ok(text) if text.contains("-----BEGIN") => PrivateKey::from_pem(text)?,
            _ => PrivateKey::from_der(key)?,
        };
        let subject = own.tbs_certificate().subject().to_string();
        if public_key(&own).map_err(|_| CertificateError::WeakKey)? != key.public() {
            return Err(CertificateError::KeyMismatch(subject));
        }
        Ok(LocalCertificate { chain, key, subject, not_after: not_after(&own) })
    }

    /// Sign with RSASSA-PSS instead of PKCS #1 v1.5; without effect on other keys.
    pub fn with_pss(mut self) -> LocalCertificate {
        if let PrivateKey::Rsa { pss, .. } = &mut self.key {
            *pss = true;
        }
        self
    }

    /// Subject as text.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The subject as an identity; `None` where it is empty.
    pub fn subject_identity(&self) -> Option<Identity> {
        let own = Certificate::from_der(self.chain.first()?).ok()?;
        let subject = own.tbs_certificate().subject();
        if subject.is_empty() { None } else { subject.to_der().ok().map(Identity::Dn) }
    }

    /// End of validity, seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Begin of validity, seconds since 1970.
    pub fn not_before(&self) -> u64 {
        self.chain.first().and_then(|own| Certificate::from_der(own).ok()).map_or(0, |own| not_before(&own))
    }

    /// The identities that it holds, as an operator writes them: alternative names, then the subject.
    pub fn names(&self) -> Vec<String> {
        let Some(own) = self.chain.first().and_then(|c| Certificate::from_der(c).ok()) else {
            return Vec::new();
        };
        let subject = own.tbs_certificate().subject();
        let subject = (!subject.is_empty()).then(|| subject.to_string());
        alternative_names(&own).iter().filter_map(text).chain(subject).collect()
    }

    /// Whether the certificate holds this identity (a peer would refuse another).
    pub fn holds(&self, id: &Identity) -> bool {
        self.chain.first().and_then(|c| Certificate::from_der(c).ok()).is_some_and(|c| holds_identity(&c, id))
    }
}

/// The CAs that peers' certificates must come from, and the revocation lists.
#[derive(Clone)]
pub struct TrustStore {
    anchors: Vec<TrustAnchor<'static>>,
    key_hashes: Vec<[u8; 20]>,
    validity: Vec<(String, u64)>,
    crls: std::sync::Arc<Vec<CertRevocationList<'static>>>,
}

/// A peer's certificate that was verified.
#[derive(Clone, Debug)]
pub struct VerifiedPeer {
    /// Its key, for the AUTH payload.
    pub key: PublicKey,
    /// Subject as text.
    pub subject: String,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
}

impl TrustStore {
    /// Reads CA certificates and revocation lists, each PEM (any number of blocks) or DER.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`].
    pub fn new(cas: &[&[u8]], crls: &[&[u8]]) -> Result<TrustStore, CertificateError> {
        let unreadable = |_| CertificateError::Unreadable("CA certificate");
        let (mut anchors, mut key_hashes, mut validity) = (Vec::new(), Vec::new(), Vec::new());
        for file in cas {
            for der in blocks(file, "CERTIFICATE", "CA certificate")? {
                let parsed = Certificate::from_der(&der).map_err(unreadable)?;
                let spki = parsed.tbs_certificate().subject_public_key_info().to_der().map_err(unreadable)?;
                let der = CertificateDer::from(der);
                let anchor = webpki::anchor_from_trusted_cert(&der);
                anchors.push(anchor.map_err(|_| CertificateError::Unreadable("CA certificate"))?.to_owned());
                key_hashes.push(Sha1::digest(&spki).into());
                validity.push((parsed.tbs_certificate().subject().to_string(), not_after(&parsed)));
            }
        }
        let mut lists = Vec::new();
        for file in crls {
            for der in blocks(file, "X509 CRL", "revocation list")? {
                let der = CertificateRevocationListDer::from(der);
                let list = OwnedCertRevocationList::from_der(&der);
                lists.push(list.map_err(|_| CertificateError::Unreadable("revocation list"))?.into());
            }
        }
        Ok(TrustStore { anchors, key_hashes, validity, crls: std::sync::Arc::new(lists) })
    }

    /// The body of a CERTREQ payload: SHA-1 of each CA's key (RFC 7296 3.7).
    pub(crate) fn authorities(&self) -> Vec<u8> {
        self.key_hashes.concat()
    }

    /// Subjects of the CAs and the ends of their validity, seconds since 1970.
    pub fn validity(&self) -> &[(String, u64)] {
        &self.validity
    }

    /// Verifies a peer's certificates (its own first) and that they hold its identity.
    ///
    /// # Errors
    /// A [`Failure`] that says which rule was broken.
    pub fn verify(
        &self,
        certificates: &[Vec<u8>],
        id: &Identity,
        unix_seconds: u64,
    ) -> Result<VerifiedPeer, Failure> {
        let own = certificates.first().ok_or(Reason::CertificateMissing)?;
        let parsed = Certificate::from_der(own)
            .map_err(|e| Failure::new(Reason::CertificateInvalid, e.to_string()))?;
        let subject = parsed.tbs_certificate().subject().to_string();
        let key = public_key(&parsed).map_err(|r| Failure::new(r, subject.clone()))?;
        let der: Vec<CertificateDer<'_>> =
            certificates.iter().take(MAX_CERTIFICATES).map(|c| CertificateDer::from(&c[..])).collect();
        let end_entity =
            EndEntityCert::try_from(&der[0]).map_err(|e| translate(&e, &parsed, unix_seconds))?;
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|b| {
            b.with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let time = UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds));
        end_entity
            .verify_for_usage(CERTIFICATE_SCHEMES, &self.anchors, &der[1..], time, IkeUsage, revocation, None)
            .map_err(|e| translate(&e, &parsed, unix_seconds))?;
        if !holds_identity(&parsed, id) {
            return Err(Failure::new(
                Reason::CertificateIdentityMismatch,
                format!("{subject} does not hold {id}"),
            ));
        }
        Ok(VerifiedPeer { key, subject, not_after: not_after(&parsed) })
    }
}

/// RFC 4945 5.1.3.12: no extended key usage, or any of those that gateways' certificates carry.
struct IkeUsage;

const NOT_FOR_GATEWAYS: webpki::Error = webpki::Error::UnsupportedNameType;

impl webpki::ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // serverAuth, clientAuth, ipsecEndSystem, ipsecTunnel, ipsecUser, ipsecIKE, any
        let allowed: [&[usize]; 7] = [
            &[1, 3, 6, 1, 5, 5, 7, 3, 1],
            &[1, 3, 6, 1, 5, 5, 7, 3, 2],
            &[1, 3, 6, 1, 5, 5, 7, 3, 5],
            &[1, 3, 6, 1, 5, 5, 7, 3, 6],
            &[1, 3, 6, 1, 5, 5, 7, 3, 7],
            &[1, 3, 6, 1, 5, 5, 7, 3, 17],
            &[2, 5, 29, 37, 0],
        ];
        let mut present = false;
        for oid in iter {
            present = true;
            if allowed.iter().any(|a| oid.as_ref().is_ok_and(|o| o.to_decoded_oid() == *a)) {
                return Ok(());
            }
        }
        // No other rule of path validation ends in this error.
        if present { Err(NOT_FOR_GATEWAYS) } else { Ok(()) }
    }
}

fn public_key(certificate: &Certificate) -> Result<PublicKey, Reason> {
    let spki = certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .map_err(|_| Reason::CertificateInvalid)?;
    PublicKey::from_spki(&spki)
        .map_err(|_| if is_rsa(&spki) { Reason::CertificateKeyWeak } else { Reason::CertificateInvalid })
}

fn not_after(certificate: &Certificate) -> u64 {
    certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs()
}

fn not_before(certificate: &Certificate) -> u64 {
    certificate.tbs_certificate().validity().not_before.to_unix_duration().as_secs()
}

fn translate(error: &webpki::Error, certificate: &Certificate, now: u64) -> Failure {
    use webpki::Error as E;
    let reason = match error {
        E::CertExpired { .. } => Reason::CertificateExpired,
        E::CertNotValidYet { .. } => Reason::CertificateNotYetValid,
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => Reason::CertificateUntrusted,
        E::CertRevoked => Reason::CertificateRevoked,
        E::CrlExpired { .. } => Reason::CrlExpired,
        E::UnknownRevocationStatus => Reason::RevocationUnknown,
        _ => Reason::CertificateInvalid,
    };
    let subject = certificate.tbs_certificate().subject().to_string();
    let days = |seconds: u64| seconds / 86_400;
    let detail = match reason {
        Reason::CertificateExpired if not_after(certificate) < now => {
            format!("{subject} expired {} days ago", days(now - not_after(certificate)))
        }
        Reason::CertificateNotYetValid if not_before(certificate) > now => {
            format!("{subject} becomes valid in {} days", days(not_before(certificate) - now))
        }
        Reason::CertificateInvalid if *error == NOT_FOR_GATEWAYS => {
            let what = "its extended key usage lacks serverAuth, clientAuth and ipsecIKE";
            format!("{subject}: the certificate is not for gateways: {what}")
        }
        Reason::CertificateInvalid => format!("{subject}: {error:?}"),
        Reason::CertificateUntrusted => {
            format!("{subject}, issued by {}", certificate.tbs_certificate().issuer())
        }
        _ => subject,
    };
    Failure::new(reason, detail)
}

fn alternative_names(certificate: &Certificate) -> Vec<GeneralName> {
    match certificate.tbs_certificate().get_extension::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        _ => Vec::new(),
    }
}

/// A name of a kind that an identity can be.
fn text(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(n) => Some(n.as_str().to_string()),
        GeneralName::Rfc822Name(n) => Some(n.as_str().to_string()),
        GeneralName::IpAddress(n) => match *n.as_bytes() {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            ref long => <[u8; 16]>::try_from(long).ok().map(|a| std::net::Ipv6Addr::from(a).to_string()),
        },
        GeneralName::DirectoryName(n) => Some(n.to_string()),
        _ => None,
    }
}

/// RFC 4945 3.1: host names, e-mail addresses and addresses must be in the subject alternative name, a distinguished
/// name must be the subject.
fn holds_identity(certificate: &Certificate, id: &Identity) -> bool {
    let subject = certificate.tbs_certificate().subject();
    let names = alternative_names(certificate);
    let holds = |name: &GeneralName| match (name, id) {
        (GeneralName::DnsName(n), Identity::Fqdn(_)) => Identity::Fqdn(n.as_str().to_string()).matches(id),
        (GeneralName::Rfc822Name(n), Identity::Email(_)) => {
            Identity::Email(n.as_str().to_string()).matches(id)
        }
        (GeneralName::IpAddress(n), Identity::Address(a)) => same_address(n, *a),
        (GeneralName::DirectoryName(n), Identity::Dn(_)) => {
            n.to_der().is_ok_and(|d| Identity::Dn(d).matches(id))
        }
        _ => false,
    };
    match id {
        Identity::Dn(_) if subject.to_der().is_ok_and(|d| Identity::Dn(d).matches(id)) => true,
        _ => names.iter().any(holds),
    }
}

fn same_address(octets: &OctetString, address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(a) => octets.as_bytes() == a.octets(),
        std::net::IpAddr::V6(a) => octets.as_bytes() == a.octets(),
    }
}
