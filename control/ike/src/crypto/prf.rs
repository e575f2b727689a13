//! Pseudo-random functions: HMAC-SHA2, and prf+ over them. Enters: a key and data. Leaves: key material that
//! zeroizes itself. RFC 7296 section 2.13, RFC 4868.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

/// A pseudo-random function that may be negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256
    Sha256,
    /// PRF_HMAC_SHA2_384
    Sha384,
    /// PRF_HMAC_SHA2_512
    Sha512,
}

fn hmac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    // HMAC takes keys of every length; the error arm cannot be reached and gives an unusable empty output.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Zeroizing::new(Vec::new()) };
    parts.iter().for_each(|p| mac.update(p));
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

impl Prf {
    /// Transform ID (type 2).
    pub fn id(self) -> u16 {
        match self {
            Prf::Sha256 => 5,
            Prf::Sha384 => 6,
            Prf::Sha512 => 7,
        }
    }

    /// The function with this transform ID.
    pub fn from_id(id: u16) -> Option<Prf> {
        [Prf::Sha256, Prf::Sha384, Prf::Sha512].into_iter().find(|p| p.id() == id)
    }

    /// Keyword in proposals.
    pub fn name(self) -> &'static str {
        match self {
            Prf::Sha256 => "prfsha256",
            Prf::Sha384 => "prfsha384",
            Prf::Sha512 => "prfsha512",
        }
    }

    /// Bytes of output, which is also the preferred key length.
    pub fn output_bytes(self) -> usize {
        match self {
            Prf::Sha256 => 32,
            Prf::Sha384 => 48,
            Prf::Sha512 => 64,
        }
    }

    /// prf(key, parts concatenated).
    pub fn mac(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        match self {
            Prf::Sha256 => hmac::<Hmac<Sha256>>(key, parts),
            Prf::Sha384 => hmac::<Hmac<Sha384>>(key, parts),
            Prf::Sha512 => hmac::<Hmac<Sha512>>(key, parts),
        }
    }

    /// prf+(key, seed), `bytes` long, at most 255 outputs (RFC 7296 2.13).
    pub fn plus(self, key: &[u8], seed: &[&[u8]], bytes: usize) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(bytes + self.output_bytes()));
        let mut last = Zeroizing::new(Vec::new());
        for counter in 1..=255u8 {
            if out.len() >= bytes {
                break;
            }
            let counter = [counter];
            let mut parts: Vec<&[u8]> = vec![&last];
            parts.extend(seed);
            parts.push(&counter);
            let next = self.mac(key, &parts);
            drop(parts);
            out.extend_from_slice(&next);
            last = next;
        }
        out.truncate(bytes);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;

    /// RFC 4231, test case 2.
    #[test]
    fn rfc_4231_case_2() {
        let (key, data) = (b"Jefe", b"what do ya want for nothing?");
        let out = Prf::Sha256.mac(key, &[&data[..10], &data[10..]]);
        assert_eq!(out[..], hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
        let out = Prf::Sha384.mac(key, &[data]);
        let expected = "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649";
        assert_eq!(out[..], hex(expected));
        let out = Prf::Sha512.mac(key, &[data]);
        let expected = "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737";
        assert_eq!(out[..], hex(expected));
    }

    /// prf+ is what HKDF-Expand (RFC 5869) computes: T(n) = HMAC(key, T(n-1) | seed | n), so RFC 5869's
    /// test case 1 is a test vector for it.
    #[test]
    fn rfc_5869_case_1_is_prf_plus() {
        let prk = hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let okm = Prf::Sha256.plus(&prk, &[&hex("f0f1f2f3f4"), &hex("f5f6f7f8f9")], 42);
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
        assert_eq!(okm[..], hex(expected));
    }
}
