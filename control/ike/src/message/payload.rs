//! Payload chains. Enters: the bytes behind an IKE header or inside a decrypted payload, and the first payload's
//! type. Leaves: typed payloads; unknown ones are skipped unless critical. RFC 7296 sections 3.2 to 3.16.

use super::{NotifyType, Proposal, Protocol, Reader, TrafficSelector, WireError};

const MAX_PAYLOADS: usize = 128;
const CRITICAL: u8 = 0x80;

/// Payload types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadType {
    /// 0: the chain ends.
    None,
    /// Security Association
    Sa,
    /// Key Exchange
    Ke,
    /// Identification, initiator
    IdI,
    /// Identification, responder
    IdR,
    /// Certificate
    Cert,
    /// Certificate Request
    CertReq,
    /// Authentication
    Auth,
    /// Nonce
    Nonce,
    /// Notify
    Notify,
    /// Delete
    Delete,
    /// Vendor ID
    Vendor,
    /// Traffic Selectors, initiator
    TsI,
    /// Traffic Selectors, responder
    TsR,
    /// Encrypted and Authenticated
    Encrypted,
    /// Configuration
    Cp,
    /// EAP
    Eap,
    /// Encrypted and Authenticated Fragment (RFC 7383)
    Fragment,
    /// Anything else.
    Other(u8),
}

const TYPES: [(u8, PayloadType); 18] = [
    (0, PayloadType::None),
    (33, PayloadType::Sa),
    (34, PayloadType::Ke),
    (35, PayloadType::IdI),
    (36, PayloadType::IdR),
    (37, PayloadType::Cert),
    (38, PayloadType::CertReq),
    (39, PayloadType::Auth),
    (40, PayloadType::Nonce),
    (41, PayloadType::Notify),
    (42, PayloadType::Delete),
    (43, PayloadType::Vendor),
    (44, PayloadType::TsI),
    (45, PayloadType::TsR),
    (46, PayloadType::Encrypted),
    (47, PayloadType::Cp),
    (48, PayloadType::Eap),
    (53, PayloadType::Fragment),
];

impl From<u8> for PayloadType {
    fn from(v: u8) -> Self {
        TYPES.iter().find(|(n, _)| *n == v).map_or(Self::Other(v), |(_, t)| *t)
    }
}

impl From<PayloadType> for u8 {
    fn from(v: PayloadType) -> u8 {
        match v {
            PayloadType::Other(n) => n,
            t => TYPES.iter().find(|(_, k)| *k == t).map_or(0, |(n, _)| *n),
        }
    }
}

/// Identification types (RFC 7296 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdType {
    /// 1: IPv4 address
    Ipv4,
    /// 2: host name
    Fqdn,
    /// 3: e-mail address
    Email,
    /// 5: IPv6 address
    Ipv6,
    /// 9: DER distinguished name
    Dn,
    /// 11: opaque
    KeyId,
    /// Anything else.
    Other(u8),
}

impl From<u8> for IdType {
    fn from(v: u8) -> Self {
        match v {
            1 => Self::Ipv4,
            2 => Self::Fqdn,
            3 => Self::Email,
            5 => Self::Ipv6,
            9 => Self::Dn,
            11 => Self::KeyId,
            v => Self::Other(v),
        }
    }
}

impl From<IdType> for u8 {
    fn from(v: IdType) -> u8 {
        match v {
            IdType::Ipv4 => 1,
            IdType::Fqdn => 2,
            IdType::Email => 3,
            IdType::Ipv6 => 5,
            IdType::Dn => 9,
            IdType::KeyId => 11,
            IdType::Other(v) => v,
        }
    }
}

/// An identification payload's content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identification {
    /// Type.
    pub kind: IdType,
    /// Bytes as the type says.
    pub data: Vec<u8>,
}

impl Identification {
    /// The payload's body: what the AUTH payload covers (RFC 7296 2.15).
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.kind.into(), 0, 0, 0];
        out.extend(&self.data);
        out
    }
}

/// Certificate encodings (RFC 7296 3.6); only X.509 signature certificates are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertEncoding {
    /// 4: X.509 certificate, signature
    X509,
    /// Anything else.
    Other(u8),
}

/// A key exchange payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyExchangeData {
    /// Key exchange method number.
    pub method: u16,
    /// Public value or ciphertext.
    pub data: Vec<u8>,
}

/// A notify payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Protocol of the SA concerned.
    pub protocol: Protocol,
    /// SPI of the SA concerned, or empty.
    pub spi: Vec<u8>,
    /// Message type.
    pub kind: NotifyType,
    /// Data.
    pub data: Vec<u8>,
}

impl Notify {
    /// A notify that concerns no particular SA.
    pub fn new(kind: NotifyType, data: impl Into<Vec<u8>>) -> Notify {
        Notify { protocol: Protocol::None, spi: Vec::new(), kind, data: data.into() }
    }
}

/// A payload, typed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Payload {
    Sa(Vec<Proposal>),
    Ke(KeyExchangeData),
    IdI(Identification),
    IdR(Identification),
    Cert {
        encoding: CertEncoding,
        data: Vec<u8>,
    },
    CertReq {
        encoding: CertEncoding,
        authorities: Vec<u8>,
    },
    Auth {
        method: u8,
        data: Vec<u8>,
    },
    Nonce(Vec<u8>),
    Notify(Notify),
    Delete {
        protocol: Protocol,
        spis: Vec<Vec<u8>>,
    },
    Vendor(Vec<u8>),
    TsI(Vec<TrafficSelector>),
    TsR(Vec<TrafficSelector>),
    Cp(Vec<u8>),
    Eap(Vec<u8>),
    /// Not critical and not known; ignored.
    Unknown(u8),
}

impl From<CertEncoding> for u8 {
    fn from(v: CertEncoding) -> u8 {
        match v {
            CertEncoding::X509 => 4,
            CertEncoding::Other(n) => n,
        }
    }
}

impl From<u8> for CertEncoding {
    fn from(v: u8) -> Self {
        if v == 4 { Self::X509 } else { Self::Other(v) }
    }
}

impl Payload {
    /// The payload's type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Payload::Sa(_) => PayloadType::Sa,
            Payload::Ke(_) => PayloadType::Ke,
            Payload::IdI(_) => PayloadType::IdI,
            Payload::IdR(_) => PayloadType::IdR,
            Payload::Cert { .. } => PayloadType::Cert,
            Payload::CertReq { .. } => PayloadType::CertReq,
            Payload::Auth { .. } => PayloadType::Auth,
            Payload::Nonce(_) => PayloadType::Nonce,
            Payload::Notify(_) => PayloadType::Notify,
            Payload::Delete { .. } => PayloadType::Delete,
            Payload::Vendor(_) => PayloadType::Vendor,
            Payload::TsI(_) => PayloadType::TsI,
            Payload::TsR(_) => PayloadType::TsR,
            Payload::Cp(_) => PayloadType::Cp,
            Payload::Eap(_) => PayloadType::Eap,
            Payload::Unknown(n) => PayloadType::Other(*n),
        }
    }

    fn decode(kind: PayloadType, critical: bool, body: &[u8]) -> Result<Payload, WireError> {
        let mut r = Reader::new(body);
        Ok(match kind {
            PayloadType::Sa => Payload::Sa(Proposal::decode_all(body)?),
            PayloadType::Ke => {
                let (method, _) = (r.u16()?, r.u16()?);
                Payload::Ke(KeyExchangeData { method, data: r.rest().to_vec() })
            }
            PayloadType::IdI => Payload::IdI(decode_id(r)?),
            PayloadType::IdR => Payload::IdR(decode_id(r)?),
            PayloadType::Cert => Payload::Cert { encoding: r.u8()?.into(), data: r.rest().to_vec() },
            PayloadType::CertReq => {
                Payload::CertReq { encoding: r.u8()?.into(), authorities: r.rest().to_vec() }
            }
            PayloadType::Auth => {
                let (method, _) = (r.u8()?, r.take(3)?);
                Payload::Auth { method, data: r.rest().to_vec() }
            }
            PayloadType::Nonce if (16..=256).contains(&body.len()) => Payload::Nonce(body.to_vec()),
            PayloadType::Nonce => return Err(WireError::BadLength),
            PayloadType::Notify => {
                let (protocol, spi_bytes, kind) = (r.u8()?.into(), r.u8()?, r.u16()?.into());
                let spi = r.take(usize::from(spi_bytes))?.to_vec();
                Payload::Notify(Notify { protocol, spi, kind, data: r.rest().to_vec() })
            }
            PayloadType::Delete => decode_delete(r)?,
            PayloadType::Vendor => Payload::Vendor(body.to_vec()),
            PayloadType::TsI => Payload::TsI(TrafficSelector::decode_all(body)?),
            PayloadType::TsR => Payload::TsR(TrafficSelector::decode_all(body)?),
            PayloadType::Cp => Payload::Cp(body.to_vec()),
            PayloadType::Eap => Payload::Eap(body.to_vec()),
            PayloadType::None | PayloadType::Encrypted | PayloadType::Fragment => {
                return Err(WireError::BadValue);
            }
            PayloadType::Other(n) if critical => return Err(WireError::UnknownCritical(n)),
            PayloadType::Other(n) => Payload::Unknown(n),
        })
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Payload::Sa(proposals) => Proposal::encode_all(proposals, out),
            Payload::Ke(ke) => {
                out.extend(ke.method.to_be_bytes());
                out.extend([0, 0]);
                out.extend(&ke.data);
            }
            Payload::IdI(id) | Payload::IdR(id) => out.extend(id.body()),
            Payload::Cert { encoding, data } | Payload::CertReq { encoding, authorities: data } => {
                out.push((*encoding).into());
                out.extend(data);
            }
            Payload::Auth { method, data } => {
                out.extend([*method, 0, 0, 0]);
                out.extend(data);
            }
            Payload::Notify(n) => {
                out.extend([n.protocol.into(), n.spi.len() as u8]);
                out.extend(u16::from(n.kind).to_be_bytes());
                out.extend(&n.spi);
                out.extend(&n.data);
            }
            Payload::Delete { protocol, spis } => {
                out.extend([(*protocol).into(), delete_spi_len(*protocol) as u8]);
                out.extend((spis.len() as u16).to_be_bytes());
                spis.iter().for_each(|s| out.extend(s));
            }
            Payload::TsI(ts) | Payload::TsR(ts) => TrafficSelector::encode_all(ts, out),
            Payload::Nonce(b) | Payload::Vendor(b) | Payload::Cp(b) | Payload::Eap(b) => out.extend(b),
            Payload::Unknown(_) => {}
        }
    }
}

fn decode_id(mut r: Reader<'_>) -> Result<Identification, WireError> {
    let (kind, _) = (r.u8()?.into(), r.take(3)?);
    Ok(Identification { kind, data: r.rest().to_vec() })
}

/// Octets of each SPI in a delete payload, also where it names none (RFC 7296 section 3.11).
fn delete_spi_len(protocol: Protocol) -> usize {
    if matches!(protocol, Protocol::Ah | Protocol::Esp) { 4 } else { 0 }
}

fn decode_delete(mut r: Reader<'_>) -> Result<Payload, WireError> {
    let (protocol, size, count): (Protocol, _, _) = (r.u8()?.into(), usize::from(r.u8()?), r.u16()?);
    if size != delete_spi_len(protocol) || (size == 0 && count != 0) {
        return Err(WireError::BadValue);
    }
    let mut spis = Vec::new();
    for _ in 0..count {
        spis.push(r.take(size)?.to_vec());
    }
    if r.is_empty() { Ok(Payload::Delete { protocol, spis }) } else { Err(WireError::BadLength) }
}

/// Decodes a chain that holds no encrypted payload.
///
/// # Errors
/// Anything that is not a chain of well-formed payloads filling `bytes` exactly.
pub fn decode_chain(first: PayloadType, bytes: &[u8]) -> Result<Vec<Payload>, WireError> {
    let mut r = Reader::new(bytes);
    let mut kind = first;
    let mut out = Vec::new();
    while kind != PayloadType::None {
        if out.len() == MAX_PAYLOADS {
            return Err(WireError::TooMany);
        }
        let (next, flags, length) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
        let body = r.take(length.checked_sub(4).ok_or(WireError::BadLength)?)?;
        out.push(Payload::decode(kind, flags & CRITICAL != 0, body)?);
        kind = next.into();
    }
    if r.is_empty() { Ok(out) } else { Err(WireError::BadLength) }
}

/// Encodes payloads as a chain; gives the first payload's type too.
pub fn encode_chain(payloads: &[Payload]) -> (PayloadType, Vec<u8>) {
    let mut out = Vec::new();
    for (i, p) in payloads.iter().enumerate() {
        let start = out.len();
        let next = payloads.get(i + 1).map_or(PayloadType::None, Payload::kind);
        out.extend([next.into(), 0, 0, 0]);
        p.encode_body(&mut out);
        let length = (out.len() - start) as u16;
        out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    (payloads.first().map_or(PayloadType::None, Payload::kind), out)
}

/// Walks the clear payloads of a protected message up to its encrypted payload, which must be the last.
/// Returns the type (encrypted or fragment), the offset of its generic header in `bytes` and the type of the
/// first payload inside it.
///
/// # Errors
/// No such payload, or a malformed chain before it.
pub fn find_encrypted(
    first: PayloadType,
    bytes: &[u8],
) -> Result<(PayloadType, usize, PayloadType), WireError> {
    let (mut kind, mut at) = (first, 0usize);
    for _ in 0..MAX_PAYLOADS {
        let mut r = Reader::new(bytes.get(at..).ok_or(WireError::Truncated)?);
        let (next, flags, length) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
        r.take(length.checked_sub(4).ok_or(WireError::BadLength)?)?;
        match kind {
            PayloadType::Encrypted | PayloadType::Fragment if r.is_empty() => {
                return Ok((kind, at, next.into()));
            }
            PayloadType::Encrypted | PayloadType::Fragment => return Err(WireError::BadLength),
            PayloadType::None => return Err(WireError::BadValue),
            PayloadType::Other(n) if flags & CRITICAL != 0 => return Err(WireError::UnknownCritical(n)),
            _ => {}
        }
        (kind, at) = (next.into(), at + length);
    }
    Err(WireError::TooMany)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Payload> {
        let id = Identification { kind: IdType::Fqdn, data: b"gw.example".to_vec() };
        let ts = vec![TrafficSelector::any_v4(), TrafficSelector::any_v6()];
        vec![
            Payload::Ke(KeyExchangeData { method: 31, data: vec![9; 32] }),
            Payload::IdI(id.clone()),
            Payload::IdR(id),
            Payload::Cert { encoding: CertEncoding::X509, data: vec![1, 2] },
            Payload::CertReq { encoding: CertEncoding::X509, authorities: vec![7; 20] },
            Payload::Auth { method: 2, data: vec![3; 32] },
            Payload::Nonce(vec![5; 32]),
            Payload::Notify(Notify::new(NotifyType::Cookie, vec![1, 2, 3])),
            Payload::Delete { protocol: Protocol::Esp, spis: vec![vec![0, 0, 1, 0], vec![0, 0, 1, 1]] },
            Payload::Delete { protocol: Protocol::Ike, spis: vec![] },
            Payload::Delete { protocol: Protocol::Ah, spis: vec![] },
            Payload::Vendor(b"x".to_vec()),
            Payload::TsI(ts.clone()),
            Payload::TsR(ts),
        ]
    }

    #[test]
    fn round_trip_every_truncation_and_every_byte_flip() {
        let (first, bytes) = encode_chain(&sample());
        assert_eq!(decode_chain(first, &bytes), Ok(sample()));
        for n in 0..bytes.len() {
            assert!(decode_chain(first, &bytes[..n]).is_err(), "{n}");
        }
        // Whatever a flipped field does, decoding ends without a panic, and what decodes encodes to the same length.
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(p) = decode_chain(first, &flipped) {
                    assert!(!p.is_empty());
                }
            }
        }
    }

    #[test]
    fn unknown_payload_is_skipped_unless_critical() {
        let plain = [0, 0, 0, 5, 1];
        assert_eq!(decode_chain(PayloadType::Other(99), &plain), Ok(vec![Payload::Unknown(99)]));
        let critical = [0, 0x80, 0, 5, 1];
        assert_eq!(decode_chain(PayloadType::Other(99), &critical), Err(WireError::UnknownCritical(99)));
    }

    #[test]
    fn encrypted_payload_must_be_last() {
        let ok = [41, 0, 0, 6, 1, 2];
        assert_eq!(
            find_encrypted(PayloadType::Encrypted, &ok),
            Ok((PayloadType::Encrypted, 0, PayloadType::Notify))
        );
        let trailing = [41, 0, 0, 6, 1, 2, 0];
        assert_eq!(find_encrypted(PayloadType::Encrypted, &trailing), Err(WireError::BadLength));
        assert_eq!(find_encrypted(PayloadType::None, &ok), Err(WireError::BadValue));
    }

    #[test]
    fn nonces_and_deletes_are_bounded() {
        assert!(Payload::decode(PayloadType::Nonce, false, &[0; 15]).is_err());
        assert!(Payload::decode(PayloadType::Nonce, false, &[0; 257]).is_err());
        assert!(Payload::decode(PayloadType::Delete, false, &[3, 8, 0, 0]).is_err());
        assert!(Payload::decode(PayloadType::Delete, false, &[1, 0, 255, 255]).is_err());
    }
}
