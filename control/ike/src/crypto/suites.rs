//! Proposals as an operator writes them, as the wire carries them. Enters: keyword text (`aes256gcm16-prfsha384-ecp384`), or the
//! name of a suite. Leaves: typed proposals. RFC 7296 section 3.3, RFC 8221, RFC 8247.

use super::{IkeCipher, Integrity, Method, Prf};
use crate::message::{Proposal, Protocol, Transform, TransformType};
use std::time::Duration;

/// Ciphers for ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EspCipher {
    /// ENCR_AES_GCM_16, 128-bit key
    AesGcm128,
    /// ENCR_AES_GCM_16, 256-bit key
    AesGcm256,
    /// ENCR_CHACHA20_POLY1305
    ChaCha20Poly1305,
}

impl EspCipher {
    pub(super) const ALL: [EspCipher; 3] = [Self::AesGcm256, Self::AesGcm128, Self::ChaCha20Poly1305];

    /// Transform ID and key bits.
    pub fn id(self) -> (u16, Option<u16>) {
        match self {
            EspCipher::AesGcm128 => (20, Some(128)),
            EspCipher::AesGcm256 => (20, Some(256)),
            EspCipher::ChaCha20Poly1305 => (28, None),
        }
    }

    /// Keyword in proposals.
    pub fn name(self) -> &'static str {
        match self {
            EspCipher::AesGcm128 => "aes128gcm16",
            EspCipher::AesGcm256 => "aes256gcm16",
            EspCipher::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }

    /// Bytes of the key without its salt.
    pub fn key_bytes(self) -> usize {
        if self == EspCipher::AesGcm128 { 16 } else { 32 }
    }
}

/// One IKE proposal: alternatives per transform type, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeProposal {
    ciphers: Vec<IkeCipher>,
    integrity: Vec<Integrity>,
    prfs: Vec<Prf>,
    groups: Vec<Method>,
    additional: Vec<Method>,
}

/// One ESP proposal: alternatives per transform type, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspProposal {
    ciphers: Vec<EspCipher>,
    esn: Vec<bool>,
    pfs: Vec<Method>,
}

/// Why a proposal text was refused; the message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuiteError {
    /// Known, and too weak.
    #[error("`{word}` in proposal `{text}` is too weak ({why}): use {instead}")]
    Weak {
        /// The whole proposal.
        text: String,
        /// The word.
        word: String,
        /// Which rule forbids it.
        why: &'static str,
        /// What to write.
        instead: &'static str,
    },
    /// Not known.
    #[error("`{word}` in proposal `{text}` is not known here: {known}")]
    Unknown {
        /// The whole proposal.
        text: String,
        /// The word.
        word: String,
        /// The words that exist.
        known: &'static str,
    },
    /// Several words at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<SuiteError>),
    /// A transform type lacks every alternative, or two do not go together.
    #[error("proposal `{text}` {what}")]
    Incomplete {
        /// The whole proposal.
        text: String,
        /// What is missing.
        what: &'static str,
    },
}

const IKE_WORDS: &str = "ciphers aes256gcm16 aes128gcm16 aes256 aes128; integrity sha256 sha384 sha512; PRFs prfsha256 prfsha384 prfsha512; key exchanges x25519 ecp256 ecp384 modp2048 ke1_mlkem768 ke1_mlkem1024";
const ESP_WORDS: &str = "ciphers aes256gcm16 aes128gcm16 chacha20poly1305 (integrity is their own); esn noesn; PFS x25519 ecp256 ecp384 modp2048";

const GROUPS: &str = "x25519 (group 31), ecp256 (19), ecp384 (20) or modp2048 (14)";

/// (prefix, why, instead)
const WEAK: [(&str, &str, &str); 19] = [
    ("3des", "RFC 8247: 64-bit blocks", "aes256gcm16"),
    ("des", "RFC 8247: 56-bit key", "aes256gcm16"),
    ("blowfish", "RFC 8247: 64-bit blocks", "aes256gcm16"),
    ("cast", "RFC 8247: 64-bit blocks", "aes256gcm16"),
    ("null", "RFC 8221: no encryption", "aes256gcm16"),
    ("md5", "RFC 8247: MD5 is broken", "sha256"),
    ("prfmd5", "RFC 8247: MD5 is broken", "prfsha256"),
    ("sha1", "SHA-1 is being retired", "sha256"),
    ("prfsha1", "SHA-1 is being retired", "prfsha256"),
    ("modp768", "RFC 8247: 768-bit group", GROUPS),
    ("modp1024", "RFC 8247: 1024-bit group", GROUPS),
    ("modp1024s160", "RFC 8247: group 22", GROUPS),
    ("modp1536", "RFC 8247: 1536-bit group", GROUPS),
    ("modp2048s224", "RFC 8247: group 23", GROUPS),
    ("modp2048s256", "RFC 8247: group 24", GROUPS),
    ("ecp192", "RFC 8247: 192-bit curve", GROUPS),
    ("ecp224", "RFC 8247: 224-bit curve", GROUPS),
    ("aes128gcm8", "RFC 8221: 8-byte tag", "aes128gcm16"),
    ("aes256gcm8", "RFC 8221: 8-byte tag", "aes256gcm16"),
];

/// All that was refused, at once; the words that exist are listed once.
fn all(mut refused: Vec<SuiteError>) -> Result<(), SuiteError> {
    let unknown = |error: &SuiteError| matches!(error, SuiteError::Unknown { .. });
    if let Some(first) = refused.iter().position(unknown) {
        let mut at = 0..;
        refused.retain(|error| at.next() == Some(first) || !unknown(error));
    }
    match refused.len() {
        0 => Ok(()),
        1 => Err(refused.remove(0)),
        _ => Err(SuiteError::Several(refused)),
    }
}

fn refuse(text: &str, word: &str, known: &'static str) -> SuiteError {
    let (text, word) = (text.to_string(), word.to_string());
    match WEAK
        .iter()
        .find(|(w, ..)| *w == word || (word.starts_with(w) && word.as_bytes().get(w.len()) == Some(&b'_')))
    {
        Some((_, why, instead)) => SuiteError::Weak { text, word, why, instead },
        None => SuiteError::Unknown { text, word, known },
    }
}

const KE: [Method; 4] = [Method::X25519, Method::P256, Method::P384, Method::Modp2048];

impl IkeProposal {
    /// Reads `cipher[-integrity]-prf-group[-ke1_kem]`, several alternatives per type allowed.
    ///
    /// # Errors
    /// [`SuiteError`] naming the word and what to write instead.
    pub fn parse(text: &str) -> Result<IkeProposal, SuiteError> {
        let (ciphers, integrity, prfs, groups, additional) = Default::default();
        let mut p = IkeProposal { ciphers, integrity, prfs, groups, additional };
        let mut refused = Vec::new();
        for word in text.split('-').map(str::trim) {
            if let Some(c) = IkeCipher::ALL.into_iter().find(|c| c.name() == word) {
                p.ciphers.push(c);
            } else if let Some(i) = Integrity::ALL.into_iter().find(|i| i.name() == word) {
                p.integrity.push(i);
            } else if let Some(f) =
                [Prf::Sha256, Prf::Sha384, Prf::Sha512].into_iter().find(|f| f.name() == word)
            {
                p.prfs.push(f);
            } else if let Some(m) = KE.into_iter().find(|m| m.name() == word) {
                p.groups.push(m);
            } else if let Some(m) = kem_word(word) {
                p.additional.push(m);
            } else {
                refused.push(refuse(text, word, IKE_WORDS));
            }
        }
        all(refused)?;
        let fail = |what| Err(SuiteError::Incomplete { text: text.to_string(), what });
        let aead = p.ciphers.iter().filter(|c| c.is_aead()).count();
        if p.ciphers.is_empty() {
            return fail("names no cipher: add aes256gcm16");
        }
        if aead != 0 && aead != p.ciphers.len() {
            return fail("mixes GCM and CBC ciphers: write two proposals");
        }
        if aead != 0 && !p.integrity.is_empty() {
            return fail("gives GCM an integrity algorithm: write prfsha256 instead of sha256");
        }
        if aead == 0 && p.integrity.is_empty() {
            return fail("gives CBC no integrity algorithm: add sha256");
        }
        if p.prfs.is_empty() && aead == 0 {
            p.prfs = p.integrity.iter().filter_map(|i| Prf::from_id(i.id() - 7)).collect();
        }
        if p.prfs.is_empty() {
            return fail("names no PRF: add prfsha256");
        }
        if p.groups.is_empty() {
            return fail("names no key exchange: add x25519, ecp256 or modp2048");
        }
        Ok(p)
    }

    /// The proposal on the wire; `spi` is empty or, when rekeying, our new SPI.
    pub fn to_wire(&self, number: u8, spi: &[u8]) -> Proposal {
        let mut t: Vec<Transform> = Vec::new();
        t.extend(
            self.ciphers.iter().map(|c| Transform::new(TransformType::Encryption, c.id().0, Some(c.id().1))),
        );
        t.extend(self.integrity.iter().map(|i| Transform::new(TransformType::Integrity, i.id(), None)));
        t.extend(self.prfs.iter().map(|f| Transform::new(TransformType::Prf, f.id(), None)));
        t.extend(self.groups.iter().map(|m| Transform::new(TransformType::KeyExchange, m.id(), None)));
        t.extend(self.additional.iter().map(|m| Transform::new(TransformType::Additional(1), m.id(), None)));
        Proposal { number, protocol: Protocol::Ike, spi: spi.to_vec(), transforms: t }
    }

    /// Key exchange methods of all proposals, best first, without repetition.
    pub fn groups(proposals: &[IkeProposal]) -> Vec<Method> {
        let mut out = Vec::new();
        for m in proposals.iter().flat_map(|p| &p.groups) {
            if !out.contains(m) {
                out.push(*m);
            }
        }
        out
    }

    /// Whether any of the proposals has an additional key exchange.
    pub fn any_additional(proposals: &[IkeProposal]) -> bool {
        proposals.iter().any(|p| !p.additional.is_empty())
    }
}

fn kem_word(word: &str) -> Option<Method> {
    [Method::MlKem768, Method::MlKem1024].into_iter().find(|m| word.strip_prefix("ke1_") == Some(m.name()))
}

impl EspProposal {
    /// Reads `cipher[-pfs][-esn][-noesn]`, several alternatives per type allowed. Neither `esn` nor `noesn` means both,
    /// `esn` preferred. No PFS word means keys from the IKE SA's alone.
    ///
    /// # Errors
    /// [`SuiteError`] naming the word and what to write instead.
    pub fn parse(text: &str) -> Result<EspProposal, SuiteError> {
        let mut p = EspProposal { ciphers: Vec::new(), esn: Vec::new(), pfs: Vec::new() };
        let mut refused = Vec::new();
        for word in text.split('-').map(str::trim) {
            if let Some(c) = EspCipher::ALL.into_iter().find(|c| c.name() == word) {
                p.ciphers.push(c);
            } else if let Some(m) = KE.into_iter().find(|m| m.name() == word) {
                p.pfs.push(m);
            } else if word == "esn" || word == "noesn" {
                p.esn.push(word == "esn");
            } else {
                refused.push(refuse(text, word, ESP_WORDS));
            }
        }
        all(refused)?;
        if p.ciphers.is_empty() {
            return Err(SuiteError::Incomplete {
                text: text.to_string(),
                what: "names no cipher: add aes256gcm16",
            });
        }
        if p.esn.is_empty() {
            p.esn = vec![true, false];
        }
        Ok(p)
    }

    /// The same proposal with these key exchanges for PFS, best first; none of them: without PFS.
    pub fn with_pfs(self, methods: Vec<Method>) -> EspProposal {
        EspProposal { pfs: methods, ..self }
    }

    /// The same proposal with whatever key exchange the other end wants: its own first, then `first`, then every other that is
    /// strong enough here (RFC 8247). A key exchange more never weakens a child's keys, which come from the IKE SA's too.
    pub(super) fn with_any_pfs(&self, first: Option<Method>) -> EspProposal {
        let mut pfs = self.pfs.clone();
        for m in first.into_iter().filter(|m| KE.contains(m)).chain(KE) {
            if !pfs.contains(&m) {
                pfs.push(m);
            }
        }
        EspProposal { pfs, ..self.clone() }
    }

    /// Whether the proposal holds this choice but for its key exchange.
    pub fn allows(&self, choice: &super::EspChoice) -> bool {
        self.ciphers.contains(&choice.cipher) && self.esn.contains(&choice.esn)
    }

    /// The proposal on the wire. In IKE_AUTH (`pfs` false) key exchanges are left out (RFC 7296 1.2).
    pub fn to_wire(&self, number: u8, spi: u32, pfs: bool) -> Proposal {
        let mut t: Vec<Transform> = Vec::new();
        t.extend(self.ciphers.iter().map(|c| Transform::new(TransformType::Encryption, c.id().0, c.id().1)));
        if pfs {
            t.extend(self.pfs.iter().map(|m| Transform::new(TransformType::KeyExchange, m.id(), None)));
        }
        t.extend(
            self.esn.iter().map(|e| Transform::new(TransformType::SequenceNumbers, u16::from(*e), None)),
        );
        Proposal { number, protocol: Protocol::Esp, spi: spi.to_be_bytes().to_vec(), transforms: t }
    }

    /// Key exchange methods for PFS of all proposals, best first, without repetition.
    pub fn groups(proposals: &[EspProposal]) -> Vec<Method> {
        let mut out = Vec::new();
        for m in proposals.iter().flat_map(|p| &p.pfs) {
            if !out.contains(m) {
                out.push(*m);
            }
        }
        out
    }
}

/// A named set of proposals with its lifetimes.
#[derive(Clone, Debug)]
pub struct Suite {
    /// IKE proposals.
    pub ike: Vec<IkeProposal>,
    /// ESP proposals.
    pub esp: Vec<EspProposal>,
    /// Lifetime of the IKE SA.
    pub ike_lifetime: Duration,
    /// Lifetime of child SAs.
    pub child_lifetime: Duration,
}

/// (name, IKE proposals, ESP proposals, IKE seconds, child seconds). `azure` and `aws` follow what the two publish for
/// their VPN gateways; `cnsa2` follows CNSA 2.0.
type Row = (&'static str, &'static [&'static str], &'static [&'static str], u64, u64);
const SUITES: [Row; 4] = [
    (
        "default",
        &[
            "aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp384-ecp256-modp2048",
            "aes256-aes128-sha384-sha256-prfsha384-prfsha256-x25519-ecp384-ecp256-modp2048",
        ],
        &["aes256gcm16-aes128gcm16-chacha20poly1305"],
        14_400,
        3_600,
    ),
    (
        "azure",
        &[
            "aes256gcm16-prfsha384-prfsha256-ecp384-ecp256-modp2048",
            "aes256-sha384-sha256-prfsha384-prfsha256-ecp384-ecp256-modp2048",
        ],
        &["aes256gcm16-noesn"],
        28_800,
        27_000,
    ),
    (
        "aws",
        &[
            "aes256gcm16-aes128gcm16-prfsha512-prfsha384-prfsha256-ecp384-ecp256-modp2048",
            "aes256-aes128-sha512-sha384-sha256-prfsha512-prfsha384-prfsha256-ecp384-ecp256-modp2048",
        ],
        &["aes256gcm16-aes128gcm16-ecp384-ecp256-modp2048-noesn"],
        28_800,
        3_600,
    ),
    ("cnsa2", &["aes256gcm16-prfsha384-ecp384-ke1_mlkem1024"], &["aes256gcm16-esn"], 14_400, 3_600),
];

impl Suite {
    /// The suite of this name.
    ///
    /// # Errors
    /// The name is not one of `default`, `azure`, `aws`, `cnsa2`.
    pub fn named(name: &str) -> Result<Suite, SuiteError> {
        let unknown = || SuiteError::Unknown {
            text: name.to_string(),
            word: name.to_string(),
            known: "suites default azure aws cnsa2",
        };
        let (_, ike, esp, ike_s, child_s) = SUITES.iter().find(|s| s.0 == name).ok_or_else(unknown)?;
        Ok(Suite {
            ike: ike.iter().map(|t| IkeProposal::parse(t)).collect::<Result<_, _>>()?,
            esp: esp.iter().map(|t| EspProposal::parse(t)).collect::<Result<_, _>>()?,
            ike_lifetime: Duration::from_secs(*ike_s),
            child_lifetime: Duration::from_secs(*child_s),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::choice::{choose_esp, choose_ike};

    #[test]
    fn suites_exist_and_agree_with_themselves() {
        for (name, ..) in SUITES {
            let s = Suite::named(name).unwrap();
            let ike: Vec<Proposal> = s.ike.iter().map(|p| p.to_wire(1, &[])).collect();
            assert!(choose_ike(&s.ike, &ike).is_some(), "{name}");
            let esp: Vec<Proposal> = s.esp.iter().map(|p| p.to_wire(1, 0x1000, true)).collect();
            assert!(choose_esp(&s.esp, &esp, true).is_some(), "{name}");
        }
        assert!(Suite::named("best").unwrap_err().to_string().contains("default azure aws cnsa2"));
    }

    #[test]
    fn weak_and_unknown_words_are_refused_with_advice() {
        for word in [
            "3des",
            "des",
            "md5",
            "sha1",
            "prfsha1",
            "modp1024",
            "modp1536",
            "modp768",
            "null",
            "modp2048s256",
        ] {
            let e =
                IkeProposal::parse(&format!("aes256gcm16-prfsha256-x25519-{word}")).unwrap_err().to_string();
            assert!(e.contains(word) && e.contains("too weak (") && e.contains("use "), "{e}");
        }
        assert_eq!(
            IkeProposal::parse("aes128-sha1-modp1024").unwrap_err().to_string(),
            "`sha1` in proposal `aes128-sha1-modp1024` is too weak (SHA-1 is being retired): use sha256; `modp1024` in \
             proposal `aes128-sha1-modp1024` is too weak (RFC 8247: 1024-bit group): use x25519 (group 31), ecp256 (19), \
             ecp384 (20) or modp2048 (14)"
        );
        assert_eq!(
            IkeProposal::parse("3des-sha256-ecp256").unwrap_err().to_string(),
            "`3des` in proposal `3des-sha256-ecp256` is too weak (RFC 8247: 64-bit blocks): use aes256gcm16"
        );
        for text in [
            "aes256gcm16-x25519",
            "aes256gcm16-prfsha256",
            "aes256-ecp256",
            "aes256gcm16-aes256-prfsha256-x25519",
            "aes256gcm16-sha256-x25519",
            "x25519",
            "",
        ] {
            assert!(IkeProposal::parse(text).is_err(), "{text}");
        }
        assert!(EspProposal::parse("aes128-sha256").is_err());
        assert!(EspProposal::parse("esn").is_err());
    }
}
