//! Key material of one SA direction, expanded once by control and read by every engine.
//!
//! A key and a salt enter (RFC 4106 section 8.1, RFC 7634 section 2), a [`KeyBlock`] leaves: AES round keys
//! (FIPS 197 section 5.2) and powers of the GHASH key (NIST SP 800-38D section 6.4, in the form of RFC 8452).

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128Enc, Aes256Enc, Block, hazmat};
use polyval::hazmat::FieldElement;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Powers of the GHASH key in a block: as many blocks of text may be hashed before a reduction.
pub const POWERS: usize = 48;

/// Round keys that a block has room for: those of AES-256.
pub const ROUND_KEYS: usize = 15;

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

/// Expanded key of one direction of one SA: 1 KiB, 64-byte aligned, same layout for every engine.
///
/// Control writes it while its slot is being filled; it is constant while the slot is live. Any bit pattern is a
/// valid value (the region is mapped, not constructed); an unknown cipher seals and opens nothing. The powers stand
/// last first, so that what a small packet needs lies together: lines 10 to 14 (15 for AES-256).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub struct KeyBlock {
    /// H^48 to H^1, each octet-reversed and multiplied by x (RFC 8452 appendix A), so that a carry-less product of
    /// octet-reversed blocks needs no shift.
    powers: [[u8; 16]; POWERS],
    salt: [u8; 4],
    cipher: u8,
    reserved: [u8; 11],
    /// As FIPS 197 has them. The first one (two) are the key itself, also for ChaCha20.
    round_keys: [[u8; 16]; ROUND_KEYS],
}

const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<KeyBlock>() == 1024 && align_of::<KeyBlock>() == 64);
    // A packet of 64 octets needs H^6 to H^1, salt, cipher and round keys: from line 10 to the end, 6 lines.
    assert!(offset_of!(KeyBlock, powers) + (POWERS - 6) * 16 >= 10 * 64);
    // Salt, cipher and the round keys of AES-128 fill three lines exactly, those of AES-256 four.
    assert!(offset_of!(KeyBlock, salt) == 12 * 64);
    // Engines read four powers at once, from any of them on.
    assert!(KeyBlock::POWERS_AT + POWERS * 16 + 48 <= size_of::<KeyBlock>());
    assert!(offset_of!(KeyBlock, round_keys) + 11 * 16 == 15 * 64);
    assert!(offset_of!(KeyBlock, round_keys) + 15 * 16 == 16 * 64);
};

impl KeyBlock {
    /// Octets of a block before its powers.
    pub const POWERS_AT: usize = std::mem::offset_of!(KeyBlock, powers);

    /// Expands `key` (without salt). The nonce is `salt || explicit IV` (RFC 4106 section 4, RFC 7634 section 2).
    /// Takes the same time for every key of a cipher.
    ///
    /// # Errors
    /// [`KeyError::Length`] where the key does not fit the cipher.
    pub fn expand(cipher: Cipher, key: &[u8], salt: [u8; 4]) -> Result<KeyBlock, KeyError> {
        if key.len() != cipher.key_len() {
            return Err(KeyError::Length { cipher, expected: cipher.key_len(), found: key.len() });
        }
        let mut block = KeyBlock {
            powers: [[0; 16]; POWERS],
            salt,
            cipher: cipher as u8,
            reserved: [0; 11],
            round_keys: [[0; 16]; ROUND_KEYS],
        };
        block.round_keys.as_flattened_mut()[..key.len()].copy_from_slice(key);
        let mut h = Block::default();
        match cipher {
            Cipher::ChaCha20Poly1305 => return Ok(block),
            Cipher::Aes128Gcm16 => expand_rounds::<4, 11>(&mut block.round_keys),
            Cipher::Aes256Gcm16 => expand_rounds::<8, 15>(&mut block.round_keys),
        }
        match cipher {
            Cipher::Aes128Gcm16 => Aes128Enc::new_from_slice(key).map(|aes| aes.encrypt_block(&mut h)),
            _ => Aes256Enc::new_from_slice(key).map(|aes| aes.encrypt_block(&mut h)),
        }
        .map_err(|_| KeyError::Length { cipher, expected: cipher.key_len(), found: key.len() })?;
        fill_powers(&mut block.powers, &h);
        h[..].zeroize();
        Ok(block)
    }

    /// The cipher that this block is for; `None` where the slot holds none.
    #[inline]
    pub fn cipher(&self) -> Option<Cipher> {
        match self.cipher {
            1 => Some(Cipher::Aes128Gcm16),
            2 => Some(Cipher::Aes256Gcm16),
            3 => Some(Cipher::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The raw key, for engines that expand for themselves; empty where the slot holds none.
    pub fn raw_key(&self) -> &[u8] {
        &self.round_keys.as_flattened()[..self.cipher().map_or(0, Cipher::key_len)]
    }

    /// The 4 octets of salt that start every nonce.
    #[inline]
    pub fn salt(&self) -> [u8; 4] {
        self.salt
    }

    /// AES round keys, in order of use: 11 for AES-128, 15 for AES-256.
    #[inline]
    pub fn round_keys(&self) -> &[[u8; 16]; ROUND_KEYS] {
        &self.round_keys
    }

    /// Powers of the GHASH key from H^48 down to H^1: octet-reversed and multiplied by x (RFC 8452 appendix A).
    #[inline]
    pub fn powers(&self) -> &[[u8; 16]; POWERS] {
        &self.powers
    }
}

/// FIPS 197 section 5.2 for keys of `WORDS` words, whose octets `keys` starts with.
fn expand_rounds<const WORDS: usize, const ROUNDS: usize>(keys: &mut [[u8; 16]; ROUND_KEYS]) {
    let (words, _) = keys.as_flattened_mut().as_chunks_mut::<4>();
    let mut rcon = 1u8;
    for at in WORDS..4 * ROUNDS {
        let mut word = words[at - 1];
        if at % WORDS == 0 {
            word = sub_word(word);
            word.rotate_left(1);
            word[0] ^= rcon;
            rcon = (rcon << 1) ^ if rcon & 0x80 != 0 { 0x1b } else { 0 };
        } else if WORDS > 6 && at % WORDS == 4 {
            word = sub_word(word);
        }
        for (octet, before) in word.iter_mut().zip(words[at - WORDS]) {
            *octet ^= before;
        }
        words[at] = word;
        word.zeroize();
    }
}

/// SubWord without a table that an address could betray: one AES round of four equal columns, in which ShiftRows
/// changes nothing, less its MixColumns.
fn sub_word(word: [u8; 4]) -> [u8; 4] {
    let mut state = Block::default();
    for (octet, from) in state.iter_mut().zip(word.iter().cycle()) {
        *octet = *from;
    }
    hazmat::cipher_round(&mut state, &Block::default());
    hazmat::inv_mix_columns(&mut state);
    let word = [state[0], state[1], state[2], state[3]];
    state[..].zeroize();
    word
}

/// H^1 to H^48 from `h`, which is the encryption of a zero block.
fn fill_powers(powers: &mut [[u8; 16]; POWERS], h: &Block) {
    let mut key = FieldElement::from(*h).reverse().mulx();
    let mut power = key;
    for slot in powers.iter_mut().rev() {
        *slot = power.into();
        power *= key;
    }
    key.zeroize();
    power.zeroize();
}

impl std::fmt::Debug for KeyBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyBlock({:?})", self.cipher())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyval::{Polyval, universal_hash::UniversalHash};

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn round_keys_are_those_of_fips_197() {
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let block = KeyBlock::expand(Cipher::Aes128Gcm16, &key, [0; 4]).unwrap();
        assert_eq!(block.round_keys()[1].to_vec(), hex("a0fafe1788542cb123a339392a6c7605"));
        assert_eq!(block.round_keys()[10].to_vec(), hex("d014f9a8c9ee2589e13f0cc8b6630ca6"));
        assert_eq!(block.round_keys()[11..], [[0; 16]; 4]);
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let block = KeyBlock::expand(Cipher::Aes256Gcm16, &key, [0; 4]).unwrap();
        assert_eq!(block.round_keys()[2].to_vec(), hex("9ba354118e6925afa51a8b5f2067fcde"));
        assert_eq!(block.round_keys()[14].to_vec(), hex("fe4890d1e6188d0b046df344706c631e"));
    }

    #[test]
    fn powers_hash_as_ghash_does() {
        let key = [7; 16];
        let block = KeyBlock::expand(Cipher::Aes128Gcm16, &key, [0; 4]).unwrap();
        let mut h = Block::default();
        Aes128Enc::new(&key.into()).encrypt_block(&mut h);
        let text: Vec<polyval::Block> = (0..POWERS).map(|n| [n as u8 * 3 + 1; 16].into()).collect();
        let mut oracle = Polyval::new(&FieldElement::from(h).reverse().mulx().into());
        oracle.update(&text);
        // Block n of 48 is multiplied by H^(48-n): in that order the powers stand.
        let mut sum = [0; 16];
        for (power, x) in block.powers().iter().zip(&text) {
            let mut one = Polyval::new(&(*power).into());
            one.update(&[*x]);
            sum.iter_mut().zip(one.finalize()).for_each(|(a, b)| *a ^= b);
        }
        assert_eq!(sum, <[u8; 16]>::from(oracle.finalize()));
    }

    #[test]
    fn a_wrong_length_is_refused_for_every_cipher() {
        for cipher in [Cipher::Aes128Gcm16, Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305] {
            for len in (0..64).filter(|len| *len != cipher.key_len()) {
                let error = KeyBlock::expand(cipher, &vec![0; len], [0; 4]).unwrap_err();
                assert_eq!(error, KeyError::Length { cipher, expected: cipher.key_len(), found: len });
            }
        }
    }

    #[test]
    fn raw_key_and_salt_come_back_and_zeroize_leaves_nothing() {
        let key: Vec<u8> = (1..=32).collect();
        for cipher in [Cipher::Aes128Gcm16, Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305] {
            let mut block = KeyBlock::expand(cipher, &key[..cipher.key_len()], [9, 8, 7, 6]).unwrap();
            assert_eq!((block.cipher(), block.salt()), (Some(cipher), [9, 8, 7, 6]));
            assert_eq!(block.raw_key(), &key[..cipher.key_len()]);
            assert_eq!(format!("{block:?}"), format!("KeyBlock(Some({cipher:?}))"));
            block.zeroize();
            assert!(block.cipher().is_none() && block.raw_key().is_empty() && block.salt() == [0; 4]);
            assert_eq!(block.powers(), &[[0; 16]; POWERS]);
            assert_eq!(block.round_keys(), &[[0; 16]; ROUND_KEYS]);
        }
    }
}
