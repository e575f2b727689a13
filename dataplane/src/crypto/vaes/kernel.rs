//! What one packet and four of them are worked on with: counters in, key stream out (FIPS 197, NIST SP 800-38D section
//! 6.5), in as many chains side by side as there are chunks of 64 octets.
//!
//! The octets of a packet are taken as GHASH takes them, in chunks of four blocks: additional data, text, lengths. The
//! counter blocks stand in the same places: the one that masks the tag where the additional data are, then those of the
//! text. So the tag costs no register of its own.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use penstock_tables::KeyBlock;
use penstock_tables::key::POWERS;

use super::field::{Sum, add, multiply, reversed};
use crate::crypto::Job;
use crate::crypto::batch::TEXT_MAX;

/// Chunks of a text of [`TEXT_MAX`] octets, with additional data and lengths.
const CHUNKS_MAX: usize = TEXT_MAX / 64 + 1;

/// The counters of every chunk, big-endian, in otherwise empty blocks: what takes the vector units three instructions
/// takes them one with a table. What is read of it depends on lengths only.
static COUNTERS: Counters = Counters(counters());

#[repr(C, align(64))]
struct Counters([[[u32; 4]; 4]; CHUNKS_MAX]);

const fn counters() -> [[[u32; 4]; 4]; CHUNKS_MAX] {
    let mut table = [[[0; 4]; 4]; CHUNKS_MAX];
    let mut block = 0;
    while block < 4 * CHUNKS_MAX {
        table[block / 4][block % 4][3] = (1 + block as u32).to_be();
        block += 1;
    }
    table
}

/// Salt, IV and first round key in every lane: counters are to be added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn nonce(job: &Job<'_>) -> __m512i {
    let (salt, iv) = (u32::from_le_bytes(job.key.salt()), u64::from_le_bytes(job.iv));
    let nonce = _mm_set_epi64x((iv >> 32) as i64, (iv << 32 | u64::from(salt)) as i64);
    _mm512_xor_si512(_mm512_broadcast_i32x4(nonce), broadcast(&job.key.round_keys()[0]))
}

/// `nonce` with the counters of chunk `chunk` of a packet, which must not be longer than [`TEXT_MAX`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) unsafe fn counters_of(nonce: __m512i, chunk: usize) -> __m512i {
    // SAFETY: the table has all chunks of such a packet.
    unsafe { _mm512_xor_si512(nonce, _mm512_load_si512(COUNTERS.0.as_ptr().add(chunk).cast())) }
}

/// Work for the multiplier that is done between the rounds of AES, so that both units are busy: a core does not look far enough
/// ahead to find that out by itself.
pub(super) trait Between {
    /// Does what is due after round `round` of `rounds`.
    unsafe fn after(&mut self, round: usize, rounds: usize);
}

impl Between for () {
    #[inline(always)]
    unsafe fn after(&mut self, _: usize, _: usize) {}
}

/// The products of chunks that are encrypted and their powers.
pub(super) struct Products<const CHUNKS: usize> {
    hashed: [__m512i; CHUNKS],
    powers: *const u8,
    /// The sum of those that are done.
    pub(super) sum: Sum,
}

impl<const CHUNKS: usize> Products<CHUNKS> {
    /// Of the chunks with the powers that stand at `powers`, 64 octets for each chunk.
    #[inline(always)]
    pub(super) unsafe fn new(hashed: [__m512i; CHUNKS], powers: *const u8) -> Products<CHUNKS> {
        // SAFETY: as the callers say: they run where there is AVX-512.
        Products { hashed, powers, sum: unsafe { Sum::zero() } }
    }

    /// The sum of all.
    #[inline(always)]
    pub(super) unsafe fn all(mut self) -> Sum {
        for nth in 0..CHUNKS {
            // SAFETY: as `new` says.
            unsafe { self.product(nth) };
        }
        self.sum
    }

    /// Adds the product of the chunk that is `nth` from the end: the first one may wait for the hash of what was before it.
    #[inline(always)]
    unsafe fn product(&mut self, nth: usize) {
        let chunk = CHUNKS - 1 - nth;
        // SAFETY: as `new` says.
        unsafe {
            let power = _mm512_loadu_si512(self.powers.wrapping_add(64 * chunk).cast());
            let product = multiply(reversed(self.hashed[chunk]), power);
            self.sum = if nth == 0 { product } else { add(self.sum, product) };
        }
    }
}

impl<const CHUNKS: usize> Between for Products<CHUNKS> {
    #[inline(always)]
    unsafe fn after(&mut self, round: usize, rounds: usize) {
        for nth in 0..CHUNKS {
            if round == 1 + nth * (rounds - 1) / CHUNKS {
                // SAFETY: as `new` says.
                unsafe { self.product(nth) };
            }
        }
    }
}

/// All rounds but the whitening at the start, on `CHUNKS` chunks of each packet, and between them other work. Each packet has its
/// own key: loading a round key for each takes nothing from the AES units, so that a burst under one key needs no code of its own.
#[inline(always)]
pub(super) unsafe fn rounds<const ROUNDS: usize, const PACKETS: usize, const CHUNKS: usize>(
    states: &mut [[__m512i; CHUNKS]; PACKETS],
    keys: [&KeyBlock; PACKETS],
    between: &mut impl Between,
) {
    macro_rules! round {
        ($($round:literal)*) => { $(
            if $round < ROUNDS {
                for (states, key) in states.iter_mut().zip(keys) {
                    let key = broadcast(&key.round_keys()[$round]);
                    for state in states {
                        *state = _mm512_aesenc_epi128(*state, key);
                    }
                }
                between.after($round, ROUNDS);
            }
        )* };
    }
    // SAFETY: the callers run where there is AVX-512.
    unsafe {
        round!(1 2 3 4 5 6 7 8 9 10 11 12 13);
        for (states, key) in states.iter_mut().zip(keys) {
            let key = broadcast(&key.round_keys()[ROUNDS]);
            for state in states {
                *state = _mm512_aesenclast_epi128(*state, key);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn broadcast(block: &[u8; 16]) -> __m512i {
    // SAFETY: reads a block of 16 octets.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

/// Where the power stands that the first of the last `blocks` blocks of a packet is multiplied by. The pointer may be
/// read behind the powers, up to the end of the key block: the last chunk of a packet need not be full.
#[inline]
pub(super) fn powers(key: &KeyBlock, blocks: usize) -> *const u8 {
    let start: *const u8 = std::ptr::from_ref(key).cast();
    start.wrapping_add(KeyBlock::POWERS_AT + 16 * (POWERS - blocks))
}

/// Additional data, padded with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn aad(job: &Job<'_>) -> __m128i {
    let aad = job.aad.padded();
    _mm_set_epi64x((aad >> 64) as i64, aad as i64)
}

/// Bits of additional data and of text (SP 800-38D section 7.1 step 5), in the lanes that `lanes` has bits for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn lengths(job: &Job<'_>, len: usize, lanes: u8) -> __m512i {
    let lengths = _mm_set_epi64x((len as i64 * 8).swap_bytes(), job.aad.bits().swap_bytes() as i64);
    _mm512_maskz_broadcast_i64x2(lanes, lengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_tables::Cipher;

    /// What Miri watches: a pointer into the powers alone would be no way to what stands behind them.
    #[test]
    fn a_chunk_of_the_last_power_is_read_from_the_key_block() {
        let key = KeyBlock::expand(Cipher::Aes128Gcm16, &[1; 16], [2; 4]).unwrap();
        for blocks in 1..=POWERS {
            // SAFETY: a whole chunk from any power on lies in the block (asserted beside `KeyBlock`).
            let chunk: [[u8; 16]; 4] = unsafe { powers(&key, blocks).cast::<[[u8; 16]; 4]>().read() };
            assert_eq!(chunk[0], key.powers()[POWERS - blocks]);
            if blocks == 1 {
                assert_eq!(chunk[1][..4], key.salt());
                assert_eq!(chunk[2], key.round_keys()[0]);
            }
        }
    }
}
