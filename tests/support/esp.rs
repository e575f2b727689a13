//! ESP in tunnel mode with AES-GCM-16 for tests (RFC 4303, RFC 4106), written apart from the data plane on the aes-gcm
//! crate: an inner packet enters and a sealed one leaves, and back.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm, Nonce};

/// One direction of an association, as both ends know it.
#[derive(Clone, Debug)]
pub struct Sa {
    /// Security parameters index.
    pub spi: u32,
    /// 16 octets for AES-128, 32 for AES-256.
    pub key: Vec<u8>,
    /// Salt.
    pub salt: [u8; 4],
    /// Extended sequence numbers.
    pub esn: bool,
    /// ESP in UDP.
    pub udp: bool,
}

impl Sa {
    /// An association with AES-128, ESN and without UDP, whose key follows from the SPI.
    pub fn new(spi: u32) -> Sa {
        Sa { spi, key: key_of(spi, 16), salt: (spi ^ 0x5a5a_5a5a).to_be_bytes(), esn: true, udp: false }
    }

    /// The same with AES-256.
    pub fn with_aes256(self) -> Sa {
        Sa { key: key_of(self.spi, 32), ..self }
    }

    /// ESP around `inner`: the packet with this number, padded as RFC 4303 section 2.4 says.
    pub fn seal(&self, number: u64, inner: &[u8]) -> Vec<u8> {
        let padding = (4 - (inner.len() + 2) % 4) % 4;
        let mut text = inner.to_vec();
        text.extend((1..=padding).map(|octet| octet as u8));
        text.extend([padding as u8, 4]);
        self.seal_text(number, &text)
    }

    /// ESP around a text that has its trailer, right or wrong, already.
    pub fn seal_text(&self, number: u64, text: &[u8]) -> Vec<u8> {
        let (iv, aad) = (number.to_be_bytes(), self.aad(number));
        let payload = Payload { msg: text, aad: &aad };
        let sealed = match self.key.len() {
            16 => Aes128Gcm::new_from_slice(&self.key).unwrap().encrypt(&self.nonce(iv), payload),
            _ => Aes256Gcm::new_from_slice(&self.key).unwrap().encrypt(&self.nonce(iv), payload),
        };
        [&self.spi.to_be_bytes()[..], &(number as u32).to_be_bytes(), &iv, &sealed.unwrap()].concat()
    }

    /// The number, text and trailer of an ESP packet of this association; `None` where SPI or tag is wrong. The high half
    /// of the number is taken from the IV, which Penstock makes of it.
    pub fn open_text(&self, esp: &[u8]) -> Option<(u64, Vec<u8>)> {
        let iv: [u8; 8] = esp.get(8..16)?.try_into().unwrap();
        let number = u64::from_be_bytes(iv);
        if esp[..4] != self.spi.to_be_bytes() || esp[4..8] != (number as u32).to_be_bytes() {
            return None;
        }
        let aad = self.aad(number);
        let payload = Payload { msg: &esp[16..], aad: &aad };
        let opened = match self.key.len() {
            16 => Aes128Gcm::new_from_slice(&self.key).unwrap().decrypt(&self.nonce(iv), payload),
            _ => Aes256Gcm::new_from_slice(&self.key).unwrap().decrypt(&self.nonce(iv), payload),
        };
        opened.ok().map(|text| (number, text))
    }

    /// Number and inner packet; the trailer must be exactly the shortest one that RFC 4303 allows.
    pub fn open(&self, esp: &[u8]) -> Option<(u64, Vec<u8>)> {
        let (number, mut text) = self.open_text(esp)?;
        let (next, padding) = (text.pop()?, text.pop()?);
        assert_eq!((next, text.len() % 4), (4, 2), "next header and alignment");
        assert!(padding < 4, "{padding} octets of padding");
        for octet in (1..=padding).rev() {
            assert_eq!(text.pop(), Some(octet));
        }
        Some((number, text))
    }

    fn aad(&self, number: u64) -> Vec<u8> {
        let spi = self.spi.to_be_bytes();
        match self.esn {
            true => [&spi[..], &number.to_be_bytes()].concat(),
            false => [spi, (number as u32).to_be_bytes()].concat(),
        }
    }

    fn nonce(&self, iv: [u8; 8]) -> Nonce<aes_gcm::aead::consts::U12> {
        let octets: [u8; 12] = std::array::from_fn(|at| if at < 4 { self.salt[at] } else { iv[at - 4] });
        octets.into()
    }
}

fn key_of(spi: u32, len: usize) -> Vec<u8> {
    (0..len).map(|at| (spi >> (at % 4 * 8)) as u8 ^ (at as u8).wrapping_mul(37)).collect()
}
