//! The suites `azure` and `aws` against what the two clouds publish: nothing is offered that they do not take, and their
//! lifetimes are kept. Sources: Azure VPN Gateway FAQ, "What are the algorithms and key strengths supported in the custom
//! policy?"; AWS Site-to-Site VPN user guide, "Tunnel options". Transform IDs are IANA's.

use penstock_ike::crypto::Suite;
use penstock_ike::message::{Proposal, TransformType};
use std::collections::BTreeSet;

/// What one of the clouds takes.
struct Published {
    suite: &'static str,
    /// Transform ID and key bits.
    ike_ciphers: &'static [(u16, u16)],
    esp_ciphers: &'static [(u16, u16)],
    /// HMAC-SHA2: as integrity 12, 13, 14, as PRF 5, 6, 7.
    hashes: &'static [u16],
    groups: &'static [u16],
    seconds: (u64, u64),
}

const AES_GCM_16: u16 = 20;
const AES_CBC: u16 = 12;

const PUBLISHED: [Published; 2] = [
    Published {
        suite: "azure",
        ike_ciphers: &[(AES_GCM_16, 256), (AES_GCM_16, 128), (AES_CBC, 256), (AES_CBC, 192), (AES_CBC, 128)],
        esp_ciphers: &[(AES_GCM_16, 256), (AES_GCM_16, 192), (AES_GCM_16, 128)],
        hashes: &[12, 13, 5, 6],
        groups: &[14, 19, 20],
        seconds: (28_800, 27_000),
    },
    Published {
        suite: "aws",
        ike_ciphers: &[(AES_GCM_16, 256), (AES_GCM_16, 128), (AES_CBC, 256), (AES_CBC, 128)],
        esp_ciphers: &[(AES_GCM_16, 256), (AES_GCM_16, 128)],
        hashes: &[12, 13, 14, 5, 6, 7],
        groups: &[14, 15, 16, 17, 18, 19, 20, 21],
        seconds: (28_800, 3_600),
    },
];

fn check(published: &Published, proposal: &Proposal, ciphers: &[(u16, u16)]) {
    let name = published.suite;
    for t in &proposal.transforms {
        let taken = match t.kind {
            TransformType::Encryption => ciphers.contains(&(t.id, t.key_bits.unwrap_or(0))),
            TransformType::Integrity | TransformType::Prf => published.hashes.contains(&t.id),
            TransformType::KeyExchange => published.groups.contains(&t.id),
            // Neither cloud has extended sequence numbers.
            TransformType::SequenceNumbers => t.id == 0,
            _ => false,
        };
        assert!(taken, "{name} does not take {t:?}");
    }
}

#[test]
fn nothing_is_offered_that_the_clouds_do_not_publish() {
    for published in &PUBLISHED {
        let suite = Suite::named(published.suite).expect("known");
        suite.ike.iter().for_each(|p| check(published, &p.to_wire(1, &[]), published.ike_ciphers));
        suite.esp.iter().for_each(|p| check(published, &p.to_wire(1, 0x1000, true), published.esp_ciphers));
        let seconds = (suite.ike_lifetime.as_secs(), suite.child_lifetime.as_secs());
        assert_eq!(seconds, published.seconds, "{}", published.suite);
    }
}

/// Whatever single strong policy an operator selects there, the suite has it.
#[test]
fn every_strong_group_of_theirs_is_offered() {
    for published in &PUBLISHED {
        let suite = Suite::named(published.suite).expect("known");
        let offered: BTreeSet<u16> = suite
            .ike
            .iter()
            .flat_map(|p| p.to_wire(1, &[]).transforms)
            .filter(|t| t.kind == TransformType::KeyExchange)
            .map(|t| t.id)
            .collect();
        assert_eq!(offered, BTreeSet::from([14, 19, 20]), "{}", published.suite);
    }
}
