//! Key derivation. Enters: shared secrets, nonces, SPIs. Leaves: the keys of an IKE SA and of its child SAs.
//! RFC 7296 sections 2.14, 2.17 and 2.18, RFC 9370 section 2.2.

use super::{EspChoice, IkeChoice, MessageKey};
use zeroize::Zeroizing;

/// Nonces and SPIs of an exchange, as the derivations mix them in.
#[derive(Clone, Debug)]
pub(crate) struct Salt {
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub spi_i: u64,
    pub spi_r: u64,
}

/// All keys of one IKE SA.
#[derive(Clone)]
pub struct IkeKeys {
    choice: IkeChoice,
    pub(crate) d: Zeroizing<Vec<u8>>,
    pub(crate) p_i: Zeroizing<Vec<u8>>,
    pub(crate) p_r: Zeroizing<Vec<u8>>,
    /// Protects what the original initiator sends.
    pub(crate) initiator: MessageKey,
    /// Protects what the original responder sends.
    pub(crate) responder: MessageKey,
    /// SK_ei, SK_er, SK_ai, SK_ar for Wireshark's table; given out only when the caller asks.
    exported: [Zeroizing<Vec<u8>>; 4],
}

impl IkeKeys {
    /// Keys of a new IKE SA from its first key exchange.
    pub(crate) fn initial(choice: IkeChoice, salt: &Salt, secret: &[u8]) -> IkeKeys {
        let seed = choice.prf.mac(&[&salt.nonce_i[..], &salt.nonce_r[..]].concat(), &[secret]);
        IkeKeys::expand(choice, salt, &seed)
    }

    /// Keys after an additional key exchange in IKE_INTERMEDIATE (RFC 9370 2.2.2).
    pub(crate) fn updated(&self, salt: &Salt, secret: &[u8]) -> IkeKeys {
        let seed = self.choice.prf.mac(&self.d, &[secret, &salt.nonce_i, &salt.nonce_r]);
        IkeKeys::expand(self.choice, salt, &seed)
    }

    /// Keys of the IKE SA that replaces this one; `additional` are the secrets of further exchanges in order.
    pub(crate) fn rekeyed(
        &self,
        choice: IkeChoice,
        salt: &Salt,
        secret: &[u8],
        additional: &[Zeroizing<Vec<u8>>],
    ) -> IkeKeys {
        let mut parts: Vec<&[u8]> = vec![secret, &salt.nonce_i, &salt.nonce_r];
        parts.extend(additional.iter().map(|s| &s[..]));
        let seed = self.choice.prf.mac(&self.d, &parts);
        IkeKeys::expand(choice, salt, &seed)
    }

    fn expand(choice: IkeChoice, salt: &Salt, seed: &[u8]) -> IkeKeys {
        let d = choice.prf.output_bytes();
        let a = choice.integrity.map_or(0, |i| i.key_bytes());
        let e = choice.cipher.key_bytes();
        let (spi_i, spi_r) = (salt.spi_i.to_be_bytes(), salt.spi_r.to_be_bytes());
        let parts: [&[u8]; 4] = [&salt.nonce_i, &salt.nonce_r, &spi_i, &spi_r];
        let all = choice.prf.plus(seed, &parts, d + 2 * a + 2 * e + 2 * d);
        let mut rest = &all[..];
        let mut next = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            Zeroizing::new(head.to_vec())
        };
        let (sk_d, ai, ar, ei, er, p_i, p_r) =
            (next(d), next(a), next(a), next(e), next(e), next(d), next(d));
        let initiator = MessageKey::new(choice.cipher, choice.integrity, &ei, &ai);
        let responder = MessageKey::new(choice.cipher, choice.integrity, &er, &ar);
        IkeKeys { choice, d: sk_d, p_i, p_r, initiator, responder, exported: [ei, er, ai, ar] }
    }

    /// SK_ei, SK_er, SK_ai, SK_ar, for a decryption table in a laboratory.
    pub fn export_for_lab(&self) -> [&[u8]; 4] {
        [&self.exported[0], &self.exported[1], &self.exported[2], &self.exported[3]]
    }

    /// Keys of a child SA. `secrets` are those of its own key exchanges: none without PFS (RFC 7296 2.17).
    pub(crate) fn child(
        &self,
        esp: EspChoice,
        nonce_i: &[u8],
        nonce_r: &[u8],
        secrets: &[Zeroizing<Vec<u8>>],
    ) -> ChildKeys {
        let mut parts: Vec<&[u8]> = Vec::new();
        parts.extend(secrets.first().map(|s| &s[..]));
        parts.extend([nonce_i, nonce_r]);
        parts.extend(secrets.iter().skip(1).map(|s| &s[..]));
        let (key, salt) = (esp.cipher.key_bytes(), 4);
        let all = self.choice.prf.plus(&self.d, &parts, 2 * (key + salt));
        let part = |at: usize| DirectionKey {
            key: Zeroizing::new(all[at..at + key].to_vec()),
            salt: Zeroizing::new(all[at + key..at + key + salt].to_vec()),
        };
        ChildKeys { from_initiator: part(0), from_responder: part(key + salt) }
    }
}

/// Key and salt of one direction of a child SA.
#[derive(Clone)]
pub struct DirectionKey {
    /// The cipher's key.
    pub key: Zeroizing<Vec<u8>>,
    /// The 4 bytes in front of the explicit IV (RFC 4106 section 4, RFC 7634 section 2).
    pub salt: Zeroizing<Vec<u8>>,
}

/// Keys of a child SA; "initiator" is who initiated the exchange that made it.
#[derive(Clone)]
pub struct ChildKeys {
    /// For packets that the exchange's initiator sends.
    pub from_initiator: DirectionKey,
    /// For packets that the exchange's responder sends.
    pub from_responder: DirectionKey,
}

impl std::fmt::Debug for DirectionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectionKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{EspCipher, IkeCipher, Method, Prf};
    use crate::testing::hex;

    fn choice() -> IkeChoice {
        IkeChoice {
            cipher: IkeCipher::AesGcm128,
            integrity: None,
            prf: Prf::Sha256,
            ke: Method::X25519,
            additional: None,
        }
    }

    fn salt() -> Salt {
        let (nonce_i, nonce_r) = ((0..32).collect(), (32..64).collect());
        Salt { nonce_i, nonce_r, spi_i: 0x0101010101010101, spi_r: 0x0202020202020202 }
    }

    /// Values computed by another implementation of RFC 7296 2.14 and 2.17 (Python's hmac).
    #[test]
    fn derivation_against_another_implementation() {
        let keys = IkeKeys::initial(choice(), &salt(), &[0xaa; 32]);
        let km = "c796945b8ec60857d8c1ccdd218557ee02911b5de592305e12fa6ad54cb39c09d63bb2567d1eff5e071f3b1e4a4bdd3198712d05b48ef38d0f1f6a37c252f736fa84f4585c45943d25b13972d3a5b9ece326734ae7aafe4135e72a5aff78d024cda68789efc5dfa45633db672996d462d189c4a36c73bbe395ef94730d85a87111b56b3c7cc4a3c1";
        let km = hex(km);
        assert_eq!(keys.d[..], km[..32]);
        assert_eq!(keys.export_for_lab(), [&km[32..52], &km[52..72], &[], &[]]);
        assert_eq!((&keys.p_i[..], &keys.p_r[..]), (&km[72..104], &km[104..136]));
        let esp = EspChoice { cipher: EspCipher::AesGcm128, esn: true, pfs: None };
        let s = salt();
        let child = keys.child(esp, &s.nonce_i, &s.nonce_r, &[]);
        let km = hex("819c7d90c9fb02845e532be43649bf552f4fc05b7c19c154ded37fca5b1092717e2c2cebee29da7d");
        assert_eq!((&child.from_initiator.key[..], &child.from_initiator.salt[..]), (&km[..16], &km[16..20]));
        assert_eq!((&child.from_responder.key[..], &child.from_responder.salt[..]), (&km[20..36], &km[36..]));
        assert_eq!(format!("{:?}", child.from_initiator), "DirectionKey(..)");
    }

    #[test]
    fn rekey_and_update_mix_the_old_key_in() {
        let keys = IkeKeys::initial(choice(), &salt(), &[0xaa; 32]);
        let seed = hex("579baa9da61798ba878a54800cfc522659ff589b452583bc5241905698d01b03");
        let expected = IkeKeys::expand(choice(), &salt(), &seed);
        assert_eq!(keys.rekeyed(choice(), &salt(), &[0xaa; 32], &[]).d, expected.d);
        assert_eq!(keys.updated(&salt(), &[0xaa; 32]).p_r, expected.p_r);
    }
}
