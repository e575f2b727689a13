//! Sums of products and encrypted first counter blocks of a batch enter, tags leave (NIST SP 800-38D sections 6.4 and
//! 7): four packets at a time, one in each lane of a register; written on sealing, compared on opening.

#![allow(unsafe_code)]
// The same index goes through several arrays.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use penstock_tables::key::POWERS;

use super::{GROUP, Lanes, NO_SUMS, Sums, fold, gather, multiply, reduce, reversed};
use crate::crypto::batch::{Batch, ONLY_MAX, Packet};
use crate::crypto::{Job, TAG_LEN};

/// Hashes of four packets whose texts are hashed in one go. `WHOLE`: some have groups of whole chunks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn finish_short<const WHOLE: bool>(
    batch: &Batch<'_>,
    first: usize,
    lanes: [&Packet<'_>; 4],
    whole: *const Sums,
    rest: *const Sums,
) -> __m512i {
    // SAFETY: sums were written for all that is there; places behind the last packet hold nothing that is used.
    unsafe {
        let lengths = _mm512_loadu_si512(batch.lengths.as_ptr().add(first).cast());
        let aads = reversed(_mm512_loadu_si512(batch.aads.as_ptr().add(first).cast()));
        let (mut ones, mut powers) = ([std::ptr::null(); 4], [std::ptr::null(); 4]);
        let (mut wholes, mut rests) = ([&raw const NO_SUMS; 4], [&raw const NO_SUMS; 4]);
        for at in 0..4 {
            let packet = lanes[at];
            let all: *const [u8; 16] = packet.key.powers().as_ptr();
            ones[at] = all.add(POWERS - 1).cast();
            powers[at] = all.add(POWERS - 2 - packet.blocks()).cast();
            if WHOLE && packet.len >= 64 * GROUP {
                wholes[at] = whole.add(first + at);
            }
            if !WHOLE || !packet.len.is_multiple_of(64 * GROUP) {
                rests[at] = rest.add(first + at);
            }
        }
        let before = multiply(aads, gather(powers));
        let end = multiply(lengths, gather(ones));
        let mut sum = [_mm512_setzero_si512(); 3];
        for part in 0..3 {
            let mut lanes = [_mm512_setzero_si512(); 4];
            for at in 0..4 {
                lanes[at] = _mm512_load_si512((*rests[at]).0[part].as_ptr().cast());
                if WHOLE {
                    let whole = _mm512_load_si512((*wholes[at]).0[part].as_ptr().cast());
                    lanes[at] = _mm512_xor_si512(lanes[at], whole);
                }
            }
            sum[part] = _mm512_ternarylogic_epi64::<0x96>(fold(lanes), before[part], end[part]);
        }
        reduce(sum)
    }
}

/// Hashes of four packets of two segments each: those of some 750 to 1,520 octets.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn finish_two(
    batch: &Batch<'_>,
    first: usize,
    lanes: [&Packet<'_>; 4],
    whole: *const Sums,
    rest: *const Sums,
) -> __m512i {
    // SAFETY: see `finish_short`. The first segment is made of groups, and no other chunks.
    unsafe {
        let lengths = _mm512_loadu_si512(batch.lengths.as_ptr().add(first).cast());
        let aads = reversed(_mm512_loadu_si512(batch.aads.as_ptr().add(first).cast()));
        let mut powers = [[std::ptr::null(); 4]; 3];
        let (mut heads, mut wholes, mut rests) =
            ([&raw const NO_SUMS; 4], [&raw const NO_SUMS; 4], [&raw const NO_SUMS; 4]);
        for at in 0..4 {
            let packet = lanes[at];
            let all: *const [u8; 16] = packet.key.powers().as_ptr();
            let lead = packet.lead as usize;
            powers[0][at] = all.add(POWERS - 1).cast();
            powers[1][at] = all.add(POWERS - lead / 16).cast();
            powers[2][at] = all.add(POWERS - 1 - (packet.blocks() - lead / 16)).cast();
            heads[at] = whole.add(packet.first_segment as usize);
            if packet.len - lead >= 64 * GROUP {
                wholes[at] = whole.add(first + at);
            }
            if !(packet.len - lead).is_multiple_of(64 * GROUP) {
                rests[at] = rest.add(first + at);
            }
        }
        let h = gather(powers[0]);
        let before = reduce(multiply(aads, h));
        let mut sum = multiply(before, gather(powers[1]));
        for part in 0..3 {
            let mut lanes = [_mm512_setzero_si512(); 4];
            for at in 0..4 {
                lanes[at] = _mm512_load_si512((*heads[at]).0[part].as_ptr().cast());
            }
            sum[part] = _mm512_xor_si512(sum[part], fold(lanes));
        }
        let before = multiply(reduce(sum), gather(powers[2]));
        let mut sum = multiply(lengths, h);
        for part in 0..3 {
            let mut lanes = [_mm512_setzero_si512(); 4];
            for at in 0..4 {
                let whole = _mm512_load_si512((*wholes[at]).0[part].as_ptr().cast());
                lanes[at] = _mm512_xor_si512(whole, _mm512_load_si512((*rests[at]).0[part].as_ptr().cast()));
            }
            sum[part] = _mm512_ternarylogic_epi64::<0x96>(fold(lanes), before[part], sum[part]);
        }
        reduce(sum)
    }
}

/// Hashes of four packets of any length, segment by segment (Horner's rule).
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn finish_long(
    batch: &Batch<'_>,
    first: usize,
    lanes: [&Packet<'_>; 4],
    whole: *const Sums,
    rest: *const Sums,
) -> __m512i {
    // SAFETY: see `finish_short`.
    unsafe {
        let lengths = _mm512_loadu_si512(batch.lengths.as_ptr().add(first).cast());
        let mut hash = reversed(_mm512_loadu_si512(batch.aads.as_ptr().add(first).cast()));
        let mut ones = [std::ptr::null(); 4];
        for at in 0..4 {
            ones[at] = lanes[at].key.powers().as_ptr().add(POWERS - 1).cast();
        }
        let h = gather(ones);
        let (mut long, mut last) = (0u8, 0u8);
        for (at, packet) in lanes.iter().enumerate() {
            long |= u8::from(packet.blocks() > ONLY_MAX) * (3 << (2 * at));
        }
        // There is no power for the additional data in front of so much text.
        hash = _mm512_mask_mov_epi64(hash, long, reduce(multiply(hash, h)));
        let rows = lanes.iter().map(|packet| packet.segments as usize).max().unwrap_or(0);
        for row in 0..rows {
            let mut active = 0u8;
            let (mut parts, mut powers) = ([[&raw const NO_SUMS; 2]; 4], [std::ptr::null(); 4]);
            for (at, packet) in lanes.iter().enumerate() {
                let here = row < packet.segments as usize;
                let row = row.min(packet.segments as usize - 1);
                let (blocks, is_last) = packet.segment(row);
                let exponent = blocks + usize::from(is_last) + usize::from(packet.blocks() <= ONLY_MAX);
                powers[at] = packet.key.powers().as_ptr().add(POWERS - exponent).cast();
                active |= u8::from(here) * (3 << (2 * at));
                last |= u8::from(here && is_last) * (3 << (2 * at));
                let (groups, place) = (packet.whole_groups(row), (first + at).min(batch.packets.len() - 1));
                let slot = packet.slot(place, row);
                if here && groups > 0 {
                    parts[at][0] = whole.add(slot);
                }
                if here && blocks > 4 * GROUP * groups {
                    parts[at][1] = rest.add(slot);
                }
            }
            let before = multiply(hash, gather(powers));
            let end = multiply(_mm512_maskz_mov_epi64(last, lengths), h);
            let mut sum = [_mm512_setzero_si512(); 3];
            for part in 0..3 {
                let mut lanes = [_mm512_setzero_si512(); 4];
                for at in 0..4 {
                    let whole = _mm512_load_si512((*parts[at][0]).0[part].as_ptr().cast());
                    let rest = _mm512_load_si512((*parts[at][1]).0[part].as_ptr().cast());
                    lanes[at] = _mm512_xor_si512(whole, rest);
                }
                sum[part] = _mm512_ternarylogic_epi64::<0x96>(fold(lanes), before[part], end[part]);
            }
            hash = _mm512_mask_mov_epi64(hash, active, reduce(sum));
        }
        hash
    }
}

/// Makes the hashes of four packets from `first` on, and writes or checks their tags.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn finish<const OPEN: bool>(
    batch: &Batch<'_>,
    first: usize,
    masks: *const Lanes,
    whole: *const Sums,
    rest: *const Sums,
    jobs: &mut [Job<'_>],
) {
    // SAFETY: the masks were written for all packets; see `finish_short` for the sums.
    unsafe {
        let packets = batch.packets.get_unchecked(first..batch.packets.len().min(first + 4));
        let end = packets.len() - 1;
        let lane = |at: usize| packets.get_unchecked(at.min(end));
        let lanes = [lane(0), lane(1), lane(2), lane(3)];
        let hash = if packets.len() == 4 && lanes.iter().all(|packet| packet.is_short()) {
            if batch.longest >= GROUP * 64 {
                finish_short::<true>(batch, first, lanes, whole, rest)
            } else {
                finish_short::<false>(batch, first, lanes, whole, rest)
            }
        } else if packets.len() == 4 && lanes.iter().all(|packet| packet.segments == 2) {
            finish_two(batch, first, lanes, whole, rest)
        } else {
            finish_long(batch, first, lanes, whole, rest)
        };
        let tags = _mm512_xor_si512(reversed(hash), _mm512_load_si512(masks.cast()));
        write_or_check::<OPEN>(packets, tags, jobs);
    }
}

/// Writes the tags of up to four packets behind their texts, or compares them with those that stand there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn write_or_check<const OPEN: bool>(
    packets: &[Packet<'_>],
    tags: __m512i,
    jobs: &mut [Job<'_>],
) {
    // SAFETY: behind the text of a packet stand `TAG_LEN` octets of the same slice.
    unsafe {
        let mut lanes = Lanes([[0; 16]; 4]);
        _mm512_store_si512((&raw mut lanes).cast(), tags);
        for (packet, tag) in packets.iter().zip(&lanes.0) {
            let place: *mut [u8; TAG_LEN] = packet.text.add(packet.len).cast();
            let job = jobs.get_unchecked_mut(packet.job as usize);
            if OPEN {
                let differs =
                    _mm_xor_si128(_mm_loadu_si128(place.cast()), _mm_loadu_si128(tag.as_ptr().cast()));
                job.done = _mm_test_all_zeros(differs, differs) == 1;
                if !job.done {
                    packet.text.write_bytes(0, packet.len);
                }
            } else {
                *place = *tag;
                job.done = true;
            }
        }
    }
}
