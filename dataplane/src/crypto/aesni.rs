//! AES-GCM with AES-NI and PCLMULQDQ in 128-bit registers (RFC 4106, NIST SP 800-38D), for CPUs without AVX-512.
//!
//! A burst of jobs enters [`Engine::run`]; sealed or opened texts and tags leave. Eight blocks at a time go through AES,
//! and are multiplied by their own powers of H, so that a segment (see `batch`) is reduced once; the last up to four blocks
//! of a text share their rounds with the block that masks the tag. Packets do not wait for each other: a core overlaps
//! the end of one with the start of the next. No branch and no address depends on keys or text.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use penstock_tables::key::POWERS;
use penstock_tables::{Cipher, KeyBlock};

use super::batch::{Batch, ONLY_MAX, Packet, each_batch};
use super::{Direction, Engine, Job, TAG_LEN, scrub};

/// The name of the engine.
pub(super) const NAME: &str = "aesni";

/// See the module. A value of this type is the proof that the CPU has what the engine is made of: there is no other way to
/// one than [`Aesni::detect`].
///
/// ```compile_fail
/// let engine = penstock_dataplane::crypto::aesni::Aesni;
/// penstock_dataplane::crypto::Engine::run(&engine, &mut []);
/// ```
///
/// ```compile_fail
/// let engine = penstock_dataplane::crypto::aesni::Aesni(());
/// ```
#[derive(Debug)]
pub struct Aesni(());

/// Octets of stack that a batch takes at most beside what it is described by.
const SPILLED: usize = 2048;

/// CPU features that the engine needs and this CPU lacks.
fn missing() -> Vec<&'static str> {
    let features = [
        ("AES-NI", is_x86_feature_detected!("aes")),
        ("PCLMULQDQ", is_x86_feature_detected!("pclmulqdq")),
        ("SSSE3", is_x86_feature_detected!("ssse3")),
        ("SSE4.1", is_x86_feature_detected!("sse4.1")),
    ];
    features.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}

impl Aesni {
    /// The engine, where this CPU can run it.
    ///
    /// # Errors
    /// The features that it needs and the CPU (or its hypervisor) lacks.
    pub fn detect() -> Result<&'static Aesni, Vec<&'static str>> {
        let missing = missing();
        if missing.is_empty() { Ok(&Aesni(())) } else { Err(missing) }
    }
}

impl Engine for Aesni {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        each_batch(jobs, |cipher, direction, batch, jobs| {
            // SAFETY: that there is a `self` says that the CPU has the features (see `detect`); the
            // packets of a batch point to the texts of `jobs`, which are borrowed mutably for as long.
            unsafe {
                match (cipher, direction) {
                    (Cipher::Aes256Gcm16, Direction::Seal) => run_batch::<14, false>(batch, jobs),
                    (Cipher::Aes256Gcm16, Direction::Open) => run_batch::<14, true>(batch, jobs),
                    (_, Direction::Seal) => run_batch::<10, false>(batch, jobs),
                    (_, Direction::Open) => run_batch::<10, true>(batch, jobs),
                }
            }
            scrub::<SPILLED>();
        });
    }

    fn prefetch(&self, key: &KeyBlock, text_len: usize) {
        prefetch(key, text_len.div_ceil(16) + 2);
    }
}

/// Asks for the lines of `key` that a text needs for which `powers` powers are read: those, of which there are four in a
/// line, salt, and round keys. Into the second level of the cache: what a burst needs of its keys would fill the first one.
#[inline(always)]
pub(super) fn prefetch(key: &KeyBlock, powers: usize) {
    const LINES: usize = size_of::<KeyBlock>() / 64;
    let start: *const i8 = std::ptr::from_ref(key).cast();
    // SAFETY: every x86-64 CPU has the instruction, which touches nothing; the addresses lie in the block.
    let ask = |line: usize| unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(64 * line)) };
    // What the shortest packets need, without a loop: a worker asks for each of its packets where there are thousands of SAs.
    const SHORT: usize = (POWERS - 8) / 4;
    (POWERS.saturating_sub(powers) / 4..SHORT).for_each(ask);
    (SHORT..LINES).for_each(ask);
}

#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
unsafe fn run_batch<const ROUNDS: usize, const OPEN: bool>(batch: &Batch<'_>, jobs: &mut [Job<'_>]) {
    for (place, packet) in batch.packets.iter().enumerate() {
        // SAFETY: see `Aesni::run`; behind the text of a packet stand `TAG_LEN` octets of the same slice.
        unsafe {
            let tag = one_packet::<ROUNDS, OPEN>(batch, place, packet);
            let there: *mut __m128i = packet.text.add(packet.len).cast();
            let job = &mut jobs[packet.job as usize];
            if !OPEN {
                _mm_storeu_si128(there, tag);
                job.done = true;
                continue;
            }
            let differs = _mm_xor_si128(_mm_loadu_si128(there), tag);
            job.done = _mm_test_all_zeros(differs, differs) == 1;
            if !job.done {
                packet.text.write_bytes(0, packet.len);
            }
        }
    }
}

const _: () = assert!(TAG_LEN == size_of::<__m128i>());

/// Low, middle (Karatsuba's) and high part of a sum of products.
type Sum = [__m128i; 3];

/// What the blocks of one packet have in common, and how far they are.
struct Work {
    keys: *const __m128i,
    /// Salt and IV, and a counter of 0.
    nonce: __m128i,
    /// Counter of the next block.
    counter: u32,
    text: *mut u8,
    /// Power of H for the next block.
    power: *const __m128i,
    sum: Sum,
}

/// Encrypts or decrypts the text of one packet, and returns its tag.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
unsafe fn one_packet<const ROUNDS: usize, const OPEN: bool>(
    batch: &Batch<'_>,
    place: usize,
    packet: &Packet<'_>,
) -> __m128i {
    let powers: *const __m128i = packet.key.powers().as_ptr().cast();
    // SAFETY: blocks lie within the text, powers and keys within the key block.
    unsafe {
        let mut work = Work {
            keys: packet.key.round_keys().as_ptr().cast(),
            nonce: _mm_loadu_si128((&raw const batch.nonces[place]).cast()),
            counter: 2,
            text: packet.text,
            power: powers,
            sum: [_mm_setzero_si128(); 3],
        };
        let h = _mm_load_si128(powers.add(POWERS - 1));
        let mut hash = reversed(_mm_loadu_si128((&raw const batch.aads[place]).cast()));
        let short = packet.blocks() <= ONLY_MAX;
        if !short {
            // There is no power for the additional data in front of so much text.
            hash = reduce(multiply(hash, h));
        }
        let mut mask = hash;
        for segment in 0..packet.segments as usize {
            let (blocks, last) = packet.segment(segment);
            work.power = powers.add(POWERS - blocks - usize::from(last));
            work.sum = multiply(hash, *powers.add(POWERS - blocks - usize::from(last) - usize::from(short)));
            let mut left = blocks;
            while left > 8 || (left == 8 && !last) {
                whole::<8, ROUNDS, OPEN>(&mut work);
                left -= 8;
            }
            if last {
                if left > 4 {
                    whole::<4, ROUNDS, OPEN>(&mut work);
                    left -= 4;
                }
                let octets = packet.len - (blocks - left) * 16 - packet.start(segment);
                mask = tail::<ROUNDS, OPEN>(&mut work, octets);
                let lengths = _mm_loadu_si128((&raw const batch.lengths[place]).cast());
                work.sum = add(work.sum, multiply(lengths, h));
            }
            hash = reduce(work.sum);
        }
        _mm_xor_si128(reversed(hash), mask)
    }
}

/// The counter block with `counter`.
#[inline]
#[target_feature(enable = "sse4.1")]
fn counter_block(nonce: __m128i, counter: u32) -> __m128i {
    _mm_insert_epi32::<3>(nonce, counter.swap_bytes() as i32)
}

#[inline]
#[target_feature(enable = "aes")]
unsafe fn encrypt<const N: usize, const ROUNDS: usize>(state: &mut [__m128i; N], keys: *const __m128i) {
    // SAFETY: reads the keys of `ROUNDS` rounds.
    unsafe {
        for state in state.iter_mut() {
            *state = _mm_xor_si128(*state, *keys);
        }
        for round in 1..ROUNDS {
            let key = *keys.add(round);
            for state in state.iter_mut() {
                *state = _mm_aesenc_si128(*state, key);
            }
        }
        for state in state.iter_mut() {
            *state = _mm_aesenclast_si128(*state, *keys.add(ROUNDS));
        }
    }
}

/// `N` whole blocks.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
unsafe fn whole<const N: usize, const ROUNDS: usize, const OPEN: bool>(work: &mut Work) {
    // SAFETY: the caller has `N` blocks and powers left.
    unsafe {
        let mut state = [_mm_setzero_si128(); N];
        for (at, state) in state.iter_mut().enumerate() {
            *state = counter_block(work.nonce, work.counter + at as u32);
        }
        encrypt::<N, ROUNDS>(&mut state, work.keys);
        for (at, state) in state.into_iter().enumerate() {
            let place: *mut __m128i = work.text.add(16 * at).cast();
            let before = _mm_loadu_si128(place);
            let after = _mm_xor_si128(before, state);
            _mm_storeu_si128(place, after);
            let hashed = reversed(if OPEN { before } else { after });
            work.sum = add(work.sum, multiply(hashed, *work.power.add(at)));
        }
        work.counter += N as u32;
        work.text = work.text.add(16 * N);
        work.power = work.power.add(N);
    }
}

/// The last up to 64 octets; returns the block that masks the tag (SP 800-38D section 7.1 step 6).
#[inline]
#[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
unsafe fn tail<const ROUNDS: usize, const OPEN: bool>(work: &mut Work, octets: usize) -> __m128i {
    // SAFETY: the caller has `octets` octets and the powers for them left.
    unsafe {
        let mut state = [_mm_setzero_si128(); 5];
        for (at, state) in state.iter_mut().enumerate().take(4) {
            *state = counter_block(work.nonce, work.counter + at as u32);
        }
        state[4] = counter_block(work.nonce, 1);
        encrypt::<5, ROUNDS>(&mut state, work.keys);
        for (at, state) in state.iter().enumerate().take(octets.div_ceil(16)) {
            let place = work.text.add(16 * at);
            let count = octets - 16 * at;
            let hashed = if count >= 16 {
                let before = _mm_loadu_si128(place.cast());
                let after = _mm_xor_si128(before, *state);
                _mm_storeu_si128(place.cast(), after);
                if OPEN { before } else { after }
            } else {
                partial::<OPEN>(place, count, *state)
            };
            work.sum = add(work.sum, multiply(reversed(hashed), *work.power.add(at)));
        }
        state[4]
    }
}

/// Works on less than a block; returns it as it is hashed, padded with zeros.
#[inline]
#[target_feature(enable = "sse4.1")]
unsafe fn partial<const OPEN: bool>(place: *mut u8, count: usize, stream: __m128i) -> __m128i {
    let (mut before, mut after) = ([0u8; 16], [0u8; 16]);
    // SAFETY: `count` octets stand at `place`, fewer than 16.
    unsafe {
        place.copy_to_nonoverlapping(before.as_mut_ptr(), count);
        let mixed = _mm_xor_si128(_mm_loadu_si128(before.as_ptr().cast()), stream);
        _mm_storeu_si128(after.as_mut_ptr().cast(), mixed);
        after[count..].fill(0);
        place.copy_from_nonoverlapping(after.as_ptr(), count);
        _mm_loadu_si128(if OPEN { before.as_ptr() } else { after.as_ptr() }.cast())
    }
}

/// The block with its octets turned round.
#[inline]
#[target_feature(enable = "ssse3")]
fn reversed(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f))
}

#[inline]
#[target_feature(enable = "sse2")]
fn add(a: Sum, b: Sum) -> Sum {
    [_mm_xor_si128(a[0], b[0]), _mm_xor_si128(a[1], b[1]), _mm_xor_si128(a[2], b[2])]
}

/// The carry-less product, by Karatsuba's method.
#[inline]
#[target_feature(enable = "pclmulqdq")]
fn multiply(a: __m128i, b: __m128i) -> Sum {
    let a_halves = _mm_xor_si128(a, _mm_shuffle_epi32::<0x4e>(a));
    let b_halves = _mm_xor_si128(b, _mm_shuffle_epi32::<0x4e>(b));
    [
        _mm_clmulepi64_si128::<0x00>(a, b),
        _mm_clmulepi64_si128::<0x00>(a_halves, b_halves),
        _mm_clmulepi64_si128::<0x11>(a, b),
    ]
}

/// Reduces modulo x^128 + x^127 + x^126 + x^121 + 1 (RFC 8452 section 3).
#[inline]
#[target_feature(enable = "pclmulqdq")]
fn reduce([low, middle, high]: Sum) -> __m128i {
    let polynomial = _mm_set1_epi64x(0xc200_0000_0000_0000_u64 as i64);
    let middle = _mm_xor_si128(middle, _mm_xor_si128(low, high));
    let mut low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(high, _mm_srli_si128::<8>(middle));
    for _ in 0..2 {
        let fold = _mm_clmulepi64_si128::<0x00>(low, polynomial);
        low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), fold);
    }
    _mm_xor_si128(low, high)
}
