//! The SA payload: proposals and transforms. Enters: an SA payload's body, or proposals to send. Leaves: the
//! other. Unknown transform types and identifiers are kept as numbers, so that a refusal can name them.
//! RFC 7296 section 3.3.

use super::{Reader, WireError};

/// No sane peer sends more proposals or transforms than this.
const MAX_PROPOSALS: usize = 64;
const MAX_TRANSFORMS: usize = 128;
const ATTRIBUTE_KEY_LENGTH: u16 = 14;

/// The protocol of a proposal, notify or delete payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// 0: none given.
    #[default]
    None,
    /// IKE
    Ike,
    /// AH
    Ah,
    /// ESP
    Esp,
    /// Anything else.
    Other(u8),
}

impl From<u8> for Protocol {
    fn from(v: u8) -> Self {
        match v {
            0 => Self::None,
            1 => Self::Ike,
            2 => Self::Ah,
            3 => Self::Esp,
            v => Self::Other(v),
        }
    }
}

impl From<Protocol> for u8 {
    fn from(v: Protocol) -> u8 {
        match v {
            Protocol::None => 0,
            Protocol::Ike => 1,
            Protocol::Ah => 2,
            Protocol::Esp => 3,
            Protocol::Other(v) => v,
        }
    }
}

/// Transform types (RFC 7296 3.3.2, RFC 9370 for the additional key exchanges).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransformType {
    /// 1: encryption
    Encryption,
    /// 2: pseudo-random function
    Prf,
    /// 3: integrity
    Integrity,
    /// 4: key exchange method
    KeyExchange,
    /// 5: (extended) sequence numbers
    SequenceNumbers,
    /// 6 to 12: additional key exchange 1 to 7
    Additional(u8),
    /// Anything else.
    Other(u8),
}

impl From<u8> for TransformType {
    fn from(v: u8) -> Self {
        match v {
            1 => Self::Encryption,
            2 => Self::Prf,
            3 => Self::Integrity,
            4 => Self::KeyExchange,
            5 => Self::SequenceNumbers,
            6..=12 => Self::Additional(v - 5),
            v => Self::Other(v),
        }
    }
}

impl From<TransformType> for u8 {
    fn from(v: TransformType) -> u8 {
        match v {
            TransformType::Encryption => 1,
            TransformType::Prf => 2,
            TransformType::Integrity => 3,
            TransformType::KeyExchange => 4,
            TransformType::SequenceNumbers => 5,
            TransformType::Additional(n) => n.saturating_add(5),
            TransformType::Other(v) => v,
        }
    }
}

/// One transform with its only attribute that exists, the key length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transform {
    /// Type.
    pub kind: TransformType,
    /// Transform ID within the type.
    pub id: u16,
    /// Key length in bits, if the attribute is there.
    pub key_bits: Option<u16>,
    /// An attribute of unknown type is there: the transform cannot be chosen (RFC 7296 3.3.6).
    pub foreign_attribute: bool,
}

impl Transform {
    /// A transform without attributes.
    pub fn new(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
        Transform { kind, id, key_bits, foreign_attribute: false }
    }
}

/// One proposal of an SA payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Proposal number; the answer repeats it.
    pub number: u8,
    /// Protocol.
    pub protocol: Protocol,
    /// The sender's SPI (empty, 4 or 8 bytes).
    pub spi: Vec<u8>,
    /// Transforms in the order of preference.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    pub(super) fn decode_all(body: &[u8]) -> Result<Vec<Proposal>, WireError> {
        let mut r = Reader::new(body);
        let mut proposals = Vec::new();
        loop {
            if proposals.len() == MAX_PROPOSALS {
                return Err(WireError::TooMany);
            }
            let (more, _, length) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
            let inner = r.take(length.checked_sub(4).ok_or(WireError::BadLength)?)?;
            proposals.push(Proposal::decode(inner)?);
            match (more, r.is_empty()) {
                (0, true) => return Ok(proposals),
                (2, false) => {}
                _ => return Err(WireError::BadValue),
            }
        }
    }

    fn decode(inner: &[u8]) -> Result<Proposal, WireError> {
        let mut r = Reader::new(inner);
        let (number, protocol, spi_bytes, count) = (r.u8()?, r.u8()?.into(), r.u8()?, usize::from(r.u8()?));
        let spi = r.take(usize::from(spi_bytes))?.to_vec();
        if count > MAX_TRANSFORMS {
            return Err(WireError::TooMany);
        }
        let mut transforms = Vec::with_capacity(count);
        for i in 0..count {
            let (more, _, length) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
            let body = r.take(length.checked_sub(4).ok_or(WireError::BadLength)?)?;
            if more != if i + 1 == count { 0 } else { 3 } {
                return Err(WireError::BadValue);
            }
            transforms.push(decode_transform(body)?);
        }
        if !r.is_empty() {
            return Err(WireError::BadLength);
        }
        Ok(Proposal { number, protocol, spi, transforms })
    }

    pub(super) fn encode_all(proposals: &[Proposal], out: &mut Vec<u8>) {
        for (i, p) in proposals.iter().enumerate() {
            let start = out.len();
            out.extend([if i + 1 == proposals.len() { 0 } else { 2 }, 0, 0, 0]);
            out.extend([p.number, p.protocol.into(), p.spi.len() as u8, p.transforms.len() as u8]);
            out.extend(&p.spi);
            for (j, t) in p.transforms.iter().enumerate() {
                let length: u16 = if t.key_bits.is_some() { 12 } else { 8 };
                out.extend([if j + 1 == p.transforms.len() { 0 } else { 3 }, 0]);
                out.extend(length.to_be_bytes());
                out.extend([t.kind.into(), 0]);
                out.extend(t.id.to_be_bytes());
                if let Some(bits) = t.key_bits {
                    out.extend((0x8000 | ATTRIBUTE_KEY_LENGTH).to_be_bytes());
                    out.extend(bits.to_be_bytes());
                }
            }
            let length = (out.len() - start) as u16;
            out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// The proposal's transforms of one type.
    pub fn of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |t| t.kind == kind)
    }

    /// The 4-byte SPI of an ESP proposal.
    pub fn esp_spi(&self) -> Option<u32> {
        <[u8; 4]>::try_from(&self.spi[..]).ok().map(u32::from_be_bytes)
    }

    /// The 8-byte SPI of an IKE proposal that rekeys.
    pub fn ike_spi(&self) -> Option<u64> {
        <[u8; 8]>::try_from(&self.spi[..]).ok().map(u64::from_be_bytes)
    }
}

fn decode_transform(body: &[u8]) -> Result<Transform, WireError> {
    let mut r = Reader::new(body);
    let (kind, _, id) = (r.u8()?.into(), r.u8()?, r.u16()?);
    let mut t = Transform::new(kind, id, None);
    while !r.is_empty() {
        let kind = r.u16()?;
        if kind & 0x8000 != 0 {
            let value = r.u16()?;
            match kind & 0x7fff {
                ATTRIBUTE_KEY_LENGTH => t.key_bits = Some(value),
                _ => t.foreign_attribute = true,
            }
        } else {
            let length = usize::from(r.u16()?);
            r.take(length)?;
            t.foreign_attribute = true;
        }
    }
    Ok(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Proposal> {
        let t = |kind, id, bits| Transform::new(kind, id, bits);
        let gcm = vec![t(TransformType::Encryption, 20, Some(128)), t(TransformType::KeyExchange, 31, None)];
        let cbc =
            vec![t(TransformType::Encryption, 12, Some(256)), t(TransformType::Additional(1), 36, None)];
        vec![
            Proposal { number: 1, protocol: Protocol::Esp, spi: vec![1, 2, 3, 4], transforms: gcm },
            Proposal { number: 2, protocol: Protocol::Ike, spi: vec![0; 8], transforms: cbc },
        ]
    }

    #[test]
    fn round_trip_and_every_truncation() {
        let mut bytes = Vec::new();
        Proposal::encode_all(&sample(), &mut bytes);
        assert_eq!(Proposal::decode_all(&bytes), Ok(sample()));
        for n in 0..bytes.len() {
            assert!(Proposal::decode_all(&bytes[..n]).is_err(), "{n}");
        }
        assert_eq!(sample()[0].esp_spi(), Some(0x01020304));
        assert_eq!(sample()[0].ike_spi(), None);
    }

    #[test]
    fn unknown_attribute_is_marked() {
        // One transform with a long attribute of type 99.
        let bytes = [0, 0, 0, 22, 1, 3, 0, 1, 0, 0, 0, 14, 1, 0, 0, 20, 0, 99, 0, 2, 7, 7];
        let p = Proposal::decode_all(&bytes).unwrap();
        assert!(p[0].transforms[0].foreign_attribute);
    }

    #[test]
    fn transform_types_survive() {
        for v in 0..=255u8 {
            assert_eq!(u8::from(TransformType::from(v)), v);
            assert_eq!(u8::from(Protocol::from(v)), v);
        }
    }
}
