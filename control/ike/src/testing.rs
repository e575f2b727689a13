//! Helpers of the unit tests.

pub mod ends;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// A seeded generator.
pub fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// Bytes from hexadecimal text.
pub fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A connection with a pre-shared key and one child `net`; identities are the addresses.
pub fn connection(
    name: &str,
    local: &str,
    remote: &str,
    local_net: &str,
    remote_net: &str,
) -> crate::Connection {
    use crate::auth::{Identity, IdentityPattern, SharedKey};
    use crate::config::{ChildConfig, Connection, Lifetime, LocalAuth, Remote, RemoteAuth, Start};
    let suite = crate::crypto::Suite::named("default").unwrap();
    let net = |t: &str| {
        let (a, p) = t.split_once('/').unwrap();
        vec![crate::message::TrafficSelector::network(a.parse().unwrap(), p.parse().unwrap())]
    };
    let (local, remote): (std::net::IpAddr, std::net::IpAddr) =
        (local.parse().unwrap(), remote.parse().unwrap());
    let child = ChildConfig {
        name: "net".into(),
        local_ts: net(local_net),
        remote_ts: net(remote_net),
        esp: suite.esp,
        lifetime: Lifetime::of(suite.child_lifetime),
        start: Start::Wait,
        per_worker: 1,
    };
    Connection {
        name: name.into(),
        local,
        remote: Remote::Address(remote),
        local_id: Identity::Address(local),
        remote_id: IdentityPattern::Exact(Identity::Address(remote)),
        local_auth: LocalAuth::Psk(SharedKey::new(*b"a shared secret of tests")),
        remote_auth: RemoteAuth::Psk(SharedKey::new(*b"a shared secret of tests")),
        ike: suite.ike,
        children: vec![child.into()],
        lifetime: Lifetime::of(suite.ike_lifetime),
        dpd: Some(std::time::Duration::from_secs(30)),
        force_encapsulation: false,
        fragment_bytes: Some(1232),
    }
}
