//! Who the two ends are and how they prove it. Enters: identities, AUTH payloads, certificates. Leaves: a verified
//! peer, or the reason why not. RFC 7296 sections 2.15 and 3.5, RFC 7427, RFC 4945.

pub mod certificate;
pub mod identity;
pub mod signature;

use crate::crypto::Prf;
use zeroize::Zeroizing;

pub use certificate::{CertificateError, LocalCertificate, TrustStore};
pub use identity::{Identity, IdentityError, IdentityPattern};
pub use signature::{HashAlgorithm, KeyFormatError, PrivateKey, PublicKey};

/// Authentication method numbers (RFC 7296 3.8, RFC 4754, RFC 7427).
pub(crate) mod method {
    pub const RSA_SHA1: u8 = 1;
    pub const SHARED_KEY: u8 = 2;
    pub const ECDSA_P256: u8 = 9;
    pub const ECDSA_P384: u8 = 10;
    pub const SIGNATURE: u8 = 14;

    /// A name for people.
    pub fn name(method: u8) -> String {
        match method {
            RSA_SHA1 => "RSA signature with SHA-1".into(),
            SHARED_KEY => "a pre-shared key".into(),
            ECDSA_P256 | ECDSA_P384 | SIGNATURE => "a certificate".into(),
            n => format!("authentication method {n}"),
        }
    }
}

/// A pre-shared key. It has no Debug output and is wiped when dropped.
#[derive(Clone)]
pub struct SharedKey(Zeroizing<Vec<u8>>);

impl SharedKey {
    /// Takes the secret's bytes as they are.
    pub fn new(secret: impl Into<Vec<u8>>) -> SharedKey {
        SharedKey(Zeroizing::new(secret.into()))
    }

    /// The AUTH payload's data: prf(prf(key, "Key Pad for IKEv2"), octets) (RFC 7296 2.15).
    pub(crate) fn auth(&self, prf: Prf, octets: &[u8]) -> Zeroizing<Vec<u8>> {
        prf.mac(&prf.mac(&self.0, &[b"Key Pad for IKEv2"]), &[octets])
    }
}

impl PartialEq for SharedKey {
    fn eq(&self, other: &SharedKey) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.0[..], &other.0[..]).into()
    }
}
