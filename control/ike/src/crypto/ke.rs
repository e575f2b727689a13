//! Key exchange methods: MODP group 14, NIST P-256 and P-384, X25519, ML-KEM. Enters: the peer's public value.
//! Leaves: ours and the shared secret. RFC 7296 1.2, RFC 3526, RFC 5903, RFC 8031, RFC 9370,
//! draft-ietf-ipsecme-ikev2-mlkem.

use super::Rng;
use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, RandomBits, U512, U2048};
use ml_kem::kem::{Decapsulate, Encapsulate, Kem, KeyExport, TryKeyInit};
use ml_kem::{MlKem768, MlKem1024};
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::sec1::ToSec1Point;
use std::sync::LazyLock;
use x25519_dalek as x25519;
use zeroize::{Zeroize, Zeroizing};

/// A secret that both ends computed.
pub type SharedSecret = Zeroizing<Vec<u8>>;

/// A key exchange method that may be negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// 14: 2048-bit MODP (RFC 3526)
    Modp2048,
    /// 19: NIST P-256
    P256,
    /// 20: NIST P-384
    P384,
    /// 31: Curve25519
    X25519,
    /// 36: ML-KEM-768, as an additional exchange only
    MlKem768,
    /// 37: ML-KEM-1024, as an additional exchange only
    MlKem1024,
}

/// Why a key exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeError {
    /// Wrong length, not on the curve, or a value that gives no secrecy.
    #[error("the peer's public value is not valid for {0:?}")]
    BadPublicValue(Method),
}

const ALL: [Method; 6] =
    [Method::Modp2048, Method::P256, Method::P384, Method::X25519, Method::MlKem768, Method::MlKem1024];

/// Bits of a MODP exponent: twice what the group's strength asks for (RFC 3526 section 8).
const EXPONENT_BITS: u32 = 512;

/// RFC 3526 section 3.
const MODP_2048: &str = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF";

struct Modp {
    prime: U2048,
    params: FixedMontyParams<{ U2048::LIMBS }>,
}

static MODP: LazyLock<Modp> = LazyLock::new(|| {
    let prime = U2048::from_be_hex(MODP_2048);
    let odd = Odd::new(prime).expect_copied("the MODP prime is odd");
    Modp { prime, params: FixedMontyParams::new(odd) }
});

enum Secret {
    Modp(Box<U512>),
    P256(p256::ecdh::EphemeralSecret),
    P384(p384::ecdh::EphemeralSecret),
    X25519(x25519::StaticSecret),
    MlKem768(Box<ml_kem::DecapsulationKey<MlKem768>>),
    MlKem1024(Box<ml_kem::DecapsulationKey<MlKem1024>>),
}

impl Drop for Secret {
    fn drop(&mut self) {
        // The others zeroize themselves.
        if let Secret::Modp(exponent) = self {
            exponent.zeroize();
        }
    }
}

/// The initiator's half of an exchange that waits for the answer.
pub struct Exchange {
    method: Method,
    secret: Secret,
    public: Vec<u8>,
}

impl Method {
    /// Transform ID (types 4 and 6 to 12).
    pub fn id(self) -> u16 {
        match self {
            Method::Modp2048 => 14,
            Method::P256 => 19,
            Method::P384 => 20,
            Method::X25519 => 31,
            Method::MlKem768 => 36,
            Method::MlKem1024 => 37,
        }
    }

    /// The method with this transform ID.
    pub fn from_id(id: u16) -> Option<Method> {
        ALL.into_iter().find(|m| m.id() == id)
    }

    /// Keyword in proposals.
    pub fn name(self) -> &'static str {
        match self {
            Method::Modp2048 => "modp2048",
            Method::P256 => "ecp256",
            Method::P384 => "ecp384",
            Method::X25519 => "x25519",
            Method::MlKem768 => "mlkem768",
            Method::MlKem1024 => "mlkem1024",
        }
    }

    /// A KEM: the responder's value depends on the initiator's.
    pub fn is_kem(self) -> bool {
        matches!(self, Method::MlKem768 | Method::MlKem1024)
    }

    /// Starts an exchange: a fresh secret and its public value.
    pub fn start(self, rng: &mut Rng) -> Exchange {
        let (secret, public) = match self {
            Method::Modp2048 => {
                let exponent = Box::new(U512::random_bits(rng, EXPONENT_BITS));
                let public = modp_power(&U2048::from_u8(2), &exponent);
                (Secret::Modp(exponent), public.to_be_bytes().as_ref().to_vec())
            }
            Method::P256 => {
                let secret = p256::ecdh::EphemeralSecret::generate_from_rng(rng);
                let point = secret.public_key().to_sec1_point(false);
                (Secret::P256(secret), point.as_bytes()[1..].to_vec())
            }
            Method::P384 => {
                let secret = p384::ecdh::EphemeralSecret::generate_from_rng(rng);
                let point = secret.public_key().to_sec1_point(false);
                (Secret::P384(secret), point.as_bytes()[1..].to_vec())
            }
            Method::X25519 => {
                let secret = x25519::StaticSecret::random_from_rng(rng);
                let public = x25519::PublicKey::from(&secret).to_bytes().to_vec();
                (Secret::X25519(secret), public)
            }
            Method::MlKem768 => {
                let (dk, ek) = MlKem768::generate_keypair_from_rng(&mut &mut *rng);
                (Secret::MlKem768(Box::new(dk)), ek.to_bytes().to_vec())
            }
            Method::MlKem1024 => {
                let (dk, ek) = MlKem1024::generate_keypair_from_rng(&mut &mut *rng);
                (Secret::MlKem1024(Box::new(dk)), ek.to_bytes().to_vec())
            }
        };
        Exchange { method: self, secret, public }
    }

    /// Answers an exchange: our public value (or ciphertext) and the shared secret.
    ///
    /// # Errors
    /// [`KeError`] if the peer's value is not valid.
    pub fn respond(self, peer: &[u8], rng: &mut Rng) -> Result<(Vec<u8>, SharedSecret), KeError> {
        let bad = KeError::BadPublicValue(self);
        match self {
            Method::MlKem768 => {
                let ek = ml_kem::EncapsulationKey::<MlKem768>::new_from_slice(peer).map_err(|_| bad)?;
                let (ct, key) = ek.encapsulate_with_rng(&mut &mut *rng);
                Ok((ct.to_vec(), Zeroizing::new(key.to_vec())))
            }
            Method::MlKem1024 => {
                let ek = ml_kem::EncapsulationKey::<MlKem1024>::new_from_slice(peer).map_err(|_| bad)?;
                let (ct, key) = ek.encapsulate_with_rng(&mut &mut *rng);
                Ok((ct.to_vec(), Zeroizing::new(key.to_vec())))
            }
            _ => {
                let ours = self.start(rng);
                let public = ours.public.clone();
                Ok((public, ours.finish(peer)?))
            }
        }
    }
}

impl Exchange {
    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The public value to send.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret, from the answer's public value or ciphertext.
    ///
    /// # Errors
    /// [`KeError`] if the value is not valid.
    pub fn finish(self, peer: &[u8]) -> Result<SharedSecret, KeError> {
        let bad = KeError::BadPublicValue(self.method);
        let bytes = match &self.secret {
            Secret::Modp(exponent) => modp_finish(exponent, peer).ok_or(bad)?,
            Secret::P256(secret) => {
                let peer = p256::PublicKey::from_sec1_bytes(&sec1(peer, 64).ok_or(bad)?).map_err(|_| bad)?;
                secret.diffie_hellman(&peer).raw_secret_bytes().to_vec()
            }
            Secret::P384(secret) => {
                let peer = p384::PublicKey::from_sec1_bytes(&sec1(peer, 96).ok_or(bad)?).map_err(|_| bad)?;
                secret.diffie_hellman(&peer).raw_secret_bytes().to_vec()
            }
            Secret::X25519(secret) => {
                let peer = <[u8; 32]>::try_from(peer).map_err(|_| bad)?;
                let shared = secret.diffie_hellman(&x25519::PublicKey::from(peer));
                if !shared.was_contributory() {
                    return Err(bad);
                }
                shared.as_bytes().to_vec()
            }
            Secret::MlKem768(dk) => dk.decapsulate_slice(peer).map_err(|_| bad)?.to_vec(),
            Secret::MlKem1024(dk) => dk.decapsulate_slice(peer).map_err(|_| bad)?.to_vec(),
        };
        Ok(Zeroizing::new(bytes))
    }
}

/// RFC 5903 sends x | y; SEC 1 wants the tag of an uncompressed point before it.
fn sec1(peer: &[u8], bytes: usize) -> Option<Vec<u8>> {
    (peer.len() == bytes).then(|| [&[4], peer].concat())
}

fn modp_power(base: &U2048, exponent: &U512) -> U2048 {
    FixedMontyForm::new(base, &MODP.params).pow_bounded_exp(exponent, EXPONENT_BITS).retrieve()
}

fn modp_finish(exponent: &U512, peer: &[u8]) -> Option<Vec<u8>> {
    let bytes: [u8; 256] = peer.try_into().ok()?;
    let y = U2048::from_be_slice(&bytes);
    // RFC 6989 2.1: 1 < y < p - 1.
    if y <= U2048::ONE || y >= MODP.prime.wrapping_sub(&U2048::ONE) {
        return None;
    }
    Some(modp_power(&y, exponent).to_be_bytes().as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, rng};

    #[test]
    fn every_method_agrees_and_refuses_garbage() {
        let mut rng = rng(1);
        for m in ALL {
            let a = m.start(&mut rng);
            let (public, theirs) = m.respond(a.public(), &mut rng).unwrap();
            assert_eq!(a.finish(&public).unwrap(), theirs, "{m:?}");
            let b = m.start(&mut rng);
            assert!(b.finish(&public[1..]).is_err(), "{m:?}");
            assert!(m.respond(&[0; 7], &mut rng).is_err());
            assert_eq!(Method::from_id(m.id()), Some(m));
        }
    }

    #[test]
    fn degenerate_values_are_refused() {
        let mut rng = rng(2);
        let one = [&[0u8; 255][..], &[1]].concat();
        let p_minus_one = MODP.prime.wrapping_sub(&U2048::ONE).to_be_bytes().as_ref().to_vec();
        for bad in [vec![0; 256], one, p_minus_one, vec![0xff; 256]] {
            assert!(Method::Modp2048.start(&mut rng).finish(&bad).is_err());
        }
        assert!(Method::X25519.start(&mut rng).finish(&[0; 32]).is_err());
        assert!(Method::P256.start(&mut rng).finish(&[1; 64]).is_err());
    }

    /// RFC 3526 group 14 with exponent 0x0101..01, computed by another implementation (Python's `pow`).
    #[test]
    fn modp_power_against_another_implementation() {
        use sha2::Digest;
        let public = modp_power(&U2048::from_u8(2), &U512::from_be_slice(&[1; 64])).to_be_bytes();
        let expected = "61b5fc3a1ffa7fbd576d2c8cef28da138d3ecaf8cede024ae00e4dec08acddba";
        assert_eq!(sha2::Sha256::digest(public)[..], hex(expected));
    }

    /// RFC 5903 section 8.1.
    #[test]
    fn rfc_5903_p256() {
        let secret = p256::SecretKey::from_slice(&hex(
            "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
        ))
        .unwrap();
        let peer = hex(
            "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF6356FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
        );
        let peer = p256::PublicKey::from_sec1_bytes(&sec1(&peer, 64).unwrap()).unwrap();
        let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
        let expected = "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE";
        assert_eq!(shared.raw_secret_bytes()[..], hex(expected));
    }
}
