//! Sealing and opening ESP payloads in bursts (RFC 4303, 4106): `path::encap` and `path::decap` enter jobs, an
//! [`Engine`] works on all of them at once and may interleave packets, keys and directions.

#[cfg(target_arch = "x86_64")]
pub mod aesni;
#[cfg(target_arch = "x86_64")]
mod batch;
pub mod reference;
#[cfg(target_arch = "x86_64")]
pub mod vaes;

use penstock_tables::KeyBlock;

use reference::Reference;

/// Octets of ICV behind every payload.
pub const TAG_LEN: usize = 16;

/// What a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Outbound: encrypt and write the tag.
    Seal,
    /// Inbound: verify the tag, then decrypt.
    Open,
}

/// Additional authenticated data of ESP: SPI and sequence number (8 octets), or with ESN 12 (RFC 4106 section 5).
#[derive(Clone, Copy, Debug)]
pub struct Aad {
    /// Padded with zeros up to a block (SP 800-38D section 7.1 step 4).
    octets: [u8; 16],
    len: u8,
}

impl Aad {
    /// SPI and 32-bit sequence number.
    #[inline]
    pub fn new(spi: u32, seq: u32) -> Aad {
        // As one number: written in pieces, it could not be read as a whole at once.
        let octets = u128::from(u64::from(spi) << 32 | u64::from(seq)) << 64;
        Aad { octets: octets.to_be_bytes(), len: 8 }
    }

    /// SPI and 64-bit extended sequence number.
    #[inline]
    pub fn with_esn(spi: u32, seq: u64) -> Aad {
        let octets = u128::from(spi) << 96 | u128::from(seq) << 32;
        Aad { octets: octets.to_be_bytes(), len: 12 }
    }

    /// Other data of at most 16 octets, as test vectors have it; `None` where it is longer.
    pub fn from_octets(data: &[u8]) -> Option<Aad> {
        let mut octets = [0; 16];
        octets.get_mut(..data.len())?.copy_from_slice(data);
        Some(Aad { octets, len: data.len() as u8 })
    }

    /// The octets that are authenticated.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    /// The octets that are authenticated, and zeros up to a block.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn padded(&self) -> u128 {
        u128::from_le_bytes(self.octets)
    }

    /// Bits that are authenticated.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn bits(&self) -> u64 {
        u64::from(self.len) * 8
    }
}

/// One packet to seal or open, in place.
#[derive(Debug)]
pub struct Job<'a> {
    /// Expanded key of the SA.
    pub key: &'a KeyBlock,
    /// Explicit IV as it stands in the packet: the 64-bit sequence number, big endian.
    pub iv: [u8; 8],
    /// Additional authenticated data.
    pub aad: Aad,
    /// Seal or open.
    pub direction: Direction,
    /// Payload, padding and trailer, then [`TAG_LEN`] octets of tag.
    pub text: &'a mut [u8],
    /// Set by the engine: sealed, or opened with a tag that was right. Where it stays false on opening, `text` was
    /// wiped or left encrypted: plaintext is never seen unverified.
    pub done: bool,
}

/// Works on bursts of jobs. Implementations neither allocate nor block nor panic, whatever the jobs hold.
pub trait Engine: Send + Sync {
    /// The name that `--engine` takes.
    fn name(&self) -> &'static str;

    /// Does every job and sets its `done`.
    fn run(&self, jobs: &mut [Job<'_>]);

    /// Asks for what a text of `text_len` octets needs of `key`, so that a later [`Engine::run`] finds it in the cache. Pays
    /// where there are hundreds of SAs: asked packet by packet, while there is other work to do, some tens of packets
    /// before the burst runs. All at once it takes as long as the loads would, since a core can wait for some twenty
    /// lines only.
    fn prefetch(&self, key: &KeyBlock, text_len: usize) {
        let _ = (key, text_len);
    }

    /// Wipes what bursts that this thread has run left in working memory: products, masks and round keys. A worker
    /// calls it a thousand times a second, and at its end.
    fn wipe(&self) {}
}

/// Overwrites `OCTETS` of stack below its caller, where the functions that worked on a burst had what did not fit into
/// registers: key stream, text, sums.
#[inline(never)]
fn scrub<const OCTETS: usize>() {
    std::hint::black_box([0u8; OCTETS]);
}

/// Why no engine could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// There is no engine of that name.
    #[error(
        "there is no crypto engine {name:?}; choose one of {known}, or give none to take the best for this CPU"
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The CPU lacks what the engine is made of.
    #[error(
        "crypto engine {name:?} needs {missing}, which this CPU (or its hypervisor) does not offer; \
         choose another one, or give none to take the best for this CPU"
    )]
    Unsupported {
        /// The name asked for.
        name: &'static str,
        /// The features that are missing.
        missing: String,
    },
}

/// An engine: its name, and itself where this CPU has all that it is made of; otherwise the features that are missing.
struct Candidate {
    name: &'static str,
    detect: fn() -> Result<&'static dyn Engine, Vec<&'static str>>,
}

/// Best first; the last one runs on everything.
static CANDIDATES: &[Candidate] = &[
    #[cfg(target_arch = "x86_64")]
    Candidate { name: vaes::NAME, detect: || Ok(vaes::Vaes::detect()?) },
    #[cfg(target_arch = "x86_64")]
    Candidate { name: aesni::NAME, detect: || Ok(aesni::Aesni::detect()?) },
    Candidate { name: reference::NAME, detect: || Ok(&Reference) },
];

/// The names that [`select`] takes, best engine first, whether this CPU can run them or not.
pub fn names() -> Vec<&'static str> {
    CANDIDATES.iter().map(|candidate| candidate.name).collect()
}

/// The engine called `name`, or without a name the best one that this CPU runs.
///
/// # Errors
/// [`EngineError::Unknown`] where there is no such engine, [`EngineError::Unsupported`] where the CPU cannot run it.
pub fn select(name: Option<&str>) -> Result<&'static dyn Engine, EngineError> {
    choose(CANDIDATES, name)
}

fn choose(candidates: &[Candidate], name: Option<&str>) -> Result<&'static dyn Engine, EngineError> {
    let Some(name) = name else {
        return Ok(candidates.iter().find_map(|candidate| (candidate.detect)().ok()).unwrap_or(&Reference));
    };
    let Some(found) = candidates.iter().find(|candidate| candidate.name == name) else {
        return Err(EngineError::Unknown { name: name.to_owned(), known: names().join(", ") });
    };
    let unsupported =
        |missing: Vec<_>| EngineError::Unsupported { name: found.name, missing: missing.join(", ") };
    (found.detect)().map_err(unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_engine_is_the_first_that_the_cpu_runs() {
        let best = select(None).unwrap().name();
        for name in names() {
            match select(Some(name)) {
                Ok(engine) => {
                    assert_eq!(engine.name(), name);
                    assert_eq!(best, name, "an engine before {name} was passed over");
                    return;
                }
                Err(error) => assert!(matches!(error, EngineError::Unsupported { .. }), "{error}"),
            }
        }
        panic!("not even the reference engine runs");
    }

    #[test]
    fn an_unknown_engine_is_refused_with_the_names_that_there_are() {
        let message = select(Some("turbo")).err().unwrap().to_string();
        assert!(message.contains("\"turbo\""), "{message}");
        assert!(names().iter().all(|name| message.contains(name)), "{message}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_engine_that_the_cpu_lacks_is_refused_with_what_is_missing_and_passed_over() {
        let old = [
            Candidate { name: vaes::NAME, detect: || Err(vec!["AVX-512F", "VAES"]) },
            Candidate { name: reference::NAME, detect: || Ok(&Reference) },
        ];
        let message = choose(&old, Some("vaes")).err().unwrap().to_string();
        assert!(message.contains("\"vaes\" needs AVX-512F, VAES, which this CPU"), "{message}");
        assert_eq!(choose(&old, None).unwrap().name(), "reference");
    }

    #[test]
    fn aad_is_spi_and_sequence_number_in_network_order() {
        assert_eq!(Aad::new(0x0102_0304, 5).as_bytes(), [1, 2, 3, 4, 0, 0, 0, 5]);
        assert!(Aad::from_octets(&[7; 17]).is_none());
        assert_eq!(Aad::from_octets(&[7; 16]).unwrap().as_bytes(), [7; 16]);
        let esn = Aad::with_esn(0x0102_0304, 0x1122_3344_5566_7788);
        assert_eq!(esn.as_bytes(), [1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    }
}
