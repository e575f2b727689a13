//! The IKE header. Enters: at least 28 bytes. Leaves: its fields, checked. RFC 7296 section 3.1.

use super::{PayloadType, Reader, WireError};

/// Bytes of the IKE header.
pub const HEADER_BYTES: usize = 28;

const FLAG_INITIATOR: u8 = 0x08;
const FLAG_VERSION: u8 = 0x10;
const FLAG_RESPONSE: u8 = 0x20;

/// Exchange types that exist for this implementation (RFC 7296 3.1, RFC 9242, RFC 9370).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeType {
    /// IKE_SA_INIT
    Init,
    /// IKE_AUTH
    Auth,
    /// CREATE_CHILD_SA
    CreateChild,
    /// INFORMATIONAL
    Informational,
    /// IKE_INTERMEDIATE (RFC 9242)
    Intermediate,
    /// IKE_FOLLOWUP_KE (RFC 9370)
    FollowupKe,
    /// Anything else.
    Other(u8),
}

impl From<u8> for ExchangeType {
    fn from(v: u8) -> Self {
        match v {
            34 => Self::Init,
            35 => Self::Auth,
            36 => Self::CreateChild,
            37 => Self::Informational,
            43 => Self::Intermediate,
            44 => Self::FollowupKe,
            v => Self::Other(v),
        }
    }
}

impl From<ExchangeType> for u8 {
    fn from(v: ExchangeType) -> u8 {
        match v {
            ExchangeType::Init => 34,
            ExchangeType::Auth => 35,
            ExchangeType::CreateChild => 36,
            ExchangeType::Informational => 37,
            ExchangeType::Intermediate => 43,
            ExchangeType::FollowupKe => 44,
            ExchangeType::Other(v) => v,
        }
    }
}

/// The IKE header, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// SPI of the IKE SA's original initiator.
    pub spi_i: u64,
    /// SPI of the original responder; 0 in the first request.
    pub spi_r: u64,
    /// Type of the first payload.
    pub next: PayloadType,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// The sender is the IKE SA's original initiator.
    pub from_initiator: bool,
    /// This is a response.
    pub response: bool,
    /// Message ID.
    pub id: u32,
    /// Bytes of the whole message, header included.
    pub length: u32,
}

impl Header {
    /// Reads and checks the header of a whole datagram.
    ///
    /// # Errors
    /// Too short, another major version, or a length that is not the datagram's.
    pub fn decode(datagram: &[u8]) -> Result<Header, WireError> {
        let mut r = Reader::new(datagram);
        let (spi_i, spi_r, next) = (r.u64()?, r.u64()?, r.u8()?.into());
        let (version, exchange, flags) = (r.u8()?, r.u8()?.into(), r.u8()?);
        let (id, length) = (r.u32()?, r.u32()?);
        if version >> 4 != 2 {
            return Err(WireError::Version(version >> 4));
        }
        if length as usize != datagram.len() {
            return Err(WireError::BadLength);
        }
        if spi_i == 0 {
            return Err(WireError::BadValue);
        }
        let (from_initiator, response) = (flags & FLAG_INITIATOR != 0, flags & FLAG_RESPONSE != 0);
        Ok(Header { spi_i, spi_r, next, exchange, from_initiator, response, id, length })
    }

    /// The header's 28 bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&self.spi_i.to_be_bytes());
        out[8..16].copy_from_slice(&self.spi_r.to_be_bytes());
        out[16] = self.next.into();
        out[17] = 0x20;
        out[18] = self.exchange.into();
        out[19] = if self.from_initiator { FLAG_INITIATOR } else { 0 }
            | if self.response { FLAG_RESPONSE } else { 0 };
        out[20..24].copy_from_slice(&self.id.to_be_bytes());
        out[24..28].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Whether a datagram that failed with [`WireError::Version`] claims to know a higher version (flag V).
    pub fn peer_knows_higher(datagram: &[u8]) -> bool {
        datagram.get(19).is_some_and(|f| f & FLAG_VERSION != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let h = Header {
            spi_i: 1,
            spi_r: 2,
            next: PayloadType::Sa,
            exchange: ExchangeType::Init,
            from_initiator: true,
            response: false,
            id: 7,
            length: 28,
        };
        let bytes = h.encode();
        assert_eq!(Header::decode(&bytes), Ok(h));
        for n in 0..28 {
            assert_eq!(Header::decode(&bytes[..n]).unwrap_err(), WireError::Truncated);
        }
        let mut wrong = bytes;
        wrong[17] = 0x10;
        assert_eq!(Header::decode(&wrong), Err(WireError::Version(1)));
        let mut wrong = bytes;
        wrong[27] = 29;
        assert_eq!(Header::decode(&wrong), Err(WireError::BadLength));
        for v in 0..=255u8 {
            assert_eq!(u8::from(ExchangeType::from(v)), v);
        }
    }
}
