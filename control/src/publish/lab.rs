//! Keys without IKEv2: the lab secret, two outer addresses, a context and a generation enter, SPI and key of one direction
//! leave (HKDF with SHA-256, RFC 5869). Both gateways derive the same, for the sender's address comes first.

use std::net::Ipv4Addr;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::CipherChoice;

const SALT: &[u8] = b"penstock lab keys, version 1";

/// SPIs below this are reserved (RFC 4303 section 2.1).
const FIRST_SPI: u32 = 256;

/// Longest key with its salt, in octets.
const MATERIAL: usize = 36;

/// Names one sequence of keys, or one fixed key, in the journal. It tells nothing of the keys.
pub type ChainId = u64;

/// SPI and key of one direction.
#[derive(Clone)]
pub struct Material {
    /// SPI.
    pub spi: u32,
    /// Key.
    pub key: Zeroizing<Vec<u8>>,
    /// Salt.
    pub salt: [u8; 4],
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Material({:#x})", self.spi)
    }
}

impl Material {
    /// From an SPI and a key that ends with its salt (RFC 4106 section 8.1); `None` where it is shorter than a salt.
    pub fn new(spi: u32, octets: &[u8]) -> Option<Material> {
        let (key, salt) = octets.split_last_chunk::<4>()?;
        Some(Material { spi, key: Zeroizing::new(key.to_vec()), salt: *salt })
    }
}

/// The sequence of keys of one tunnel, one pair for each generation.
#[derive(Clone)]
pub struct Chain {
    prk: Hkdf<Sha256>,
    id: ChainId,
    local: Ipv4Addr,
    peer: Ipv4Addr,
    cipher: CipherChoice,
    context: String,
}

/// The same keys in every generation: the name stands for the secret too.
impl PartialEq for Chain {
    fn eq(&self, other: &Chain) -> bool {
        let facts = |chain: &Chain| (chain.id, chain.local, chain.peer, chain.cipher);
        facts(self) == facts(other) && self.context == other.context
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chain({} to {}, {:?})", self.local, self.peer, self.context)
    }
}

impl Chain {
    /// The chain between `local` and `peer`.
    pub fn new(secret: &[u8], local: Ipv4Addr, peer: Ipv4Addr, context: &str, cipher: CipherChoice) -> Chain {
        let prk = Hkdf::<Sha256>::new(Some(SALT), secret);
        let mut id = [0; 8];
        let (low, high) = (local.min(peer).octets(), local.max(peer).octets());
        expand(&prk, &[b"id", &low, &high, context.as_bytes()], &mut id);
        Chain { prk, id: u64::from_be_bytes(id), local, peer, cipher, context: context.into() }
    }

    /// Names the chain in the journal.
    pub fn id(&self) -> ChainId {
        self.id
    }

    /// What this gateway sends with.
    pub fn outbound(&self, generation: u32) -> Material {
        self.derive(self.local, self.peer, generation)
    }

    /// What this gateway receives with.
    pub fn inbound(&self, generation: u32) -> Material {
        self.derive(self.peer, self.local, generation)
    }

    fn derive(&self, from: Ipv4Addr, to: Ipv4Addr, generation: u32) -> Material {
        let len = self.cipher.key_len();
        let mut octets = Zeroizing::new([0; 4 + MATERIAL]);
        let parts: [&[u8]; 6] = [
            b"sa",
            self.cipher.word().as_bytes(),
            &from.octets(),
            &to.octets(),
            &generation.to_be_bytes(),
            self.context.as_bytes(),
        ];
        expand(&self.prk, &parts, &mut octets[..4 + len + 4]);
        let (spi, rest) = octets.split_at(4);
        let (key, salt) = (&rest[..len], &rest[len..len + 4]);
        let spi = spi.iter().fold(0, |spi, octet| spi << 8 | u32::from(*octet));
        Material {
            spi: if spi < FIRST_SPI { spi + FIRST_SPI } else { spi },
            key: Zeroizing::new(key.to_vec()),
            salt: [salt[0], salt[1], salt[2], salt[3]],
        }
    }
}

/// Names a fixed key in the journal.
pub fn fixed_id(material: &Material) -> ChainId {
    let prk = Hkdf::<Sha256>::new(Some(SALT), &material.key);
    let mut id = [0; 8];
    expand(&prk, &[b"fixed", &material.salt], &mut id);
    u64::from_be_bytes(id)
}

/// Expands with an info in which every part has its length before it, so that no two infos are equal by accident.
fn expand(prk: &Hkdf<Sha256>, parts: &[&[u8]], out: &mut [u8]) {
    let mut info = Vec::new();
    for part in parts {
        info.extend_from_slice(&(part.len() as u32).to_be_bytes());
        info.extend_from_slice(part);
    }
    // Fails above 255 times 32 octets only; the longest output here has 40.
    prk.expand(&info, out).unwrap_or_else(|_| unreachable!("output of {} octets", out.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn chain(from: Ipv4Addr, to: Ipv4Addr, context: &str, cipher: CipherChoice) -> Chain {
        Chain::new(&[7; 32], from, to, context, cipher)
    }

    fn same(one: &Material, other: &Material) -> bool {
        one.spi == other.spi && one.key == other.key && one.salt == other.salt
    }

    #[test]
    fn both_gateways_derive_the_same() {
        let (a, b) = (chain(A, B, "", CipherChoice::Aes256Gcm16), chain(B, A, "", CipherChoice::Aes256Gcm16));
        assert_eq!(a.id(), b.id());
        assert!(same(&a.outbound(3), &b.inbound(3)) && same(&a.inbound(3), &b.outbound(3)));
        assert_eq!((a.outbound(3).key.len(), a.outbound(3).key == a.inbound(3).key), (32, false));
    }

    #[test]
    fn everything_that_should_matter_does() {
        let cipher = CipherChoice::Aes128Gcm16;
        let first = chain(A, B, "", cipher).outbound(1);
        let others = [
            chain(A, B, "", cipher).outbound(2),
            chain(A, B, "x", cipher).outbound(1),
            chain(B, A, "", cipher).outbound(1),
            chain(A, B, "", CipherChoice::Aes256Gcm16).outbound(1),
            Chain::new(&[8; 32], A, B, "", cipher).outbound(1),
        ];
        assert!(others.iter().all(|other| other.spi != first.spi && other.key[..16] != first.key[..]));
        assert_eq!(format!("{first:?}"), format!("Material({:#x})", first.spi));
    }
}
