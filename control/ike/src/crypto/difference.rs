//! Why two ends have no common proposal. Enters: our proposals and a peer's. Leaves: one line, transform by transform,
//! for the closest pair. RFC 7296 section 3.3.

use super::choice::{common_of, taken, without_ke};
use super::suites::{EspProposal, IkeProposal};
use crate::message::{Proposal, Transform, TransformType};

/// The difference between what we allow and what the peer offers, transform by transform, for the closest pair of
/// proposals.
pub fn explain(ours: &[Proposal], theirs: &[Proposal]) -> String {
    let mut best: Option<Vec<String>> = None;
    for o in ours {
        for t in theirs.iter().filter(|t| t.protocol == o.protocol) {
            let lines = difference(o, t);
            if best.as_ref().is_none_or(|b| lines.len() < b.len()) {
                best = Some(lines);
            }
        }
    }
    best.map_or_else(|| "the peer offers no proposal for this protocol".to_string(), |l| l.join("; "))
}

/// [`explain`] for IKE proposals.
pub fn explain_ike(ours: &[IkeProposal], theirs: &[Proposal]) -> String {
    explain(&ours.iter().map(|p| p.to_wire(1, &[])).collect::<Vec<_>>(), theirs)
}

/// [`explain`] for ESP proposals.
pub fn explain_esp(ours: &[EspProposal], theirs: &[Proposal], pfs: bool) -> String {
    let theirs: Vec<Proposal> = if pfs { theirs.to_vec() } else { theirs.iter().map(without_ke).collect() };
    let wire = |p: &EspProposal| if pfs { taken(p, None) } else { p.to_wire(1, 0, false) };
    explain(&ours.iter().map(wire).collect::<Vec<_>>(), &theirs)
}

fn difference(ours: &Proposal, theirs: &Proposal) -> Vec<String> {
    let mut kinds: Vec<TransformType> =
        ours.transforms.iter().chain(&theirs.transforms).map(|t| t.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.retain(|k| common_of(*k, ours, theirs).is_none());
    let list = |p: &Proposal, k| match p.of(k).map(transform_name).collect::<Vec<_>>() {
        names if names.is_empty() => "none".to_string(),
        names => names.join(" or "),
    };
    kinds
        .into_iter()
        .map(|k| format!("{}: peer offers {}, we allow {}", kind_name(k), list(theirs, k), list(ours, k)))
        .collect()
}

fn kind_name(kind: TransformType) -> String {
    match kind {
        TransformType::Encryption => "encryption".into(),
        TransformType::Prf => "PRF".into(),
        TransformType::Integrity => "integrity".into(),
        TransformType::KeyExchange => "key exchange".into(),
        TransformType::SequenceNumbers => "sequence numbers".into(),
        TransformType::Additional(n) => format!("additional key exchange {n}"),
        TransformType::Other(n) => format!("transform type {n}"),
    }
}

/// Names of transforms that peers offer and that this implementation may not have.
const NAMES: [(u8, u16, &str); 33] = [
    (1, 2, "des"),
    (1, 3, "3des"),
    (1, 11, "null"),
    (1, 12, "aes-cbc"),
    (1, 13, "aes-ctr"),
    (1, 18, "aes-gcm8"),
    (1, 19, "aes-gcm12"),
    (1, 20, "aes-gcm16"),
    (1, 28, "chacha20poly1305"),
    (2, 1, "prfmd5"),
    (2, 2, "prfsha1"),
    (2, 5, "prfsha256"),
    (2, 6, "prfsha384"),
    (2, 7, "prfsha512"),
    (3, 1, "md5"),
    (3, 2, "sha1"),
    (3, 12, "sha256"),
    (3, 13, "sha384"),
    (3, 14, "sha512"),
    (4, 1, "modp768"),
    (4, 2, "modp1024"),
    (4, 5, "modp1536"),
    (4, 14, "modp2048"),
    (4, 15, "modp3072"),
    (4, 16, "modp4096"),
    (4, 19, "ecp256"),
    (4, 20, "ecp384"),
    (4, 21, "ecp521"),
    (4, 31, "x25519"),
    (4, 36, "mlkem768"),
    (4, 37, "mlkem1024"),
    (5, 0, "noesn"),
    (5, 1, "esn"),
];

fn transform_name(t: &Transform) -> String {
    let kind = if matches!(t.kind, TransformType::Additional(_)) { 4 } else { t.kind.into() };
    let name = NAMES.iter().find(|(k, id, _)| (*k, *id) == (kind, t.id));
    let name = name
        .map_or_else(|| if t.id == 0 { "none".into() } else { format!("#{}", t.id) }, |n| n.2.to_string());
    t.key_bits.map_or(name.clone(), |bits| format!("{name}-{bits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ike(text: &str) -> Vec<IkeProposal> {
        text.split(',').map(|t| IkeProposal::parse(t).unwrap()).collect()
    }

    fn wire(p: &[IkeProposal]) -> Vec<Proposal> {
        p.iter().zip(1..).map(|(p, n)| p.to_wire(n, &[])).collect()
    }

    #[test]
    fn differences_are_named() {
        let ours = ike("aes256gcm16-prfsha384-ecp384");
        let mut theirs = wire(&ike("aes128-sha256-prfsha384-modp2048"));
        theirs[0].transforms.push(Transform::new(TransformType::KeyExchange, 2, None));
        assert_eq!(
            explain_ike(&ours, &theirs),
            "encryption: peer offers aes-cbc-128, we allow aes-gcm16-256; integrity: peer offers sha256, we allow none; key exchange: peer offers modp2048 or modp1024, we allow ecp384"
        );
    }
}
