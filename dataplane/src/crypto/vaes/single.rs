//! One packet of any length, in groups of up to eight chunks, each of which leaves a hash that enters the next one
//! (Horner's rule). A core that looks some hundred instructions ahead does AES of the next group, or packet, while it
//! hashes this one.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::field::{add, multiply, reduce, reversed, sum_of_lanes};
use super::kernel::{aad, counters_of, encrypt, lengths, nonce, powers};
use crate::crypto::{Job, TAG_LEN};

/// Chunks of a group at most: as many chains as fill the AES units.
const GROUP: usize = 8;

/// Chunks of the next group of so many: the last two groups share what is left, since fewer powers are needed then.
#[inline]
fn next_group(chunks: usize) -> usize {
    if chunks > GROUP { chunks.div_ceil(2).min(GROUP) } else { chunks }
}

/// Powers that a text of `len` octets needs.
#[inline]
pub(super) fn powers_of(len: usize) -> usize {
    let blocks = len.div_ceil(16) + 2;
    blocks.min(4 * next_group(blocks.div_ceil(4)))
}

/// A packet, and how far it is.
struct Work<'a, 'b> {
    job: &'a mut Job<'b>,
    /// Octets of text.
    len: usize,
    nonce: __m512i,
    /// Additional data, then the hash of what was before.
    hash: __m128i,
    /// What the tag is covered with.
    mask: __m128i,
    /// Chunks that are done.
    chunks: usize,
    /// Blocks that are to be hashed.
    blocks: usize,
}

/// Seals or opens a job whose text has room for a tag and is not longer than `TEXT_MAX`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) unsafe fn single<const ROUNDS: usize, const OPEN: bool>(job: &mut Job<'_>) {
    // SAFETY: behind the text of a job stand `TAG_LEN` octets of tag.
    unsafe {
        let len = job.text.len() - TAG_LEN;
        let blocks = len.div_ceil(16) + 2;
        let (nonce, hash) = (nonce(job), aad(job));
        let mut work = Work { job, len, nonce, hash, mask: _mm_setzero_si128(), chunks: 0, blocks };
        let mut chunks = blocks.div_ceil(4);
        while chunks > 0 {
            let now = next_group(chunks);
            match now {
                1 => group::<ROUNDS, OPEN, 1>(&mut work),
                2 => group::<ROUNDS, OPEN, 2>(&mut work),
                3 => group::<ROUNDS, OPEN, 3>(&mut work),
                4 => group::<ROUNDS, OPEN, 4>(&mut work),
                5 => group::<ROUNDS, OPEN, 5>(&mut work),
                6 => group::<ROUNDS, OPEN, 6>(&mut work),
                7 => group::<ROUNDS, OPEN, 7>(&mut work),
                _ => group::<ROUNDS, OPEN, GROUP>(&mut work),
            }
            chunks -= now;
        }
        let Work { job, hash, mask, .. } = work;
        let tag = _mm_xor_si128(hash, mask);
        let place: *mut __m128i = job.text.as_mut_ptr().add(len).cast();
        if !OPEN {
            _mm_storeu_si128(place, tag);
            job.done = true;
            return;
        }
        let differs = _mm_xor_si128(_mm_loadu_si128(place), tag);
        job.done = _mm_test_all_zeros(differs, differs) == 1;
        if !job.done {
            job.text[..len].fill(0);
        }
    }
}

/// Covers or uncovers the next `CHUNKS` chunks, and hashes them.
#[inline(always)]
unsafe fn group<const ROUNDS: usize, const OPEN: bool, const CHUNKS: usize>(work: &mut Work<'_, '_>) {
    // SAFETY: octets outside of the text are not touched.
    unsafe {
        let mut states = [[_mm512_setzero_si512(); CHUNKS]];
        for (at, state) in states[0].iter_mut().enumerate() {
            *state = counters_of(work.nonce, work.chunks + at);
        }
        encrypt::<ROUNDS, 1, CHUNKS>(&mut states, [work.job.key]);
        // Additional data stand in front of the text, where the counter of the tag is.
        let start = work.job.text.as_mut_ptr().wrapping_sub(16).wrapping_add(64 * work.chunks);
        let left = work.len + 16 - 64 * work.chunks;
        let mut in_front = 0;
        if work.chunks == 0 {
            work.mask = _mm512_castsi512_si128(states[0][0]);
            in_front = 0xffff;
        }
        let mut hashed = [_mm512_setzero_si512(); CHUNKS];
        for (at, hashed) in hashed.iter_mut().enumerate() {
            let place = start.wrapping_add(64 * at);
            if at == 0 || at + 2 >= CHUNKS {
                let mut mask = _bzhi_u64(u64::MAX, left.saturating_sub(64 * at).min(64) as u32);
                if at == 0 {
                    mask &= !in_front;
                }
                let before = _mm512_maskz_loadu_epi8(mask, place.cast());
                let after = _mm512_xor_si512(before, states[0][at]);
                _mm512_mask_storeu_epi8(place.cast(), mask, after);
                *hashed = if OPEN { before } else { _mm512_maskz_mov_epi8(mask, after) };
            } else {
                let before = _mm512_loadu_si512(place.cast());
                let after = _mm512_xor_si512(before, states[0][at]);
                _mm512_storeu_si512(place.cast(), after);
                *hashed = if OPEN { before } else { after };
            }
        }
        hash(work, hashed);
    }
}

/// Hashes the next chunks.
#[inline(always)]
unsafe fn hash<const CHUNKS: usize>(work: &mut Work<'_, '_>, mut hashed: [__m512i; CHUNKS]) {
    // SAFETY: powers are read up to 48 octets behind their end, where salt and round keys stand, and multiplied by zeros.
    unsafe {
        if work.blocks <= 4 * CHUNKS {
            let lane = (work.blocks - 1) % 4;
            let lengths = lengths(work.job, work.len, 3 << (2 * lane));
            hashed[CHUNKS - 1] = _mm512_xor_si512(hashed[CHUNKS - 1], lengths);
        }
        hashed[0] = _mm512_xor_si512(hashed[0], _mm512_zextsi128_si512(work.hash));
        let powers = powers(work.job.key, work.blocks.min(4 * CHUNKS));
        let product = |at: usize| {
            let power = _mm512_loadu_si512(powers.wrapping_add(64 * at).cast());
            multiply(reversed(hashed[at]), power)
        };
        let mut sum = product(CHUNKS - 1);
        // The first one comes last: it waits for the hash of what was before.
        for at in (0..CHUNKS - 1).rev() {
            sum = add(sum, product(at));
        }
        work.hash = sum_of_lanes(reversed(reduce(sum)));
        work.chunks += CHUNKS;
        work.blocks = work.blocks.wrapping_sub(4 * CHUNKS);
    }
}
