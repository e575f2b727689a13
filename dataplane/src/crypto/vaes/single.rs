//! One packet of any length. One that has more than eight chunks goes in groups, each of which leaves a hash that enters the
//! next one (Horner's rule): while a group is encrypted, the one before it is hashed. The last hash of one packet a core does
//! while it encrypts the first group of the next.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use penstock_tables::KeyBlock;

use super::field::{Sum, reduce, reversed, sum_of_lanes};
use super::kernel::{Products, aad, counters_of, lengths, nonce, powers, rounds};
use crate::crypto::{Job, TAG_LEN};

/// Chunks of a group: as many chains as fill the AES units.
const GROUP: usize = 8;

/// Blocks to be hashed of a text of `len` octets: with additional data and lengths.
#[inline]
fn blocks_of(len: usize) -> usize {
    len.div_ceil(16) + 2
}

/// Powers that a text of `len` octets needs.
#[inline]
pub(super) fn powers_of(len: usize) -> usize {
    let blocks = blocks_of(len);
    match blocks.div_ceil(4) {
        0..=GROUP => blocks,
        chunks if chunks <= 2 * GROUP => 4 * chunks.div_ceil(2),
        _ => 4 * GROUP,
    }
}

/// A packet.
struct Packet<'a, 'b> {
    job: &'a mut Job<'b>,
    key: &'b KeyBlock,
    nonce: __m512i,
    /// Octets of text.
    len: usize,
}

/// Seals or opens a job whose text has room for a tag and is not longer than `TEXT_MAX`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) unsafe fn single<const ROUNDS: usize, const OPEN: bool>(job: &mut Job<'_>) {
    // SAFETY: behind the text of a job stand `TAG_LEN` octets of tag.
    unsafe {
        let len = job.text.len() - TAG_LEN;
        let packet = Packet { key: job.key, nonce: nonce(job), len, job };
        match blocks_of(len).div_ceil(4) {
            1 => whole::<ROUNDS, OPEN, 1>(packet),
            2 => whole::<ROUNDS, OPEN, 2>(packet),
            3 => whole::<ROUNDS, OPEN, 3>(packet),
            4 => whole::<ROUNDS, OPEN, 4>(packet),
            5 => whole::<ROUNDS, OPEN, 5>(packet),
            6 => whole::<ROUNDS, OPEN, 6>(packet),
            7 => whole::<ROUNDS, OPEN, 7>(packet),
            8 => whole::<ROUNDS, OPEN, 8>(packet),
            9 => two::<ROUNDS, OPEN, 5, 4>(packet),
            10 => two::<ROUNDS, OPEN, 5, 5>(packet),
            11 => two::<ROUNDS, OPEN, 6, 5>(packet),
            12 => two::<ROUNDS, OPEN, 6, 6>(packet),
            13 => two::<ROUNDS, OPEN, 7, 6>(packet),
            14 => two::<ROUNDS, OPEN, 7, 7>(packet),
            15 => two::<ROUNDS, OPEN, 8, 7>(packet),
            16 => two::<ROUNDS, OPEN, 8, 8>(packet),
            chunks => grouped::<ROUNDS, OPEN>(packet, chunks),
        }
    }
}

/// A packet of `N` chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
unsafe fn whole<const ROUNDS: usize, const OPEN: bool, const N: usize>(mut packet: Packet<'_, '_>) {
    // SAFETY: as in `end`.
    unsafe {
        let mut states = packet.counters::<N>(0);
        rounds::<ROUNDS, 1, N>(&mut states, [packet.key], &mut ());
        let mut hashed = packet.cover::<OPEN, N>(states[0], 0, true);
        hashed[0] = _mm512_or_si512(hashed[0], _mm512_zextsi128_si512(aad(packet.job)));
        packet.end::<OPEN, N>(hashed, 0, _mm512_castsi512_si128(states[0][0]));
    }
}

/// A packet of so many chunks, more than a group.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
unsafe fn grouped<const ROUNDS: usize, const OPEN: bool>(mut packet: Packet<'_, '_>, chunks: usize) {
    // SAFETY: as many powers are read as there are for a group; octets outside of the text are not touched.
    unsafe {
        let (mut hashed, mask) = packet.group::<ROUNDS, OPEN, GROUP, 0>(([], 0, _mm_setzero_si128()));
        let mut done = GROUP;
        while chunks - done > GROUP {
            (hashed, _) = packet.group::<ROUNDS, OPEN, GROUP, GROUP>((hashed, done, mask));
            done += GROUP;
        }
        let before = (hashed, done, mask);
        match chunks - done {
            1 => last::<ROUNDS, OPEN, 1, GROUP>(packet, before),
            2 => last::<ROUNDS, OPEN, 2, GROUP>(packet, before),
            3 => last::<ROUNDS, OPEN, 3, GROUP>(packet, before),
            4 => last::<ROUNDS, OPEN, 4, GROUP>(packet, before),
            5 => last::<ROUNDS, OPEN, 5, GROUP>(packet, before),
            6 => last::<ROUNDS, OPEN, 6, GROUP>(packet, before),
            7 => last::<ROUNDS, OPEN, 7, GROUP>(packet, before),
            _ => last::<ROUNDS, OPEN, 8, GROUP>(packet, before),
        }
    }
}

/// What is encrypted of a packet and not hashed, `H` chunks; how many chunks are encrypted in all; what the tag is covered
/// with.
type Before<const H: usize> = ([__m512i; H], usize, __m128i);

/// A packet of two groups, of `A` and `B` chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
unsafe fn two<const ROUNDS: usize, const OPEN: bool, const A: usize, const B: usize>(
    mut packet: Packet<'_, '_>,
) {
    // SAFETY: as in `grouped`.
    unsafe {
        let (hashed, mask) = packet.group::<ROUNDS, OPEN, A, 0>(([], 0, _mm_setzero_si128()));
        last::<ROUNDS, OPEN, B, A>(packet, (hashed, A, mask));
    }
}

/// The last `N` chunks of a packet, and the hash of the `H` chunks before them.
#[inline(always)]
unsafe fn last<const ROUNDS: usize, const OPEN: bool, const N: usize, const H: usize>(
    mut packet: Packet<'_, '_>,
    (before, done, mask): Before<H>,
) {
    // SAFETY: as in `grouped` and `end`.
    unsafe {
        let mut states = packet.counters::<N>(done);
        let powers = powers(packet.key, 4 * H);
        let mut products = Products::new(before, powers);
        rounds::<ROUNDS, 1, N>(&mut states, [packet.key], &mut products);
        let mut hashed = packet.cover::<OPEN, N>(states[0], done, true);
        hashed[0] = _mm512_xor_si512(hashed[0], _mm512_zextsi128_si512(hash(products.sum)));
        packet.end::<OPEN, N>(hashed, done, mask);
    }
}

/// The hash that a sum of products leaves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
fn hash(sum: Sum) -> __m128i {
    sum_of_lanes(reversed(reduce(sum)))
}

impl Packet<'_, '_> {
    /// What `N` chunks from chunk `from` on are encrypted with.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
    unsafe fn counters<const N: usize>(&self, from: usize) -> [[__m512i; N]; 1] {
        let mut states = [[_mm512_setzero_si512(); N]];
        for (at, state) in states[0].iter_mut().enumerate() {
            // SAFETY: the packet has these chunks.
            *state = unsafe { counters_of(self.nonce, from + at) };
        }
        states
    }

    /// Encrypts a group of `N` chunks that is not the last one, and hashes the `H` chunks before it; without such it is the first
    /// one. Returns what is to be hashed of it, and what the tag is covered with.
    #[inline(always)]
    unsafe fn group<const ROUNDS: usize, const OPEN: bool, const N: usize, const H: usize>(
        &mut self,
        (before, done, mask): Before<H>,
    ) -> ([__m512i; N], __m128i) {
        // SAFETY: as many powers are read as there are for a group; octets outside of the text are not touched.
        unsafe {
            let mut states = self.counters::<N>(done);
            let mut products = Products::new(before, powers(self.key, 4 * H));
            rounds::<ROUNDS, 1, N>(&mut states, [self.key], &mut products);
            let mut hashed = self.cover::<OPEN, N>(states[0], done, false);
            let (enters, mask) = match H {
                0 => (aad(self.job), _mm512_castsi512_si128(states[0][0])),
                _ => (hash(products.sum), mask),
            };
            hashed[0] = _mm512_xor_si512(hashed[0], _mm512_zextsi128_si512(enters));
            (hashed, mask)
        }
    }

    /// Covers or uncovers `N` chunks from chunk `from` on; returns what is to be hashed of them. Text may begin in the first
    /// chunk of a packet. It may end in the last one of a group, and where that is the `last` one of the packet, in the one
    /// before it.
    #[inline(always)]
    unsafe fn cover<const OPEN: bool, const N: usize>(
        &mut self,
        states: [__m512i; N],
        from: usize,
        last: bool,
    ) -> [__m512i; N] {
        // SAFETY: octets outside of the text are not touched.
        unsafe {
            // Additional data stand in front of the text, where the counter of the tag is.
            let start = self.job.text.as_mut_ptr().wrapping_sub(16).wrapping_add(64 * from);
            let left = (self.len + 16).saturating_sub(64 * from);
            let in_front = if from == 0 { 0xffff } else { 0 };
            let mut hashed = [_mm512_setzero_si512(); N];
            for (at, hashed) in hashed.iter_mut().enumerate() {
                let place = start.wrapping_add(64 * at);
                if at == 0 || at + 1 == N || last && at + 2 == N {
                    let octets = left.saturating_sub(64 * at).min(64);
                    let mut mask = _bzhi_u64(u64::MAX, octets as u32);
                    if at == 0 {
                        mask &= !in_front;
                    }
                    let before = _mm512_maskz_loadu_epi8(mask, place.cast());
                    let after = _mm512_xor_si512(before, states[at]);
                    _mm512_mask_storeu_epi8(place.cast(), mask, after);
                    *hashed = if OPEN { before } else { _mm512_maskz_mov_epi8(mask, after) };
                } else {
                    let before = _mm512_loadu_si512(place.cast());
                    let after = _mm512_xor_si512(before, states[at]);
                    _mm512_storeu_si512(place.cast(), after);
                    *hashed = if OPEN { before } else { after };
                }
            }
            hashed
        }
    }

    /// Hashes the last `N` chunks, from chunk `from` on, and writes the tag, covered with `mask`, or compares it with what
    /// stands there.
    #[inline(always)]
    unsafe fn end<const OPEN: bool, const N: usize>(
        self,
        mut hashed: [__m512i; N],
        from: usize,
        mask: __m128i,
    ) {
        // SAFETY: powers are read up to 48 octets behind their end, where salt and round keys stand, and multiplied by zeros;
        // behind the text stand `TAG_LEN` octets of tag.
        unsafe {
            let blocks = blocks_of(self.len) - 4 * from;
            let lengths = lengths(self.job, self.len, 3 << (2 * ((blocks - 1) % 4)));
            hashed[N - 1] = _mm512_xor_si512(hashed[N - 1], lengths);
            let tag = _mm_xor_si128(hash(Products::new(hashed, powers(self.key, blocks)).all()), mask);
            let place: *mut __m128i = self.job.text.as_mut_ptr().add(self.len).cast();
            if !OPEN {
                _mm_storeu_si128(place, tag);
                self.job.done = true;
                return;
            }
            let differs = _mm_xor_si128(_mm_loadu_si128(place), tag);
            self.job.done = _mm_test_all_zeros(differs, differs) == 1;
            if !self.job.done {
                self.job.text[..self.len].fill(0);
            }
        }
    }
}
