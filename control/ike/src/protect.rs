//! Protected messages as datagrams. Enters: a header and payloads, or a received datagram. Leaves: one or several
//! datagrams (RFC 7383), or the plain payload bytes once all fragments are there. RFC 7296 3.14, RFC 7383, and the
//! octets of RFC 9242 3.3.2 that IKE_INTERMEDIATE adds to authentication.

use crate::crypto::{MessageKey, Rng};
use crate::message::{ExchangeType, HEADER_BYTES, Header, PayloadType, WireError, find_encrypted};
use zeroize::Zeroizing;

const GENERIC_BYTES: usize = 4;
const FRAGMENT_HEADER_BYTES: usize = 4;
/// Limits of reassembly: fragments of one message and bytes in all.
const MAX_FRAGMENTS: u16 = 64;
const MAX_BYTES: usize = 64 * 1024;

/// Seals a message into datagrams without the non-ESP marker: one, or several if it would exceed `limit` bytes.
pub(crate) fn seal(
    key: &mut MessageKey,
    header: Header,
    first: PayloadType,
    plain: &[u8],
    limit: Option<usize>,
    rng: &mut Rng,
) -> Vec<Vec<u8>> {
    let whole = HEADER_BYTES + GENERIC_BYTES + key.sealed_bytes(plain.len());
    match limit {
        Some(limit) if whole > limit => seal_fragments(key, header, first, plain, limit, rng),
        _ => vec![seal_one(key, header, first, None, plain, rng)],
    }
}

fn seal_fragments(
    key: &mut MessageKey,
    header: Header,
    first: PayloadType,
    plain: &[u8],
    limit: usize,
    rng: &mut Rng,
) -> Vec<Vec<u8>> {
    // The largest piece whose sealed size fits; one block less than the rest covers every padding.
    let overhead = HEADER_BYTES + GENERIC_BYTES + FRAGMENT_HEADER_BYTES + key.sealed_bytes(0) + 16;
    let piece = limit.saturating_sub(overhead).max(64);
    let pieces: Vec<&[u8]> = plain.chunks(piece).collect();
    let total = pieces.len() as u16;
    let mut out = Vec::with_capacity(pieces.len());
    for (number, piece) in (1..).zip(pieces) {
        let first = if number == 1 { first } else { PayloadType::None };
        out.push(seal_one(key, header, first, Some((number, total)), piece, rng));
    }
    out
}

fn seal_one(
    key: &mut MessageKey,
    mut header: Header,
    first: PayloadType,
    fragment: Option<(u16, u16)>,
    plain: &[u8],
    rng: &mut Rng,
) -> Vec<u8> {
    let fragment_bytes = if fragment.is_some() { FRAGMENT_HEADER_BYTES } else { 0 };
    let payload = GENERIC_BYTES + fragment_bytes + key.sealed_bytes(plain.len());
    header.next = if fragment.is_some() { PayloadType::Fragment } else { PayloadType::Encrypted };
    header.length = (HEADER_BYTES + payload) as u32;
    let mut out = header.encode().to_vec();
    out.extend([first.into(), 0]);
    out.extend((payload as u16).to_be_bytes());
    if let Some((number, total)) = fragment {
        out.extend(number.to_be_bytes());
        out.extend(total.to_be_bytes());
    }
    key.seal(&mut out, plain, rng);
    out
}

/// A datagram that was opened.
pub(crate) enum Opened {
    /// All of the message: type of its first payload, and the payloads.
    Whole(PayloadType, Zeroizing<Vec<u8>>),
    /// An authentic fragment; more are missing. Number 1 is told apart for retransmissions (RFC 7383 2.6.1).
    Fragment { number: u16 },
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Not a protected message, or malformed around the protection.
    Wire(WireError),
    /// Not authentic.
    NotAuthentic,
}

impl From<WireError> for OpenError {
    fn from(e: WireError) -> Self {
        OpenError::Wire(e)
    }
}

/// Fragments of one message that are still incomplete.
#[derive(Default)]
pub(crate) struct Reassembly {
    id: (u32, bool),
    total: u16,
    first: Option<PayloadType>,
    pieces: Vec<Option<Zeroizing<Vec<u8>>>>,
}

impl Reassembly {
    /// Opens a datagram and puts fragments together. Only authentic fragments are kept.
    pub(crate) fn open(
        &mut self,
        key: &MessageKey,
        header: &Header,
        bytes: &[u8],
    ) -> Result<Opened, OpenError> {
        let (kind, at, first) = find_encrypted(header.next, &bytes[HEADER_BYTES..])?;
        let at = HEADER_BYTES + at + GENERIC_BYTES;
        if kind == PayloadType::Encrypted {
            let plain = key.open(bytes, at).map_err(|_| OpenError::NotAuthentic)?;
            return Ok(Opened::Whole(first, plain));
        }
        let fields = bytes.get(at..at + FRAGMENT_HEADER_BYTES).ok_or(WireError::Truncated)?;
        let number = u16::from_be_bytes([fields[0], fields[1]]);
        let total = u16::from_be_bytes([fields[2], fields[3]]);
        if number == 0 || number > total || total > MAX_FRAGMENTS {
            return Err(WireError::BadValue.into());
        }
        let plain = key.open(bytes, at + FRAGMENT_HEADER_BYTES).map_err(|_| OpenError::NotAuthentic)?;
        Ok(self.add((header.id, header.response), number, total, first, plain))
    }

    fn add(
        &mut self,
        id: (u32, bool),
        number: u16,
        total: u16,
        first: PayloadType,
        plain: Zeroizing<Vec<u8>>,
    ) -> Opened {
        // A greater total means that the peer found a smaller path MTU and began anew (RFC 7383 2.5.2).
        if self.id != id || self.total < total || self.pieces.is_empty() {
            *self = Reassembly { id, total, first: None, pieces: vec![None; usize::from(total)] };
        }
        let held: usize = self.pieces.iter().flatten().map(|p| p.len()).sum();
        let slot = self.pieces.get_mut(usize::from(number - 1)).filter(|s| s.is_none());
        if let Some(slot) = slot.filter(|_| self.total == total && held + plain.len() <= MAX_BYTES) {
            *slot = Some(plain);
            if number == 1 {
                self.first = Some(first);
            }
        }
        if self.pieces.iter().any(Option::is_none) {
            return Opened::Fragment { number };
        }
        let mut all = Zeroizing::new(Vec::with_capacity(held));
        self.pieces.iter().flatten().for_each(|p| all.extend_from_slice(p));
        let first = self.first.unwrap_or(PayloadType::None);
        *self = Reassembly::default();
        Opened::Whole(first, all)
    }
}

/// The octets that an IKE_INTERMEDIATE message adds to authentication: its header and encrypted payload's header as
/// if nothing were encrypted or fragmented, then the plain payloads (RFC 9242 3.3.2).
pub(crate) fn intermediate_octets(mut header: Header, first: PayloadType, plain: &[u8]) -> Vec<u8> {
    debug_assert_eq!(header.exchange, ExchangeType::Intermediate);
    header.next = PayloadType::Encrypted;
    header.length = (HEADER_BYTES + GENERIC_BYTES + plain.len()) as u32;
    let mut out = header.encode().to_vec();
    out.extend([first.into(), 0]);
    out.extend(((GENERIC_BYTES + plain.len()) as u16).to_be_bytes());
    out.extend(plain);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{IkeCipher, Integrity};
    use crate::testing::rng;

    fn header() -> Header {
        let (spi_i, spi_r, exchange) = (1, 2, ExchangeType::Auth);
        Header {
            spi_i,
            spi_r,
            next: PayloadType::None,
            exchange,
            from_initiator: true,
            response: false,
            id: 1,
            length: 0,
        }
    }

    fn keys() -> [MessageKey; 2] {
        let gcm = MessageKey::new(IkeCipher::AesGcm256, None, &[1; 36], &[]);
        [gcm, MessageKey::new(IkeCipher::AesCbc128, Some(Integrity::Sha512), &[1; 16], &[2; 64])]
    }

    #[test]
    fn fragments_fit_and_come_together_in_every_order() {
        let plain: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        for mut key in keys() {
            let parts = seal(&mut key, header(), PayloadType::IdI, &plain, Some(600), &mut rng(8));
            assert!(parts.len() > 5 && parts.iter().all(|p| p.len() <= 600));
            for skip in 0..parts.len() {
                let mut r = Reassembly::default();
                let order = (0..parts.len()).map(|i| (i * 5 + skip) % parts.len());
                let mut done = None;
                // Every fragment twice: duplicates change nothing.
                for i in order.flat_map(|i| [i, i]) {
                    let h = Header::decode(&parts[i]).unwrap();
                    if let Ok(Opened::Whole(first, all)) = r.open(&key, &h, &parts[i]) {
                        done = Some((first, all));
                        break;
                    }
                }
                if !parts.len().is_multiple_of(5) {
                    let (first, all) = done.unwrap();
                    assert_eq!((first, &all[..]), (PayloadType::IdI, &plain[..]));
                }
            }
            let mut changed = parts[0].clone();
            *changed.last_mut().unwrap() ^= 1;
            let h = Header::decode(&changed).unwrap();
            assert!(matches!(Reassembly::default().open(&key, &h, &changed), Err(OpenError::NotAuthentic)));
        }
    }

    #[test]
    fn small_messages_stay_whole() {
        for mut key in keys() {
            let parts = seal(&mut key, header(), PayloadType::Nonce, b"plain", Some(1232), &mut rng(9));
            assert_eq!(parts.len(), 1);
            let h = Header::decode(&parts[0]).unwrap();
            let Ok(Opened::Whole(first, plain)) = Reassembly::default().open(&key, &h, &parts[0]) else {
                panic!()
            };
            assert_eq!((first, &plain[..]), (PayloadType::Nonce, &b"plain"[..]));
        }
    }
}
