//! Signatures: ECDSA on P-256 and P-384, RSA (PKCS #1 v1.5 and PSS) of at least 2048 bits, Ed25519; in AUTH payloads
//! (RFC 7427, RFC 8420, RFC 4754) and in certificates. Enters: keys, octets, signatures. Leaves: a signature with its
//! method, or whether one is valid.

use super::method;
use crate::crypto::Rng;
use crate::reason::Reason;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use rsa::signature::{RandomizedSigner, SignatureEncoding, Signer, Verifier};
use rsa::traits::PublicKeyParts;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::spki::{DecodePublicKey, ObjectIdentifier, SubjectPublicKeyInfoRef};

const RSA_MIN_BITS: u32 = 2048;

/// Hash algorithms of RFC 7427 section 7 and RFC 8420.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// SHA2-256
    Sha256,
    /// SHA2-384
    Sha384,
    /// SHA2-512
    Sha512,
    /// The signature scheme hashes by itself (Ed25519).
    Identity,
}

impl HashAlgorithm {
    /// All that may be announced.
    pub const ALL: [HashAlgorithm; 4] = [Self::Sha256, Self::Sha384, Self::Sha512, Self::Identity];

    /// Number on the wire.
    pub fn id(self) -> u16 {
        match self {
            HashAlgorithm::Sha256 => 2,
            HashAlgorithm::Sha384 => 3,
            HashAlgorithm::Sha512 => 4,
            HashAlgorithm::Identity => 5,
        }
    }

    /// The data of a SIGNATURE_HASH_ALGORITHMS notify.
    pub fn announce() -> Vec<u8> {
        Self::ALL.iter().flat_map(|h| h.id().to_be_bytes()).collect()
    }

    /// What a peer's notify announces; unknown numbers are skipped.
    pub fn announced(data: &[u8]) -> Vec<HashAlgorithm> {
        let ids: Vec<u16> = data.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
        Self::ALL.into_iter().filter(|h| ids.contains(&h.id())).collect()
    }

    fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            HashAlgorithm::Sha256 => Sha256::digest(data).to_vec(),
            HashAlgorithm::Sha384 => Sha384::digest(data).to_vec(),
            HashAlgorithm::Sha512 => Sha512::digest(data).to_vec(),
            HashAlgorithm::Identity => data.to_vec(),
        }
    }
}

/// A private key that signs AUTH payloads.
#[derive(Clone)]
pub enum PrivateKey {
    /// ECDSA on P-256.
    P256(Box<p256::ecdsa::SigningKey>),
    /// ECDSA on P-384.
    P384(Box<p384::ecdsa::SigningKey>),
    /// RSA; `pss` chooses RSASSA-PSS instead of PKCS #1 v1.5.
    Rsa {
        /// The key.
        key: Box<rsa::RsaPrivateKey>,
        /// Sign with RSASSA-PSS.
        pss: bool,
    },
    /// Ed25519.
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

/// A key file that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    /// Neither PKCS #8 nor SEC 1 nor PKCS #1.
    #[error(
        "no private key that is usable here: write ECDSA P-256/P-384, RSA or Ed25519 as PKCS #8, SEC 1 or PKCS #1"
    )]
    Unknown,
    /// An RSA key that is too short.
    #[error("the RSA key has {0} bits: use at least 2048, or ECDSA P-256")]
    RsaTooShort(u32),
}

impl PrivateKey {
    /// Reads a DER key: PKCS #8 of any supported kind, SEC 1 (EC) or PKCS #1 (RSA).
    ///
    /// # Errors
    /// [`KeyFormatError`].
    pub fn from_der(der: &[u8]) -> Result<PrivateKey, KeyFormatError> {
        if let Ok(k) = p256::SecretKey::from_pkcs8_der(der).or_else(|_| p256::SecretKey::from_sec1_der(der)) {
            return Ok(PrivateKey::P256(Box::new(k.into())));
        }
        if let Ok(k) = p384::SecretKey::from_pkcs8_der(der).or_else(|_| p384::SecretKey::from_sec1_der(der)) {
            return Ok(PrivateKey::P384(Box::new(k.into())));
        }
        if let Ok(k) = ed25519_dalek::SigningKey::from_pkcs8_der(der) {
            return Ok(PrivateKey::Ed25519(Box::new(k)));
        }
        let rsa = rsa::RsaPrivateKey::from_pkcs8_der(der).ok();
        let key =
            rsa.or_else(|| rsa::RsaPrivateKey::from_pkcs1_der(der).ok()).ok_or(KeyFormatError::Unknown)?;
        match key.n().bits() {
            bits if bits < RSA_MIN_BITS => Err(KeyFormatError::RsaTooShort(bits)),
            _ => Ok(PrivateKey::Rsa { key: Box::new(key), pss: false }),
        }
    }

    /// Reads a PEM key.
    ///
    /// # Errors
    /// [`KeyFormatError`].
    pub fn from_pem(pem: &str) -> Result<PrivateKey, KeyFormatError> {
        // EC files may begin with a block of parameters: take the block that says it is a key.
        let start = pem.match_indices("-----BEGIN ").map(|(i, _)| i);
        let block =
            start.map(|i| &pem[i..]).find(|b| b.lines().next().is_some_and(|l| l.contains("PRIVATE KEY")));
        let block = block.ok_or(KeyFormatError::Unknown)?;
        let (_, der) = x509_cert::der::pem::decode_vec(trim_block(block).as_bytes())
            .map_err(|_| KeyFormatError::Unknown)?;
        let der = zeroize::Zeroizing::new(der);
        PrivateKey::from_der(&der)
    }

    /// The matching public key.
    pub fn public(&self) -> PublicKey {
        match self {
            PrivateKey::P256(k) => PublicKey::P256(*k.verifying_key()),
            PrivateKey::P384(k) => PublicKey::P384(*k.verifying_key()),
            PrivateKey::Rsa { key, .. } => PublicKey::Rsa(Box::new(key.to_public_key())),
            PrivateKey::Ed25519(k) => PublicKey::Ed25519(k.verifying_key()),
        }
    }

    /// Signs for an AUTH payload: method number and data. `peer_hashes` is None if the peer did not announce any
    /// (then only the ECDSA methods of RFC 4754 are possible).
    ///
    /// # Errors
    /// [`Reason::NoCommonSignatureHash`].
    pub fn sign(
        &self,
        octets: &[u8],
        peer_hashes: Option<&[HashAlgorithm]>,
        rng: &mut Rng,
    ) -> Result<(u8, Vec<u8>), Reason> {
        use HashAlgorithm::{Identity, Sha256, Sha384, Sha512};
        let Some(hashes) = peer_hashes else { return self.sign_rfc4754(octets) };
        let preferred: &[HashAlgorithm] = match self {
            PrivateKey::P384(_) => &[Sha384, Sha512, Sha256],
            PrivateKey::Ed25519(_) => &[Identity],
            _ => &[Sha256, Sha384, Sha512],
        };
        let hash = *preferred.iter().find(|h| hashes.contains(h)).ok_or(Reason::NoCommonSignatureHash)?;
        let failed = |_| Reason::NoCommonSignatureHash;
        let (scheme, signature) = match self {
            PrivateKey::P256(k) => {
                let s: p256::ecdsa::Signature = k.sign_prehash(&hash.digest(octets)).map_err(failed)?;
                (Scheme::Ecdsa(hash), s.to_der().as_bytes().to_vec())
            }
            PrivateKey::P384(k) => {
                let s: p384::ecdsa::Signature = k.sign_prehash(&hash.digest(octets)).map_err(failed)?;
                (Scheme::Ecdsa(hash), s.to_der().as_bytes().to_vec())
            }
            PrivateKey::Ed25519(k) => (Scheme::Ed25519, k.sign(octets).to_bytes().to_vec()),
            PrivateKey::Rsa { key, pss } => {
                let scheme = if *pss { Scheme::RsaPss(hash) } else { Scheme::RsaPkcs1(hash) };
                (scheme, rsa_sign(key, *pss, hash, octets, rng).ok_or(Reason::NoCommonSignatureHash)?)
            }
        };
        let algorithm = scheme.algorithm().ok_or(Reason::NoCommonSignatureHash)?;
        let der = sequence(&algorithm);
        let mut data = vec![der.len() as u8];
        data.extend(der);
        data.extend(signature);
        Ok((method::SIGNATURE, data))
    }

    fn sign_rfc4754(&self, octets: &[u8]) -> Result<(u8, Vec<u8>), Reason> {
        match self {
            PrivateKey::P256(k) => {
                let s: p256::ecdsa::Signature = k.sign(octets);
                Ok((method::ECDSA_P256, s.to_bytes().to_vec()))
            }
            PrivateKey::P384(k) => {
                let s: p384::ecdsa::Signature = k.sign(octets);
                Ok((method::ECDSA_P384, s.to_bytes().to_vec()))
            }
            _ => Err(Reason::NoCommonSignatureHash),
        }
    }
}

/// Only the block itself, without what people leave after it.
fn trim_block(block: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for line in block.lines().map(str::trim_end) {
        out.push(line);
        if line.starts_with("-----END ") {
            break;
        }
    }
    out.join("\n") + "\n"
}

fn rsa_sign(
    key: &rsa::RsaPrivateKey,
    pss: bool,
    hash: HashAlgorithm,
    octets: &[u8],
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    // The randomized signers blind the private operation.
    use rsa::{pkcs1v15, pss as rsapss};
    let key = key.clone();
    Some(match (pss, hash) {
        (false, HashAlgorithm::Sha256) => {
            pkcs1v15::SigningKey::<Sha256>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (false, HashAlgorithm::Sha384) => {
            pkcs1v15::SigningKey::<Sha384>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (false, HashAlgorithm::Sha512) => {
            pkcs1v15::SigningKey::<Sha512>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (true, HashAlgorithm::Sha256) => {
            rsapss::SigningKey::<Sha256>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (true, HashAlgorithm::Sha384) => {
            rsapss::SigningKey::<Sha384>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (true, HashAlgorithm::Sha512) => {
            rsapss::SigningKey::<Sha512>::new(key).try_sign_with_rng(rng, octets).ok()?.to_vec()
        }
        (_, HashAlgorithm::Identity) => return None,
    })
}

/// A signature scheme that may appear in an AUTH payload or a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Ecdsa(HashAlgorithm),
    RsaPkcs1(HashAlgorithm),
    RsaPss(HashAlgorithm),
    Ed25519,
}

const SCHEMES: [Scheme; 10] = [
    Scheme::Ecdsa(HashAlgorithm::Sha256),
    Scheme::Ecdsa(HashAlgorithm::Sha384),
    Scheme::Ecdsa(HashAlgorithm::Sha512),
    Scheme::RsaPkcs1(HashAlgorithm::Sha256),
    Scheme::RsaPkcs1(HashAlgorithm::Sha384),
    Scheme::RsaPkcs1(HashAlgorithm::Sha512),
    Scheme::RsaPss(HashAlgorithm::Sha256),
    Scheme::RsaPss(HashAlgorithm::Sha384),
    Scheme::RsaPss(HashAlgorithm::Sha512),
    Scheme::Ed25519,
];

impl Scheme {
    fn algorithm(self) -> Option<AlgorithmIdentifier> {
        use HashAlgorithm::{Sha256, Sha384, Sha512};
        Some(match self {
            Scheme::Ecdsa(Sha256) => alg_id::ECDSA_SHA256,
            Scheme::Ecdsa(Sha384) => alg_id::ECDSA_SHA384,
            Scheme::Ecdsa(Sha512) => alg_id::ECDSA_SHA512,
            Scheme::RsaPkcs1(Sha256) => alg_id::RSA_PKCS1_SHA256,
            Scheme::RsaPkcs1(Sha384) => alg_id::RSA_PKCS1_SHA384,
            Scheme::RsaPkcs1(Sha512) => alg_id::RSA_PKCS1_SHA512,
            Scheme::RsaPss(Sha256) => alg_id::RSA_PSS_SHA256,
            Scheme::RsaPss(Sha384) => alg_id::RSA_PSS_SHA384,
            Scheme::RsaPss(Sha512) => alg_id::RSA_PSS_SHA512,
            Scheme::Ed25519 => alg_id::ED25519,
            _ => return None,
        })
    }
}

fn sequence(contents: &[u8]) -> Vec<u8> {
    let mut out = vec![0x30, contents.len() as u8];
    out.extend(contents);
    out
}

/// A peer's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// ECDSA on P-256.
    P256(p256::ecdsa::VerifyingKey),
    /// ECDSA on P-384.
    P384(p384::ecdsa::VerifyingKey),
    /// RSA.
    Rsa(Box<rsa::RsaPublicKey>),
    /// Ed25519.
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl PublicKey {
    /// Reads a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`Reason::CertificateKeyWeak`] for kinds that are not allowed and for short RSA keys.
    pub fn from_spki(der: &[u8]) -> Result<PublicKey, Reason> {
        if let Ok(k) = p256::PublicKey::from_public_key_der(der) {
            return Ok(PublicKey::P256(k.into()));
        }
        if let Ok(k) = p384::PublicKey::from_public_key_der(der) {
            return Ok(PublicKey::P384(k.into()));
        }
        if let Ok(k) = ed25519_dalek::VerifyingKey::from_public_key_der(der) {
            return Ok(PublicKey::Ed25519(k));
        }
        match rsa::RsaPublicKey::from_public_key_der(der) {
            Ok(k) if k.n().bits() >= RSA_MIN_BITS => Ok(PublicKey::Rsa(Box::new(k))),
            _ => Err(Reason::CertificateKeyWeak),
        }
    }

    /// Verifies an AUTH payload's data.
    ///
    /// # Errors
    /// [`Reason::SignatureAlgorithmRefused`] or [`Reason::SignatureInvalid`].
    pub fn verify(&self, auth_method: u8, data: &[u8], octets: &[u8]) -> Result<(), Reason> {
        let invalid = Reason::SignatureInvalid;
        match (auth_method, self) {
            (method::ECDSA_P256, PublicKey::P256(k)) => k
                .verify(octets, &p256::ecdsa::Signature::from_slice(data).map_err(|_| invalid)?)
                .map_err(|_| invalid),
            (method::ECDSA_P384, PublicKey::P384(k)) => k
                .verify(octets, &p384::ecdsa::Signature::from_slice(data).map_err(|_| invalid)?)
                .map_err(|_| invalid),
            (method::SIGNATURE, _) => {
                let (length, rest) = data.split_first().ok_or(invalid)?;
                let (algorithm, signature) = rest.split_at_checked(usize::from(*length)).ok_or(invalid)?;
                let wanted = |s: &Scheme| s.algorithm().is_some_and(|a| sequence(&a) == algorithm);
                let scheme = SCHEMES.into_iter().find(wanted).ok_or(Reason::SignatureAlgorithmRefused)?;
                self.verify_scheme(scheme, octets, signature).map_err(|()| invalid)
            }
            _ => Err(Reason::SignatureAlgorithmRefused),
        }
    }

    fn verify_scheme(&self, scheme: Scheme, octets: &[u8], signature: &[u8]) -> Result<(), ()> {
        use HashAlgorithm::{Sha256 as S256, Sha384 as S384, Sha512 as S512};
        use rsa::{pkcs1v15, pss};
        match (self, scheme) {
            (PublicKey::P256(k), Scheme::Ecdsa(h)) => {
                let s = p256::ecdsa::Signature::from_der(signature).map_err(|_| ())?;
                k.verify_prehash(&h.digest(octets), &s).map_err(|_| ())
            }
            (PublicKey::P384(k), Scheme::Ecdsa(h)) => {
                let s = p384::ecdsa::Signature::from_der(signature).map_err(|_| ())?;
                k.verify_prehash(&h.digest(octets), &s).map_err(|_| ())
            }
            (PublicKey::Ed25519(k), Scheme::Ed25519) => {
                let s = ed25519_dalek::Signature::from_slice(signature).map_err(|_| ())?;
                k.verify_strict(octets, &s).map_err(|_| ())
            }
            (PublicKey::Rsa(k), Scheme::RsaPkcs1(h)) => {
                let s = pkcs1v15::Signature::try_from(signature).map_err(|_| ())?;
                let k = (**k).clone();
                match h {
                    S256 => pkcs1v15::VerifyingKey::<Sha256>::new(k).verify(octets, &s).map_err(|_| ()),
                    S384 => pkcs1v15::VerifyingKey::<Sha384>::new(k).verify(octets, &s).map_err(|_| ()),
                    S512 => pkcs1v15::VerifyingKey::<Sha512>::new(k).verify(octets, &s).map_err(|_| ()),
                    HashAlgorithm::Identity => Err(()),
                }
            }
            (PublicKey::Rsa(k), Scheme::RsaPss(h)) => {
                let s = pss::Signature::try_from(signature).map_err(|_| ())?;
                let k = (**k).clone();
                match h {
                    S256 => pss::VerifyingKey::<Sha256>::new(k).verify(octets, &s).map_err(|_| ()),
                    S384 => pss::VerifyingKey::<Sha384>::new(k).verify(octets, &s).map_err(|_| ()),
                    S512 => pss::VerifyingKey::<Sha512>::new(k).verify(octets, &s).map_err(|_| ()),
                    HashAlgorithm::Identity => Err(()),
                }
            }
            _ => Err(()),
        }
    }
}

/// A scheme with a kind of key, as path validation asks for them.
#[derive(Debug)]
struct CertificateScheme {
    scheme: Scheme,
    key: AlgorithmIdentifier,
}

impl SignatureVerificationAlgorithm for CertificateScheme {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        // Both are DER that the path validation has parsed; lengths above 127 need the long form.
        let mut bits = vec![0];
        bits.extend(public_key);
        let spki = der_sequence(&[der_tlv(0x30, &self.key), der_tlv(0x03, &bits)].concat());
        let key = PublicKey::from_spki(&spki).map_err(|_| InvalidSignature)?;
        key.verify_scheme(self.scheme, message, signature).map_err(|()| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.scheme.algorithm().unwrap_or(alg_id::ED25519)
    }
}

fn der_sequence(contents: &[u8]) -> Vec<u8> {
    der_tlv(0x30, contents)
}

fn der_tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let n = contents.len();
    let mut out = match n {
        0..=127 => vec![tag, n as u8],
        128..=255 => vec![tag, 0x81, n as u8],
        _ => vec![tag, 0x82, (n >> 8) as u8, n as u8],
    };
    out.extend(contents);
    out
}

const fn certificate_scheme(scheme: Scheme, key: AlgorithmIdentifier) -> CertificateScheme {
    CertificateScheme { scheme, key }
}

/// Every combination that certificates may be signed with.
pub(super) static CERTIFICATE_SCHEMES: &[&dyn SignatureVerificationAlgorithm] = &[
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha256), alg_id::ECDSA_P256),
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha384), alg_id::ECDSA_P256),
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha512), alg_id::ECDSA_P256),
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha256), alg_id::ECDSA_P384),
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha384), alg_id::ECDSA_P384),
    &certificate_scheme(Scheme::Ecdsa(HashAlgorithm::Sha512), alg_id::ECDSA_P384),
    &certificate_scheme(Scheme::RsaPkcs1(HashAlgorithm::Sha256), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::RsaPkcs1(HashAlgorithm::Sha384), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::RsaPkcs1(HashAlgorithm::Sha512), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::RsaPss(HashAlgorithm::Sha256), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::RsaPss(HashAlgorithm::Sha384), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::RsaPss(HashAlgorithm::Sha512), alg_id::RSA_ENCRYPTION),
    &certificate_scheme(Scheme::Ed25519, alg_id::ED25519),
];

/// Whether a SubjectPublicKeyInfo is of a kind that is known at all (for telling weak from foreign keys).
pub(super) fn is_rsa(spki: &[u8]) -> bool {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    SubjectPublicKeyInfoRef::try_from(spki).is_ok_and(|s| s.algorithm.oid == RSA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rng;

    fn keys() -> Vec<PrivateKey> {
        let mut out: Vec<PrivateKey> =
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
                .map(|a| {
                    PrivateKey::from_pem(&rcgen::KeyPair::generate_for(a).unwrap().serialize_pem()).unwrap()
                })
                .into();
        let key = Box::new(rsa::RsaPrivateKey::new(&mut rng(5), 2048).unwrap());
        out.push(PrivateKey::Rsa { key: key.clone(), pss: false });
        out.push(PrivateKey::Rsa { key, pss: true });
        out
    }

    #[test]
    fn signatures_verify_and_changed_ones_do_not() {
        let mut rng = rng(6);
        for key in keys() {
            for hashes in HashAlgorithm::ALL.map(|h| [h]) {
                let Ok((method, data)) = key.sign(b"octets", Some(&hashes), &mut rng) else { continue };
                assert_eq!(key.public().verify(method, &data, b"octets"), Ok(()));
                assert_eq!(key.public().verify(method, &data, b"octetS"), Err(Reason::SignatureInvalid));
                let mut changed = data.clone();
                *changed.last_mut().unwrap() ^= 1;
                assert!(key.public().verify(method, &changed, b"octets").is_err());
                for n in 0..data.len().min(80) {
                    assert!(key.public().verify(method, &data[..n], b"octets").is_err());
                }
            }
            assert!(key.sign(b"octets", Some(&[]), &mut rng).is_err());
        }
    }

    #[test]
    fn ecdsa_of_rfc_4754_and_no_sha1() {
        let mut rng = rng(7);
        let keys = keys();
        for (key, expected) in keys.iter().zip([9, 10]) {
            let (method, data) = key.sign(b"octets", None, &mut rng).unwrap();
            assert_eq!(method, expected);
            assert_eq!(key.public().verify(method, &data, b"octets"), Ok(()));
        }
        assert_eq!(keys[3].sign(b"x", None, &mut rng), Err(Reason::NoCommonSignatureHash));
        assert_eq!(
            keys[3].public().verify(method::RSA_SHA1, &[0; 256], b"x"),
            Err(Reason::SignatureAlgorithmRefused)
        );
    }

    #[test]
    fn key_files() {
        assert!(matches!(PrivateKey::from_pem("rubbish"), Err(KeyFormatError::Unknown)));
        assert!(matches!(PrivateKey::from_der(&[0x30, 0]), Err(KeyFormatError::Unknown)));
        assert_eq!(
            HashAlgorithm::announced(&[0, 1, 0, 2, 0, 5, 9]),
            [HashAlgorithm::Sha256, HashAlgorithm::Identity]
        );
    }
}
