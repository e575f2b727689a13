//! The choice among proposals, and whether an answer is one. Enters: our proposals and a peer's SA payload. Leaves: what both
//! ends use, or nothing. RFC 7296 sections 2.7 and 3.3.

use super::suites::{EspCipher, EspProposal, IkeProposal};
use super::{IkeCipher, Integrity, Method, Prf};
use crate::message::{Proposal, Protocol, Transform, TransformType};

/// What an IKE SA uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IkeChoice {
    /// Cipher.
    pub cipher: IkeCipher,
    /// Integrity algorithm; none with an AEAD cipher.
    pub integrity: Option<Integrity>,
    /// Pseudo-random function.
    pub prf: Prf,
    /// First key exchange.
    pub ke: Method,
    /// Additional key exchange (RFC 9370).
    pub additional: Option<Method>,
}

/// What a child SA uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EspChoice {
    /// Cipher.
    pub cipher: EspCipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Key exchange of its own.
    pub pfs: Option<Method>,
}

impl std::fmt::Display for IkeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.cipher.name())?;
        if let Some(i) = self.integrity {
            write!(f, "-{}", i.name())?;
        }
        write!(f, "-{}-{}", self.prf.name(), self.ke.name())?;
        self.additional.map_or(Ok(()), |a| write!(f, "-ke1_{}", a.name()))
    }
}

impl std::fmt::Display for EspChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.cipher.name())?;
        if let Some(m) = self.pfs {
            write!(f, "-{}", m.name())?;
        }
        f.write_str(if self.esn { "-esn" } else { "-noesn" })
    }
}

/// One transform per type that both allow, by `ours`'s preference; None if some type has no common one.
/// ID 0 (NONE, or no ESN) stands for the type's absence on either side.
fn common(ours: &Proposal, theirs: &Proposal) -> Option<Vec<Transform>> {
    let mut kinds: Vec<TransformType> =
        ours.transforms.iter().chain(&theirs.transforms).map(|t| t.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
        .into_iter()
        .map(|k| common_of(k, ours, theirs))
        .collect::<Option<Vec<_>>>()
        .map(|v| v.into_iter().flatten().collect())
}

pub(super) fn common_of(
    kind: TransformType,
    ours: &Proposal,
    theirs: &Proposal,
) -> Option<Option<Transform>> {
    let none = |p: &Proposal| p.of(kind).any(|t| t.id == 0);
    let both = ours.of(kind).find(|o| theirs.of(kind).any(|t| t == *o));
    match both {
        Some(t) => Some(Some(*t)),
        None if ours.of(kind).next().is_none() && none(theirs) => Some(None),
        None if theirs.of(kind).next().is_none() && none(ours) => Some(None),
        None => None,
    }
}

fn choose(ours: &[Proposal], theirs: &[Proposal], protocol: Protocol) -> Option<Proposal> {
    ours.iter().find_map(|o| {
        theirs.iter().filter(|t| t.protocol == protocol).find_map(|t| {
            let transforms = common(o, t)?;
            Some(Proposal { number: t.number, protocol, spi: t.spi.clone(), transforms })
        })
    })
}

pub(super) fn without_ke(p: &Proposal) -> Proposal {
    let keep = |t: &&Transform| !matches!(t.kind, TransformType::KeyExchange | TransformType::Additional(_));
    Proposal { transforms: p.transforms.iter().filter(keep).copied().collect(), ..p.clone() }
}

/// Chooses among a peer's IKE proposals. The proposal given back is the answer but for its SPI, which is the peer's.
pub fn choose_ike(ours: &[IkeProposal], theirs: &[Proposal]) -> Option<(IkeChoice, Proposal)> {
    let ours: Vec<Proposal> = ours.iter().map(|p| p.to_wire(1, &[])).collect();
    let answer = choose(&ours, theirs, Protocol::Ike)?;
    Some((ike_choice(&answer)?, answer))
}

/// Chooses among a peer's ESP proposals; `pfs` is false in IKE_AUTH. The answer carries the peer's SPI.
pub fn choose_esp(ours: &[EspProposal], theirs: &[Proposal], pfs: bool) -> Option<(EspChoice, Proposal)> {
    let ours: Vec<Proposal> = ours.iter().map(|p| p.to_wire(1, 0, pfs)).collect();
    let theirs: Vec<Proposal> = if pfs { theirs.to_vec() } else { theirs.iter().map(without_ke).collect() };
    let answer = choose(&ours, &theirs, Protocol::Esp)?;
    answer.esp_spi().filter(|s| *s > 255)?;
    Some((esp_choice(&answer)?, answer))
}

/// What is taken of a peer in CREATE_CHILD_SA where this is configured.
pub(super) fn taken(ours: &EspProposal, ke: Option<Method>) -> Proposal {
    let mut wire = ours.with_any_pfs(ke).to_wire(1, 0, true);
    if EspProposal::groups(std::slice::from_ref(ours)).is_empty() {
        wire.transforms.push(Transform::new(TransformType::KeyExchange, 0, None));
    }
    wire
}

/// Chooses among the ESP proposals of a peer that asks for a child in CREATE_CHILD_SA and whose KE payload is of group `ke`:
/// a key exchange that it wants is taken whether the operator asked for one or not; one that the operator asked for is a must.
pub fn answer_esp(
    ours: &[EspProposal],
    theirs: &[Proposal],
    ke: Option<Method>,
) -> Option<(EspChoice, Proposal)> {
    let ours: Vec<Proposal> = ours.iter().map(|p| taken(p, ke)).collect();
    let answer = choose(&ours, theirs, Protocol::Esp)?;
    answer.esp_spi().filter(|s| *s > 255)?;
    Some((esp_choice(&answer)?, answer))
}

/// What to ask a peer for that refused a child without a key exchange of its own: the same with one, the IKE SA's first.
pub fn with_key_exchange(ours: &[EspProposal], first: Option<Method>) -> Vec<EspProposal> {
    ours.iter().map(|p| p.with_any_pfs(first)).collect()
}

fn ike_choice(p: &Proposal) -> Option<IkeChoice> {
    let one = |k| p.of(k).next();
    let e = one(TransformType::Encryption)?;
    let cipher = IkeCipher::ALL.into_iter().find(|c| (c.id().0, Some(c.id().1)) == (e.id, e.key_bits))?;
    let integrity =
        one(TransformType::Integrity).and_then(|t| Integrity::ALL.into_iter().find(|i| i.id() == t.id));
    if integrity.is_some() == cipher.is_aead() {
        return None;
    }
    let additional = one(TransformType::Additional(1)).and_then(|t| Method::from_id(t.id));
    let (prf, ke) =
        (Prf::from_id(one(TransformType::Prf)?.id)?, Method::from_id(one(TransformType::KeyExchange)?.id)?);
    Some(IkeChoice { cipher, integrity, prf, ke, additional })
}

fn esp_choice(p: &Proposal) -> Option<EspChoice> {
    let e = p.of(TransformType::Encryption).next()?;
    let cipher = EspCipher::ALL.into_iter().find(|c| c.id() == (e.id, e.key_bits))?;
    let esn = p.of(TransformType::SequenceNumbers).next().is_some_and(|t| t.id == 1);
    let pfs = p.of(TransformType::KeyExchange).next().and_then(|t| Method::from_id(t.id));
    Some(EspChoice { cipher, esn, pfs })
}

/// Checks the answer to our IKE proposals: one proposal, one transform per type, all of them offered.
pub fn accept_ike(ours: &[IkeProposal], answer: &[Proposal]) -> Option<IkeChoice> {
    let (choice, p) = choose_ike(ours, answer)?;
    (answer.len() == 1 && answer[0].transforms.len() == p.transforms.len()).then_some(choice)
}

/// Checks the answer to our ESP proposals, as [`accept_ike`] does; gives the peer's SPI too.
pub fn accept_esp(ours: &[EspProposal], answer: &[Proposal], pfs: bool) -> Option<(EspChoice, u32)> {
    let (choice, p) = choose_esp(ours, answer, pfs)?;
    Some((choice, p.esp_spi().filter(|_| answer.len() == 1)?))
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
    fn choice_follows_our_preference() {
        let ours = ike("aes256gcm16-aes128gcm16-prfsha384-x25519-ecp256,aes256-sha256-ecp256");
        let theirs = ike("aes256-sha256-ecp256,aes128gcm16-aes256gcm16-prfsha384-ecp256-x25519");
        let (choice, answer) = choose_ike(&ours, &wire(&theirs)).unwrap();
        assert_eq!(choice.to_string(), "aes256gcm16-prfsha384-x25519");
        assert_eq!((answer.number, answer.transforms.len()), (2, 3));
        assert_eq!(accept_ike(&theirs, &[answer]), Some(choice));
    }

    #[test]
    fn an_answer_must_be_one_of_ours() {
        let ours = ike("aes256gcm16-prfsha384-x25519");
        assert_eq!(accept_ike(&ours, &wire(&ike("aes128gcm16-prfsha384-x25519"))), None);
        assert_eq!(accept_ike(&ours, &wire(&ike("aes256gcm16-prfsha384-x25519-ecp256"))), None);
        let twice = [wire(&ours), wire(&ours)].concat();
        assert_eq!(accept_ike(&ours, &twice), None);
    }

    #[test]
    fn esp_none_and_missing_sequence_numbers() {
        let ours = [EspProposal::parse("aes256gcm16").unwrap()];
        let mut offer = EspProposal::parse("aes256gcm16-x25519-noesn").unwrap().to_wire(1, 0x1000, true);
        assert_eq!(choose_esp(&ours, &[offer.clone()], true), None);
        assert!(choose_esp(&ours, &[offer.clone()], false).is_some());
        offer.transforms.push(Transform::new(TransformType::KeyExchange, 0, None));
        offer.transforms.push(Transform::new(TransformType::Integrity, 0, None));
        offer.transforms.retain(|t| t.kind != TransformType::SequenceNumbers);
        let (choice, answer) = choose_esp(&ours, &[offer.clone()], true).unwrap();
        assert_eq!((choice.esn, choice.pfs, answer.transforms.len()), (false, None, 1));
        offer.spi = vec![0, 0, 0, 9];
        assert_eq!(choose_esp(&ours, &[offer], true), None, "SPIs up to 255 are reserved");
    }
}
