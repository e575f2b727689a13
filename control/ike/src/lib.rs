//! IKEv2 (RFC 7296) as a protocol machine without I/O or clock.

pub mod crypto;
pub mod message;
#[cfg(test)]
mod testing;
