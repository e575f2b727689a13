//! NAT detection and cookies: the two hashes over addresses. Enters: SPIs, addresses, ports. Leaves: notify data, or
//! whether one matches. RFC 7296 sections 2.6 and 2.23.

use crate::crypto::Prf;
use sha1::{Digest, Sha1};
use std::net::{IpAddr, SocketAddr};

/// Data of NAT_DETECTION_SOURCE_IP or NAT_DETECTION_DESTINATION_IP.
pub(crate) fn detection(spi_i: u64, spi_r: u64, address: SocketAddr) -> Vec<u8> {
    let mut h = Sha1::new();
    h.update(spi_i.to_be_bytes());
    h.update(spi_r.to_be_bytes());
    match address.ip() {
        IpAddr::V4(a) => h.update(a.octets()),
        IpAddr::V6(a) => h.update(a.octets()),
    }
    h.update(address.port().to_be_bytes());
    h.finalize().to_vec()
}

/// The data of a COOKIE notify: nothing is kept for it (RFC 7296 2.6).
pub(crate) fn cookie(secret: &[u8], version: u8, nonce: &[u8], remote: SocketAddr, spi_i: u64) -> Vec<u8> {
    let address = remote.ip().to_string();
    let mac =
        Prf::Sha256.mac(secret, &[&[version], nonce, b"|", address.as_bytes(), b"|", &spi_i.to_be_bytes()]);
    let mut out = vec![version];
    out.extend_from_slice(&mac);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_counts() {
        let a: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let base = detection(1, 2, a);
        assert_eq!(base.len(), 20);
        assert_ne!(base, detection(1, 3, a));
        assert_ne!(base, detection(1, 2, "192.0.2.1:501".parse().unwrap()));
        assert_ne!(base, detection(1, 2, "192.0.2.2:500".parse().unwrap()));
        let c = cookie(b"s", 0, &[1; 32], a, 1);
        assert!(c.len() <= 64);
        assert_ne!(c, cookie(b"t", 0, &[1; 32], a, 1));
        assert_ne!(c, cookie(b"s", 0, &[2; 32], a, 1));
        assert_ne!(c, cookie(b"s", 0, &[1; 32], a, 2));
    }
}
