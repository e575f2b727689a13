//! Four packets at once whose additional data, text and lengths make two chunks each: texts of 33 to 96 octets. Eight
//! chains of AES fill the units, and the four tags stand in the lanes of a register.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::field::{Sum, add, fold_two, multiply, reduce, reversed};
use super::kernel::{aad, counters_of, lengths, nonce, powers, rounds};
use crate::crypto::{Job, TAG_LEN};

/// Whether a text of `len` octets makes two chunks.
#[inline]
pub(super) fn is_short(len: usize) -> bool {
    (33..=96).contains(&len)
}

/// Seals or opens the jobs at four different places of `jobs`, whose texts are short.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) unsafe fn four<const ROUNDS: usize, const OPEN: bool>(jobs: &mut [Job<'_>], places: [usize; 4]) {
    // SAFETY: the places are different ones; octets outside of a text and its tag are not touched.
    unsafe {
        let jobs = jobs.get_disjoint_unchecked_mut(places);
        let keys = [jobs[0].key, jobs[1].key, jobs[2].key, jobs[3].key];
        let counters = |at: usize| {
            let nonce = nonce(jobs[at]);
            [counters_of(nonce, 0), counters_of(nonce, 1)]
        };
        let mut states = [counters(0), counters(1), counters(2), counters(3)];
        rounds::<ROUNDS, 4, 2>(&mut states, keys, &mut ());
        let sums = [
            text::<OPEN>(jobs[0], states[0]),
            text::<OPEN>(jobs[1], states[1]),
            text::<OPEN>(jobs[2], states[2]),
            text::<OPEN>(jobs[3], states[3]),
        ];
        let first = |at: usize| _mm512_castsi512_si128(states[at][0]);
        let masks = four_blocks([first(0), first(1), first(2), first(3)]);
        let hash = reduce(fold_two(fold_two(sums[0], sums[1]), fold_two(sums[2], sums[3])));
        finish::<OPEN>(jobs, _mm512_xor_si512(reversed(hash), masks));
    }
}

/// Covers or uncovers the text of a job, and returns the sum of all products of its hash.
#[inline(always)]
unsafe fn text<const OPEN: bool>(job: &mut Job<'_>, stream: [__m512i; 2]) -> Sum {
    // SAFETY: octets outside of the text are not touched; powers are read up to 16 octets behind their end, where the salt
    // stands, and multiplied by zeros.
    unsafe {
        let len = job.text.len() - TAG_LEN;
        let blocks = len.div_ceil(16);
        // Additional data stand in front of the text, where the counter of the tag is.
        let start = job.text.as_mut_ptr().wrapping_sub(16);
        let octets = [len.min(48), len.saturating_sub(48)].map(|octets| _bzhi_u64(u64::MAX, octets as u32));
        let masks = [octets[0] << 16, octets[1]];
        let mut hashed = [_mm512_setzero_si512(); 2];
        for at in 0..2 {
            let place = start.wrapping_add(64 * at);
            let before = _mm512_maskz_loadu_epi8(masks[at], place.cast());
            let after = _mm512_xor_si512(before, stream[at]);
            _mm512_mask_storeu_epi8(place.cast(), masks[at], after);
            hashed[at] = if OPEN { before } else { _mm512_maskz_mov_epi8(masks[at], after) };
        }
        hashed[0] = _mm512_or_si512(hashed[0], _mm512_zextsi128_si512(aad(job)));
        hashed[1] = _mm512_or_si512(hashed[1], lengths(job, len, 3 << (2 * (blocks - 3))));
        let powers = powers(job.key, blocks + 2);
        add(
            multiply(reversed(hashed[0]), _mm512_loadu_si512(powers.cast())),
            multiply(reversed(hashed[1]), _mm512_loadu_si512(powers.wrapping_add(64).cast())),
        )
    }
}

/// Writes the four tags behind their texts, or compares them with what stands there.
#[inline(always)]
unsafe fn finish<const OPEN: bool>(jobs: [&mut Job<'_>; 4], tags: __m512i) {
    // SAFETY: behind the text of a job stand `TAG_LEN` octets of tag.
    unsafe {
        let mut places = [std::ptr::null_mut::<__m128i>(); 4];
        for at in 0..4 {
            let text = &mut jobs[at].text;
            places[at] = text.as_mut_ptr().add(text.len() - TAG_LEN).cast();
        }
        if !OPEN {
            _mm_storeu_si128(places[0], _mm512_castsi512_si128(tags));
            _mm_storeu_si128(places[1], _mm512_extracti32x4_epi32::<1>(tags));
            _mm_storeu_si128(places[2], _mm512_extracti32x4_epi32::<2>(tags));
            _mm_storeu_si128(places[3], _mm512_extracti32x4_epi32::<3>(tags));
            for job in jobs {
                job.done = true;
            }
            return;
        }
        let there = |at: usize| _mm_loadu_si128(places[at]);
        let equal = _mm512_cmpeq_epi64_mask(tags, four_blocks([there(0), there(1), there(2), there(3)]));
        for (at, job) in jobs.into_iter().enumerate() {
            job.done = equal >> (2 * at) & 3 == 3;
            if !job.done {
                let len = job.text.len() - TAG_LEN;
                job.text[..len].fill(0);
            }
        }
    }
}

/// A register of four blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
fn four_blocks([a, b, c, d]: [__m128i; 4]) -> __m512i {
    let ab = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
    let cd = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(ab), cd)
}
