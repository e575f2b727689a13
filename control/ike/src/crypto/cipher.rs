//! Protection of IKE messages: AES-GCM with 16-byte tag, or AES-CBC then HMAC-SHA2. Enters: the message up to the
//! encrypted payload's header and the plain payloads. Leaves: IV, ciphertext and tag, or the plain payloads.
//! RFC 7296 section 3.14, RFC 5282, RFC 4868.

use super::{Prf, Rng};
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm, Nonce};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const GCM_IV_BYTES: usize = 8;
const GCM_TAG_BYTES: usize = 16;
const GCM_SALT_BYTES: usize = 4;
const BLOCK: usize = 16;

/// Ciphers for IKE messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IkeCipher {
    /// ENCR_AES_GCM_16, 128-bit key
    AesGcm128,
    /// ENCR_AES_GCM_16, 256-bit key
    AesGcm256,
    /// ENCR_AES_CBC, 128-bit key
    AesCbc128,
    /// ENCR_AES_CBC, 256-bit key
    AesCbc256,
}

/// Integrity algorithms that go with CBC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128
    Sha256,
    /// AUTH_HMAC_SHA2_384_192
    Sha384,
    /// AUTH_HMAC_SHA2_512_256
    Sha512,
}

impl IkeCipher {
    /// All of them.
    pub const ALL: [IkeCipher; 4] = [Self::AesGcm256, Self::AesGcm128, Self::AesCbc256, Self::AesCbc128];

    /// Transform ID (type 1) and key bits.
    pub fn id(self) -> (u16, u16) {
        match self {
            IkeCipher::AesGcm128 => (20, 128),
            IkeCipher::AesGcm256 => (20, 256),
            IkeCipher::AesCbc128 => (12, 128),
            IkeCipher::AesCbc256 => (12, 256),
        }
    }

    /// Keyword in proposals.
    pub fn name(self) -> &'static str {
        match self {
            IkeCipher::AesGcm128 => "aes128gcm16",
            IkeCipher::AesGcm256 => "aes256gcm16",
            IkeCipher::AesCbc128 => "aes128",
            IkeCipher::AesCbc256 => "aes256",
        }
    }

    /// Whether the cipher authenticates by itself.
    pub fn is_aead(self) -> bool {
        matches!(self, IkeCipher::AesGcm128 | IkeCipher::AesGcm256)
    }

    /// Bytes of SK_e, salt included.
    pub fn key_bytes(self) -> usize {
        match self {
            IkeCipher::AesGcm128 => 16 + GCM_SALT_BYTES,
            IkeCipher::AesGcm256 => 32 + GCM_SALT_BYTES,
            IkeCipher::AesCbc128 => 16,
            IkeCipher::AesCbc256 => 32,
        }
    }
}

impl Integrity {
    /// All of them.
    pub const ALL: [Integrity; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Transform ID (type 3).
    pub fn id(self) -> u16 {
        match self {
            Integrity::Sha256 => 12,
            Integrity::Sha384 => 13,
            Integrity::Sha512 => 14,
        }
    }

    /// Keyword in proposals.
    pub fn name(self) -> &'static str {
        match self {
            Integrity::Sha256 => "sha256",
            Integrity::Sha384 => "sha384",
            Integrity::Sha512 => "sha512",
        }
    }

    fn hash(self) -> Prf {
        match self {
            Integrity::Sha256 => Prf::Sha256,
            Integrity::Sha384 => Prf::Sha384,
            Integrity::Sha512 => Prf::Sha512,
        }
    }

    /// Bytes of SK_a.
    pub fn key_bytes(self) -> usize {
        self.hash().output_bytes()
    }

    /// Bytes of the truncated tag.
    pub fn tag_bytes(self) -> usize {
        self.hash().output_bytes() / 2
    }
}

/// The key of one direction of one IKE SA.
#[derive(Clone)]
pub struct MessageKey {
    cipher: IkeCipher,
    integrity: Option<Integrity>,
    encryption: Zeroizing<Vec<u8>>,
    authentication: Zeroizing<Vec<u8>>,
    /// The next explicit IV of GCM; never repeats under a key.
    next_iv: u64,
}

/// The message was not made with this key, or was changed on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

impl MessageKey {
    /// `encryption` and `authentication` have the lengths that the algorithms say.
    pub(crate) fn new(
        cipher: IkeCipher,
        integrity: Option<Integrity>,
        encryption: &[u8],
        authentication: &[u8],
    ) -> Self {
        let (e, a) = (Zeroizing::new(encryption.to_vec()), Zeroizing::new(authentication.to_vec()));
        MessageKey { cipher, integrity, encryption: e, authentication: a, next_iv: 0 }
    }

    fn iv_bytes(&self) -> usize {
        if self.cipher.is_aead() { GCM_IV_BYTES } else { BLOCK }
    }

    fn tag_bytes(&self) -> usize {
        self.integrity.map_or(GCM_TAG_BYTES, Integrity::tag_bytes)
    }

    /// Bytes of IV, padding and tag around `plain` bytes of payloads.
    pub fn sealed_bytes(&self, plain: usize) -> usize {
        let body = if self.cipher.is_aead() { plain + 1 } else { (plain + 1).next_multiple_of(BLOCK) };
        self.iv_bytes() + body + self.tag_bytes()
    }

    /// Appends IV, ciphertext and tag to `message`, which ends behind the encrypted payload's header (and fragment
    /// header) with all lengths already filled in for the sealed size.
    pub fn seal(&mut self, message: &mut Vec<u8>, plain: &[u8], rng: &mut Rng) {
        let aad = message.len();
        let mut body = Zeroizing::new(plain.to_vec());
        if self.cipher.is_aead() {
            body.push(0);
            let iv = self.next_iv.to_be_bytes();
            self.next_iv += 1;
            let tag = self.gcm(&iv, &message[..aad], &mut body, None);
            message.extend(iv);
            message.extend_from_slice(&body);
            message.extend(tag.unwrap_or_default());
            return;
        }
        let pad = (plain.len() + 1).next_multiple_of(BLOCK) - plain.len() - 1;
        body.extend(std::iter::repeat_n(0, pad));
        body.push(pad as u8);
        let mut iv = [0; BLOCK];
        rng.fill_bytes(&mut iv);
        self.cbc(&iv, &mut body, true);
        message.extend(iv);
        message.extend_from_slice(&body);
        let tag = self.tag(message);
        message.extend_from_slice(&tag);
    }

    /// Opens a message whose encrypted part (IV, ciphertext, tag) begins at `at`.
    ///
    /// # Errors
    /// [`NotAuthentic`]; nothing of the content is looked at before.
    pub fn open(&self, message: &[u8], at: usize) -> Result<Zeroizing<Vec<u8>>, NotAuthentic> {
        let (head, sealed) = message.split_at_checked(at).ok_or(NotAuthentic)?;
        let (iv, rest) = sealed.split_at_checked(self.iv_bytes()).ok_or(NotAuthentic)?;
        let body_bytes = rest.len().checked_sub(self.tag_bytes()).ok_or(NotAuthentic)?;
        let (body, tag) = rest.split_at(body_bytes);
        let mut plain = Zeroizing::new(body.to_vec());
        if self.cipher.is_aead() {
            self.gcm(iv, head, &mut plain, Some(tag)).ok_or(NotAuthentic)?;
        } else {
            let expected = self.tag(&message[..message.len() - self.tag_bytes()]);
            if expected.ct_eq(tag).unwrap_u8() != 1 || body.is_empty() || !body.len().is_multiple_of(BLOCK) {
                return Err(NotAuthentic);
            }
            self.cbc(iv, &mut plain, false);
        }
        let pad = usize::from(*plain.last().ok_or(NotAuthentic)?);
        let keep = plain.len().checked_sub(pad + 1).ok_or(NotAuthentic)?;
        plain.truncate(keep);
        Ok(plain)
    }

    fn tag(&self, message: &[u8]) -> Vec<u8> {
        let Some(integrity) = self.integrity else { return Vec::new() };
        integrity.hash().mac(&self.authentication, &[message])[..integrity.tag_bytes()].to_vec()
    }

    /// Seals (`tag` is None; gives the tag) or opens (gives it back if it was right).
    fn gcm(&self, iv: &[u8], aad: &[u8], body: &mut [u8], tag: Option<&[u8]>) -> Option<Vec<u8>> {
        let key_bytes = self.encryption.len().checked_sub(GCM_SALT_BYTES)?;
        let (key, salt) = self.encryption.split_at(key_bytes);
        let nonce = Nonce::try_from(&[salt, iv].concat()[..]).ok()?;
        match self.cipher {
            IkeCipher::AesGcm128 => gcm_run(&Aes128Gcm::new_from_slice(key).ok()?, &nonce, aad, body, tag),
            _ => gcm_run(&Aes256Gcm::new_from_slice(key).ok()?, &nonce, aad, body, tag),
        }
    }

    fn cbc(&self, iv: &[u8], body: &mut [u8], encrypt: bool) {
        match (self.cipher, encrypt) {
            (IkeCipher::AesCbc128, true) => cbc_encrypt::<aes::Aes128>(&self.encryption, iv, body),
            (IkeCipher::AesCbc128, false) => cbc_decrypt::<aes::Aes128>(&self.encryption, iv, body),
            (_, true) => cbc_encrypt::<aes::Aes256>(&self.encryption, iv, body),
            (_, false) => cbc_decrypt::<aes::Aes256>(&self.encryption, iv, body),
        }
    }
}

fn gcm_run<C>(
    cipher: &C,
    nonce: &aes_gcm::aead::Nonce<C>,
    aad: &[u8],
    body: &mut [u8],
    tag: Option<&[u8]>,
) -> Option<Vec<u8>>
where
    C: AeadInOut,
    aes_gcm::aead::Tag<C>: for<'a> TryFrom<&'a [u8]>,
{
    match tag {
        None => cipher.encrypt_inout_detached(nonce, aad, body.into()).ok().map(|t| t.to_vec()),
        Some(tag) => {
            let typed = aes_gcm::aead::Tag::<C>::try_from(tag).ok()?;
            cipher.decrypt_inout_detached(nonce, aad, body.into(), &typed).ok().map(|()| tag.to_vec())
        }
    }
}

fn cbc_encrypt<C>(key: &[u8], iv: &[u8], body: &mut [u8])
where
    C: aes::cipher::BlockCipherEncrypt + aes::cipher::KeyInit,
    cbc::Encryptor<C>: KeyIvInit + BlockModeEncrypt,
{
    let Ok(mut cipher) = cbc::Encryptor::<C>::new_from_slices(key, iv) else { return };
    for block in body.chunks_exact_mut(BLOCK) {
        if let Ok(block) = block.try_into() {
            cipher.encrypt_block(block);
        }
    }
}

fn cbc_decrypt<C>(key: &[u8], iv: &[u8], body: &mut [u8])
where
    C: aes::cipher::BlockCipherDecrypt + aes::cipher::KeyInit,
    cbc::Decryptor<C>: KeyIvInit + BlockModeDecrypt,
{
    let Ok(mut cipher) = cbc::Decryptor::<C>::new_from_slices(key, iv) else { return };
    for block in body.chunks_exact_mut(BLOCK) {
        if let Ok(block) = block.try_into() {
            cipher.decrypt_block(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, rng};

    fn keys() -> Vec<MessageKey> {
        let mut out = Vec::new();
        for c in IkeCipher::ALL {
            let e = vec![7; c.key_bytes()];
            if c.is_aead() {
                out.push(MessageKey::new(c, None, &e, &[]));
            } else {
                out.extend(Integrity::ALL.map(|i| MessageKey::new(c, Some(i), &e, &vec![9; i.key_bytes()])));
            }
        }
        out
    }

    #[test]
    fn sealed_messages_open_and_changed_ones_do_not() {
        let mut rng = rng(3);
        for mut key in keys() {
            for bytes in [0, 1, 15, 16, 17, 300] {
                let plain = vec![0x5a; bytes];
                let mut message = b"header and generic header".to_vec();
                let at = message.len();
                key.seal(&mut message, &plain, &mut rng);
                assert_eq!(message.len() - at, key.sealed_bytes(bytes));
                assert_eq!(key.open(&message, at).unwrap()[..], plain);
                for i in [0, at, message.len() - 1] {
                    let mut changed = message.clone();
                    changed[i] ^= 1;
                    assert_eq!(key.open(&changed, at), Err(NotAuthentic));
                }
                for n in 0..message.len() {
                    assert!(key.open(&message[..n], at).is_err());
                }
            }
        }
    }

    #[test]
    fn gcm_ivs_do_not_repeat() {
        let mut key = keys().remove(0);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        key.seal(&mut a, b"x", &mut rng(4));
        key.seal(&mut b, b"x", &mut rng(4));
        assert_ne!(a[..8], b[..8]);
    }

    /// NIST SP 800-38A F.2.5: CBC-AES256.Encrypt, first two blocks.
    #[test]
    fn sp_800_38a_cbc_aes256() {
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let mut body = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        cbc_encrypt::<aes::Aes256>(&key, &hex("000102030405060708090a0b0c0d0e0f"), &mut body);
        assert_eq!(body, hex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"));
    }
}
