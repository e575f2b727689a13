//! Key material of one SA direction, expanded once by control and read by every engine.

use zeroize::Zeroize;

/// The AEAD of an SA (RFC 4106, RFC 7634); the ICV is always 16 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cipher {
    /// AES-GCM with a 128-bit key (RFC 4106).
    Aes128Gcm16 = 1,
    /// AES-GCM with a 256-bit key (RFC 4106).
    Aes256Gcm16 = 2,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305 = 3,
}

impl Cipher {
    /// Octets of key, without the 4 octets of salt.
    pub const fn key_len(self) -> usize {
        match self {
            Cipher::Aes128Gcm16 => 16,
            Cipher::Aes256Gcm16 | Cipher::ChaCha20Poly1305 => 32,
        }
    }
}

/// Why key material cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key has another length than the cipher takes.
    #[error("{cipher:?} takes a key of {expected} octets, not {found}")]
    Length {
        /// The cipher asked for.
        cipher: Cipher,
        /// Octets that it takes.
        expected: usize,
        /// Octets that were given.
        found: usize,
    },
}

/// Expanded key of one direction of one SA: at most 1 KiB, 64-byte aligned, same layout for every engine.
///
/// Any bit pattern is a valid value (the region is mapped, not constructed); an unknown cipher opens nothing.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct KeyBlock {
    raw: [u8; 32],
    salt: [u8; 4],
    cipher: u8,
    reserved: [u8; 27],
}

impl KeyBlock {
    /// Expands `key` (without salt). The nonce is `salt || explicit IV` (RFC 4106 section 4, RFC 7634 section 2).
    ///
    /// # Errors
    /// [`KeyError::Length`] where the key does not fit the cipher.
    pub fn expand(cipher: Cipher, key: &[u8], salt: [u8; 4]) -> Result<KeyBlock, KeyError> {
        if key.len() != cipher.key_len() {
            return Err(KeyError::Length { cipher, expected: cipher.key_len(), found: key.len() });
        }
        let mut raw = [0; 32];
        raw[..key.len()].copy_from_slice(key);
        Ok(KeyBlock { raw, salt, cipher: cipher as u8, reserved: [0; 27] })
    }

    /// The cipher that this block is for; `None` where the slot holds none.
    pub fn cipher(&self) -> Option<Cipher> {
        match self.cipher {
            1 => Some(Cipher::Aes128Gcm16),
            2 => Some(Cipher::Aes256Gcm16),
            3 => Some(Cipher::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The raw key, for engines that expand for themselves.
    pub fn raw_key(&self) -> &[u8] {
        &self.raw[..self.cipher().map_or(0, Cipher::key_len)]
    }

    /// The 4 octets of salt that start every nonce.
    pub fn salt(&self) -> [u8; 4] {
        self.salt
    }
}

impl Zeroize for KeyBlock {
    fn zeroize(&mut self) {
        self.raw.zeroize();
        self.salt.zeroize();
        self.cipher.zeroize();
    }
}

impl Drop for KeyBlock {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl std::fmt::Debug for KeyBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyBlock({:?})", self.cipher())
    }
}
