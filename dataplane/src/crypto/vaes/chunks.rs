//! Texts of a batch enter, and leave encrypted or decrypted (NIST SP 800-38D section 6.5) with a sum of products for each
//! of their segments: first the groups of four whole chunks of each packet, then what is left of all packets.

#![allow(unsafe_code)]
// The same index goes through several arrays.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use penstock_tables::KeyBlock;
use penstock_tables::key::POWERS;

use super::kernel::{Keys, RoundKeys, encrypt_group, encrypt_list, encrypt_mixed_list, expand};
use super::{COUNTERS, Chunk, GROUP, PLANNED, Sums, broadcast, multiply, reversed, store};
use crate::crypto::batch::{Batch, Packet};

/// Groups from which on it pays to put the keys of a packet in all lanes.
const WORTH_EXPANDING: usize = 3;

/// Works on all groups of four whole chunks of the texts, and leaves the sums of each segment in `sums`. `expanded` holds
/// the keys where there is one for all packets, or is room for keys.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn whole_groups<const ROUNDS: usize, const OPEN: bool>(
    batch: &Batch<'_>,
    expanded: *mut RoundKeys,
    sums: *mut Sums,
) {
    let mut held = [_mm512_setzero_si512(); GROUP];
    let mut sum = [_mm512_setzero_si512(); 3];
    let mut spare = MaybeUninit::<Sums>::uninit();
    let mut held_sums = spare.as_mut_ptr();
    let mut held_powers: *const u8 = batch.packets[0].key.powers().as_ptr().cast();
    // SAFETY: groups lie within the text of their packet, and their powers within its key.
    unsafe {
        for (place, packet) in batch.packets.iter().enumerate() {
            if packet.len < GROUP * 64 {
                continue;
            }
            let first_key = packet.key.round_keys().as_ptr();
            let keys = if batch.one_key {
                Keys::Expanded(expanded)
            } else if packet.len < WORTH_EXPANDING * GROUP * 64 {
                Keys::Plain(first_key)
            } else {
                expand::<ROUNDS>(packet.key, expanded)
            };
            let nonce = broadcast((&raw const batch.nonces[place]).cast());
            let base = _mm512_xor_si512(nonce, broadcast(first_key.cast()));
            let mut counters = COUNTERS.0.as_ptr();
            // What the next packet will need, while this one is worked on.
            let mut ahead: *const u8 = batch.packets.get(place + 1).map_or(packet.text, |next| next.text);
            let mut text = packet.text;
            for segment in 0..packet.segments as usize {
                let (blocks, last) = packet.segment(segment);
                let mut powers: *const u8 =
                    packet.key.powers().as_ptr().add(POWERS - blocks - usize::from(last)).cast();
                for group in 0..packet.whole_groups(segment) {
                    let mut state = [base; GROUP];
                    for state in &mut state {
                        *state = _mm512_xor_si512(base, _mm512_load_si512(counters.cast()));
                        counters = counters.add(1);
                    }
                    for line in 0..GROUP {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
                    }
                    ahead = ahead.wrapping_add(64 * GROUP);
                    encrypt_group::<ROUNDS>(&mut state, keys, &held, held_powers, &mut sum);
                    if group == 0 {
                        store(held_sums, sum);
                        sum = [_mm512_setzero_si512(); 3];
                    }
                    for at in 0..GROUP {
                        let place = text.add(64 * at);
                        let before = _mm512_loadu_si512(place.cast());
                        let after = _mm512_xor_si512(state[at], before);
                        _mm512_storeu_si512(place.cast(), after);
                        held[at] = if OPEN { before } else { after };
                    }
                    held_powers = powers;
                    held_sums = sums.add(packet.slot(place, segment));
                    powers = powers.add(64 * GROUP);
                    text = text.add(64 * GROUP);
                }
            }
        }
        for at in 0..GROUP {
            let product = multiply(reversed(held[at]), _mm512_loadu_si512(held_powers.add(64 * at).cast()));
            for part in 0..3 {
                sum[part] = _mm512_xor_si512(sum[part], product[part]);
            }
        }
        store(held_sums, sum);
    }
}

/// Works on all chunks that are in no group of their own, four at a time, whatever packets and keys they belong to, and
/// leaves their sums in `sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn other_chunks<const ROUNDS: usize, const OPEN: bool, const HALVES: bool>(
    batch: &Batch<'_>,
    expanded: *const RoundKeys,
    list: *mut Chunk,
    sums: *mut Sums,
) {
    let mut spare = MaybeUninit::<Sums>::uninit();
    let mut held = [_mm512_setzero_si512(); GROUP];
    let mut sum = [_mm512_setzero_si512(); 3];
    let mut plan = Plan::new(batch, list, spare.as_mut_ptr());
    // SAFETY: octets outside of a mask are not touched; powers are read up to 48 octets behind their end, where the round
    // keys stand; the group before the planned ones is the one that is held.
    unsafe {
        loop {
            plan.fill(sums);
            let planned = plan.planned - plan.planned % GROUP;
            for at in (GROUP..planned).step_by(GROUP) {
                let now = &*list.add(at).cast::<[Chunk; GROUP]>();
                let mut state = [_mm512_setzero_si512(); GROUP];
                for at in 0..GROUP {
                    let chunk = &now[at];
                    let counters = _mm512_load_si512(COUNTERS.0.as_ptr().add(chunk.place as usize).cast());
                    let key = broadcast((*chunk.key).round_keys().as_ptr().cast());
                    let nonce = broadcast((&raw const chunk.nonce).cast());
                    state[at] = _mm512_ternarylogic_epi64::<0x96>(nonce, counters, key);
                }
                let before = list.add(at - GROUP);
                if batch.one_key {
                    encrypt_list::<ROUNDS>(&mut state, expanded, &held, before, &mut sum);
                } else {
                    encrypt_mixed_list::<ROUNDS, HALVES>(&mut state, now, &held, before, &mut sum);
                }
                for at in 0..GROUP {
                    let chunk = &now[at];
                    let before = _mm512_maskz_loadu_epi8(chunk.mask, chunk.text.cast());
                    let after = _mm512_xor_si512(state[at], before);
                    _mm512_mask_storeu_epi8(chunk.text.cast(), chunk.mask, after);
                    held[at] = if OPEN { before } else { _mm512_maskz_mov_epi8(chunk.mask, after) };
                }
            }
            // The group that is held now, and what did not make a group.
            list.copy_from(list.add(planned - GROUP), GROUP + plan.planned % GROUP);
            plan.planned = GROUP + plan.planned % GROUP;
            if plan.ended {
                break;
            }
        }
        for at in 0..GROUP {
            sum = hash(&*list.add(at), held[at], sum);
        }
    }
}

/// Multiplies the text of one chunk by its powers, adds it to the sum of its segment, and leaves that in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn hash(chunk: &Chunk, text: __m512i, sum: [__m512i; 3]) -> [__m512i; 3] {
    // SAFETY: see `other_chunks`.
    unsafe {
        let product = multiply(reversed(text), _mm512_loadu_si512(chunk.powers.cast()));
        let keep = chunk.keep as __mmask8;
        let sum = [
            _mm512_mask_xor_epi64(product[0], keep, product[0], sum[0]),
            _mm512_mask_xor_epi64(product[1], keep, product[1], sum[1]),
            _mm512_mask_xor_epi64(product[2], keep, product[2], sum[2]),
        ];
        store(chunk.sums, sum);
        sum
    }
}

/// Makes the list of the chunks that are in no group of their own.
pub(super) struct Plan<'a, 'b> {
    batch: &'a Batch<'b>,
    list: *mut Chunk,
    spare: *mut Sums,
    /// Packets whose chunks are in the list, or were.
    packet: usize,
    /// Chunks in the list.
    planned: usize,
    /// All chunks were planned.
    ended: bool,
}

impl<'a, 'b> Plan<'a, 'b> {
    /// Starts with a group of chunks without an octet.
    fn new(batch: &'a Batch<'b>, list: *mut Chunk, spare: *mut Sums) -> Plan<'a, 'b> {
        let plan = Plan { batch, list, spare, packet: 0, planned: GROUP, ended: false };
        // SAFETY: the list has room for a group.
        (0..GROUP).for_each(|at| unsafe { list.add(at).write(plan.idle()) });
        plan
    }

    /// A chunk without an octet.
    fn idle(&self) -> Chunk {
        let Packet { key, text, .. } = self.batch.packets[0];
        let key: *const KeyBlock = key;
        // SAFETY: makes a value of zeros.
        let nonce = unsafe { _mm_setzero_si128() };
        Chunk { nonce, text, key, powers: key.cast(), sums: self.spare, mask: 0, place: 0, keep: 0 }
    }

    /// Fills the list as far as there is room; at the end up to a multiple of [`GROUP`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
    unsafe fn fill(&mut self, sums: *mut Sums) {
        let mut next = self.list.wrapping_add(self.planned);
        let limit = self.list.wrapping_add(PLANNED - GROUP);
        // SAFETY: a packet has at most 4 such chunks, all in its last segment: 3 whole ones and one that is not.
        unsafe {
            while self.packet < self.batch.packets.len() && next <= limit {
                let packet = self.batch.packets.get_unchecked(self.packet);
                let nonce = _mm_loadu_si128(self.batch.nonces.as_ptr().add(self.packet).cast());
                // Octets before the last segment, and before the first of these chunks.
                let before = packet.start(packet.segments as usize - 1);
                let start = before + ((packet.len - before) & !(GROUP * 64 - 1));
                let blocks = packet.blocks() - before / 16;
                let mut powers: *const u8 = packet.key.powers().as_ptr().add(POWERS - 1 - blocks).cast();
                powers = powers.add(start - before);
                let mut left = packet.len - start;
                let mut text = packet.text.add(start);
                let mut place = (start / 64) as u32;
                let mut keep = 0;
                let (key, sums): (*const KeyBlock, _) = (packet.key, sums.add(self.packet));
                while left > 0 {
                    let mask = u64::MAX >> (64 - left.min(64));
                    next.write(Chunk { nonce, text, key, powers, sums, mask, place, keep });
                    next = next.add(1);
                    keep = u32::MAX;
                    place += 1;
                    text = text.wrapping_add(64);
                    powers = powers.wrapping_add(64);
                    left = left.saturating_sub(64);
                }
                self.packet += 1;
            }
            self.planned = next.offset_from(self.list) as usize;
            self.ended = self.packet == self.batch.packets.len();
            while self.ended && !self.planned.is_multiple_of(GROUP) {
                self.list.add(self.planned).write(self.idle());
                self.planned += 1;
            }
        }
    }
}
