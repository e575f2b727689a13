//! IKEv2 messages on the wire. Enters: the bytes of one UDP payload (without the non-ESP marker) or of one
//! decrypted payload chain. Leaves: typed payloads, or a typed error; nothing here panics. RFC 7296 section 3.

mod header;
mod notify;
mod payload;
mod proposal;
mod selectors;

pub use header::{ExchangeType, HEADER_BYTES, Header};
pub use notify::NotifyType;
pub use payload::{
    CertEncoding, IdType, Identification, KeyExchangeData, Notify, Payload, PayloadType, decode_chain,
    encode_chain, find_encrypted,
};
pub use proposal::{Proposal, Protocol, Transform, TransformType};
pub use selectors::{TrafficSelector, intersect, is_subset, ranges};

/// Why a message or payload was not understood; what [`crate::Reason`] and the answer are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The datagram ends before the field does.
    #[error("message ends inside a field")]
    Truncated,
    /// A length field contradicts what surrounds it.
    #[error("a length field contradicts its surroundings")]
    BadLength,
    /// Major version other than 2 (answered with INVALID_MAJOR_VERSION).
    #[error("IKE major version {0} instead of 2")]
    Version(u8),
    /// A payload type that this implementation does not know has the critical bit set.
    #[error("critical payload of unknown type {0}")]
    UnknownCritical(u8),
    /// A field holds a value that RFC 7296 does not allow at this place.
    #[error("field holds a value that is not allowed here")]
    BadValue,
    /// More payloads, proposals or transforms than any sane peer sends.
    #[error("too many elements")]
    TooMany,
}

/// A forward-only reader over untrusted bytes; every accessor checks the length.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or(WireError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.bytes = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }
}
