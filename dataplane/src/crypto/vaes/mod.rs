//! AES-GCM with AVX-512, VAES and VPCLMULQDQ (RFC 4106, NIST SP 800-38D), batched over packets.
//!
//! A burst of jobs enters [`Engine::run`]; sealed or opened texts and tags leave. Short packets are done four at a time,
//! others one by one in groups of chunks, so that up to eight chains of AES run side by side (see `short`, `single`). Beside
//! the packets nothing is written, and nothing read but key blocks and a table of counters. No branch and no address depends
//! on keys or text.

#![allow(unsafe_code)]

mod field;
mod kernel;
mod short;
mod single;

use penstock_tables::{Cipher, KeyBlock};

use super::batch::TEXT_MAX;
use super::{Direction, Engine, Job, TAG_LEN, aesni, reference, scrub};
use short::{four, is_short};
use single::{powers_of, single};

/// The name of the engine.
pub(super) const NAME: &str = "vaes";

/// See the module. A value of this type is the proof that the CPU has what the engine is made of: there is no other way to
/// one than [`Vaes::detect`].
///
/// ```compile_fail
/// let engine = penstock_dataplane::crypto::vaes::Vaes;
/// penstock_dataplane::crypto::Engine::run(&engine, &mut []);
/// ```
///
/// ```compile_fail
/// let engine = penstock_dataplane::crypto::vaes::Vaes(());
/// ```
#[derive(Debug)]
pub struct Vaes(());

/// Octets of stack that a burst takes at most.
const SPILLED: usize = if cfg!(debug_assertions) { 8192 } else { 1536 };

/// CPU features that the engine needs and this CPU lacks.
fn missing() -> Vec<&'static str> {
    let features = [
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", is_x86_feature_detected!("avx512bw")),
        ("AVX-512DQ", is_x86_feature_detected!("avx512dq")),
        ("AVX-512VL", is_x86_feature_detected!("avx512vl")),
        ("VAES", is_x86_feature_detected!("vaes")),
        ("VPCLMULQDQ", is_x86_feature_detected!("vpclmulqdq")),
        ("BMI2", is_x86_feature_detected!("bmi2")),
    ];
    features.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}

impl Vaes {
    /// The engine, where this CPU can run it.
    ///
    /// # Errors
    /// The features that it needs and the CPU (or its hypervisor) lacks.
    pub fn detect() -> Result<&'static Vaes, Vec<&'static str>> {
        let missing = missing();
        if missing.is_empty() { Ok(&Vaes(())) } else { Err(missing) }
    }
}

impl Engine for Vaes {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        let mut handed_on = false;
        for jobs in jobs.chunks_mut(64) {
            // One bit for each job that is still to be done.
            let mut left = u64::MAX >> (64 - jobs.len());
            while left != 0 {
                let first = &mut jobs[left.trailing_zeros() as usize];
                // SAFETY: that there is a `self` says that the CPU has the features (see `detect`).
                left = unsafe {
                    match (first.key.cipher(), first.direction) {
                        (Some(Cipher::Aes128Gcm16), Direction::Seal) => pass::<10, false>(jobs, left),
                        (Some(Cipher::Aes128Gcm16), Direction::Open) => pass::<10, true>(jobs, left),
                        (Some(Cipher::Aes256Gcm16), Direction::Seal) => pass::<14, false>(jobs, left),
                        (Some(Cipher::Aes256Gcm16), Direction::Open) => pass::<14, true>(jobs, left),
                        _ => {
                            reference::run_one(first);
                            handed_on = true;
                            left & (left - 1)
                        }
                    }
                };
            }
        }
        scrub::<SPILLED>();
        if handed_on {
            reference::scrub_stack();
        }
    }

    fn prefetch(&self, key: &KeyBlock, text_len: usize) {
        aesni::prefetch(key, powers_of(text_len));
    }
}

/// Does those of the jobs in `left` that have this cipher and direction; returns the others.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
unsafe fn pass<const ROUNDS: usize, const OPEN: bool>(jobs: &mut [Job<'_>], mut left: u64) -> u64 {
    let cipher = if ROUNDS == 10 { Cipher::Aes128Gcm16 } else { Cipher::Aes256Gcm16 };
    let mut others = 0;
    let (mut places, mut waiting) = ([0; 4], 0);
    while left != 0 {
        let at = left.trailing_zeros() as usize;
        left &= left - 1;
        let job = &mut jobs[at];
        let len = job.text.len().wrapping_sub(TAG_LEN);
        if job.key.cipher() != Some(cipher) || (job.direction == Direction::Open) != OPEN {
            others |= 1 << at;
        } else if is_short(len) {
            places[waiting] = at;
            waiting += 1;
            if waiting == places.len() {
                // SAFETY: four different places of `jobs`, with short texts.
                unsafe { four::<ROUNDS, OPEN>(jobs, places) };
                waiting = 0;
            }
        } else if len <= TEXT_MAX {
            // SAFETY: the text has room for a tag.
            unsafe { single::<ROUNDS, OPEN>(job) };
        } else {
            reference::run_one(job);
            reference::scrub_stack();
        }
    }
    for at in &places[..waiting] {
        // SAFETY: the text has room for a tag.
        unsafe { single::<ROUNDS, OPEN>(&mut jobs[*at]) };
    }
    others
}
