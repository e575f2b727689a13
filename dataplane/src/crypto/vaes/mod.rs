//! AES-GCM with AVX-512, VAES and VPCLMULQDQ (RFC 4106, NIST SP 800-38D), batched over packets.
//!
//! A burst of jobs enters [`Engine::run`]; sealed or opened texts and tags leave. The texts of a batch are flattened
//! into one list of chunks of 64 octets; four chunks at a time go through AES, whatever packets they belong to. Each
//! chunk is multiplied by its own four powers of H, the products are summed per segment (see `batch`), and four packets
//! at a time are reduced and get their tags in the four lanes of a register. No branch and no address depends on keys or
//! text.

#![allow(unsafe_code)]
// The same index goes through several arrays.
#![allow(clippy::needless_range_loop)]

mod chunks;
mod finish;
mod kernel;

use std::arch::x86_64::*;
use std::cell::UnsafeCell;
use std::mem::{MaybeUninit, offset_of};
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_tables::{Cipher, KeyBlock};

use super::batch::{Batch, PACKETS, SEGMENTS, TEXT_MAX, each_batch};
use super::{Direction, Engine, Job, aesni, scrub};
use chunks::{other_chunks, whole_groups};
use finish::finish;
use kernel::{RoundKeys, expand};

/// See the module.
#[derive(Debug)]
pub struct Vaes;

/// Octets of stack that a batch takes at most beside what it is described by and [`Scratch`].
const SPILLED: usize = if cfg!(debug_assertions) { 4096 } else { 1536 };

/// CPU features that the engine needs and this CPU lacks.
pub(super) fn missing() -> Vec<&'static str> {
    let features = [
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", is_x86_feature_detected!("avx512bw")),
        ("AVX-512DQ", is_x86_feature_detected!("avx512dq")),
        ("AVX-512VL", is_x86_feature_detected!("avx512vl")),
        ("VAES", is_x86_feature_detected!("vaes")),
        ("VPCLMULQDQ", is_x86_feature_detected!("vpclmulqdq")),
    ];
    HALVES.store(has_halves(), Ordering::Relaxed);
    features.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}

impl Engine for Vaes {
    fn name(&self) -> &'static str {
        "vaes"
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        run(jobs, HALVES.load(Ordering::Relaxed));
    }

    fn prefetch(&self, key: &KeyBlock, text_len: usize) {
        aesni::prefetch(key, text_len);
    }

    fn wipe(&self) {
        // SAFETY: as in `run`; zeros are a value of everything in it.
        SCRATCH.with(|scratch| unsafe {
            if std::mem::take(&mut (*scratch.get()).used) {
                scratch.get().cast::<u8>().write_bytes(0, size_of::<Scratch>());
                // Nobody reads the zeros, which a compiler might take as a reason to leave them out.
                std::hint::black_box(scratch.get());
            }
        });
    }
}

/// A register of 512 bits is two of 256 to the CPU, as on Zen 4. Set by `missing`, which runs before any job does.
static HALVES: AtomicBool = AtomicBool::new(false);

/// What AMD's CPUID says of its vector units (Fn8000_001A, FP512); others that have AVX-512 have them whole.
fn has_halves() -> bool {
    const UNITS: u32 = 0x8000_001a;
    let vendor = __cpuid(0);
    let is_amd =
        [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
    is_amd && __cpuid(0x8000_0000).eax >= UNITS && __cpuid(UNITS).eax & 1 << 3 == 0
}

/// Does every job; see [`HALVES`].
fn run(jobs: &mut [Job<'_>], halves: bool) {
    let scratch = SCRATCH.with(UnsafeCell::get);
    each_batch(jobs, |cipher, direction, batch, jobs| {
        // SAFETY: `select` hands this engine out only where `missing` is empty, so the CPU has the features; the packets
        // of a batch point to the texts of `jobs`, which are borrowed mutably for as long; nothing else of this thread
        // uses its scratch memory meanwhile.
        unsafe {
            match (cipher, direction) {
                (Cipher::Aes256Gcm16, Direction::Seal) => {
                    run_batch::<14, false>(batch, jobs, halves, scratch)
                }
                (Cipher::Aes256Gcm16, Direction::Open) => run_batch::<14, true>(batch, jobs, halves, scratch),
                (_, Direction::Seal) => run_batch::<10, false>(batch, jobs, halves, scratch),
                (_, Direction::Open) => run_batch::<10, true>(batch, jobs, halves, scratch),
            }
        }
        scrub::<SPILLED>();
    });
}

/// Chunks that go through AES side by side: chains enough for two units, few enough that the products of the four
/// before them fit into the registers beside them.
const GROUP: usize = 4;

/// Chunks planned before they are worked on, with the group before them.
const PLANNED: usize = 64 + GROUP;

/// Unreduced sum of a segment: four lanes each of low, middle and high part of the products.
#[repr(C, align(64))]
struct Sums([[u8; 64]; 3]);

static NO_SUMS: Sums = Sums([[0; 64]; 3]);

/// Up to 64 octets of one text, and all that it takes to work on them.
#[repr(C, align(64))]
struct Chunk {
    /// Salt and IV, and a counter of 0.
    nonce: __m128i,
    text: *mut u8,
    key: *const KeyBlock,
    powers: *const u8,
    sums: *mut Sums,
    /// One bit for each octet of text.
    mask: u64,
    /// Its place in the text, in chunks.
    place: u32,
    /// All ones, or none in the first chunk of a segment, which starts a new sum.
    keep: u32,
}

const _: () = assert!(
    size_of::<Chunk>() == 64
        && offset_of!(Chunk, powers) == 32
        && offset_of!(Chunk, sums) == 40
        && offset_of!(Chunk, keep) == 60
);

/// The counters of every chunk of a text, big-endian, in otherwise empty blocks (SP 800-38D section 6.5): what takes the
/// vector units three instructions takes them one with a table. What is read of it depends on lengths only.
static COUNTERS: Counters = Counters(counters());

#[repr(C, align(64))]
struct Counters([[[u32; 4]; 4]; TEXT_MAX / 64]);

const fn counters() -> [[[u32; 4]; 4]; TEXT_MAX / 64] {
    let mut table = [[[0; 4]; 4]; TEXT_MAX / 64];
    let mut block = 0;
    while block < TEXT_MAX / 16 {
        table[block / 4][block % 4][3] = (2 + block as u32).to_be();
        block += 1;
    }
    table
}

/// One block in each lane.
#[repr(C, align(64))]
struct Lanes([[u8; 16]; 4]);

/// What one batch leaves in memory between its stages; each is written before it is read. None of it outlives
/// [`Engine::wipe`].
struct Scratch {
    /// Encrypted first counter blocks, four packets in a row.
    masks: [MaybeUninit<Lanes>; PACKETS / 4],
    /// Sums of the groups of four whole chunks of each segment.
    whole: [MaybeUninit<Sums>; SEGMENTS],
    /// Sums of the other chunks of each segment.
    rest: [MaybeUninit<Sums>; SEGMENTS],
    /// Round keys of the key of the batch, or of the packet that is worked on.
    keys: MaybeUninit<RoundKeys>,
    /// The chunks that are not in groups of one packet.
    list: [MaybeUninit<Chunk>; PLANNED],
    /// Something was written since it was wiped.
    used: bool,
}

thread_local! {
    static SCRATCH: UnsafeCell<Scratch> = const { UnsafeCell::new(Scratch::EMPTY) };
}

impl Scratch {
    const EMPTY: Scratch = Scratch {
        masks: [const { MaybeUninit::zeroed() }; PACKETS / 4],
        whole: [const { MaybeUninit::zeroed() }; SEGMENTS],
        rest: [const { MaybeUninit::zeroed() }; SEGMENTS],
        keys: MaybeUninit::zeroed(),
        list: [const { MaybeUninit::zeroed() }; PLANNED],
        used: false,
    };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn run_batch<const ROUNDS: usize, const OPEN: bool>(
    batch: &Batch<'_>,
    jobs: &mut [Job<'_>],
    halves: bool,
    scratch: *mut Scratch,
) {
    // SAFETY: the caller has checked the features, borrows the texts, and has the scratch memory to itself.
    unsafe {
        (*scratch).used = true;
        let masks: *mut Lanes = (&raw mut (*scratch).masks).cast();
        let whole: *mut Sums = (&raw mut (*scratch).whole).cast();
        let rest: *mut Sums = (&raw mut (*scratch).rest).cast();
        tag_masks::<ROUNDS>(batch, masks);
        let keys = (&raw mut (*scratch).keys).cast();
        if batch.one_key {
            expand::<ROUNDS>(batch.packets[0].key, keys);
        }
        if batch.longest >= GROUP * 64 {
            whole_groups::<ROUNDS, OPEN>(batch, keys, whole);
        }
        let list = (&raw mut (*scratch).list).cast();
        if halves && !batch.one_key {
            other_chunks::<ROUNDS, OPEN, true>(batch, keys, list, rest);
        } else {
            other_chunks::<ROUNDS, OPEN, false>(batch, keys, list, rest);
        }
        for first in (0..batch.packets.len()).step_by(4) {
            finish::<OPEN>(batch, first, masks.add(first / 4), whole, rest, jobs);
        }
    }
}

/// Encrypts the counter block of every packet: what the hash is covered with (SP 800-38D section 7.1 step 6).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn tag_masks<const ROUNDS: usize>(batch: &Batch<'_>, masks: *mut Lanes) {
    let count = batch.packets.len();
    // SAFETY: every index is below the number of packets, or in `masks`, which has room for `PACKETS` rounded up to 4.
    unsafe {
        if batch.one_key {
            let key = batch.packets[0].key.round_keys();
            let one = _mm512_broadcast_i32x4(_mm_set_epi32(1 << 24, 0, 0, 0));
            let whitening = _mm512_xor_si512(broadcast(key[0].as_ptr()), one);
            for first in (0..count).step_by(16) {
                let mut state = [_mm512_setzero_si512(); 4];
                for (at, state) in state.iter_mut().enumerate() {
                    // Loads up to 3 blocks behind the last one: the array holds `PACKETS`, whatever they are.
                    let at = (first + 4 * at).min(PACKETS - 4);
                    *state = _mm512_loadu_si512(batch.nonces.as_ptr().add(at).cast());
                    *state = _mm512_xor_si512(*state, whitening);
                }
                for key in &key[1..ROUNDS] {
                    let key = broadcast(key.as_ptr());
                    for state in &mut state {
                        *state = _mm512_aesenc_epi128(*state, key);
                    }
                }
                let last = broadcast(key[ROUNDS].as_ptr());
                for (at, state) in state.into_iter().enumerate() {
                    let at = (first + 4 * at).min(PACKETS - 4);
                    _mm512_store_si512(masks.add(at / 4).cast(), _mm512_aesenclast_epi128(state, last));
                }
            }
            return;
        }
        let masks: *mut __m128i = masks.cast();
        let one = _mm_set_epi32(1 << 24, 0, 0, 0);
        for first in (0..count).step_by(8) {
            let mut state = [_mm_setzero_si128(); 8];
            let mut keys = [std::ptr::null::<__m128i>(); 8];
            for at in 0..8 {
                let packet = (first + at).min(count - 1);
                keys[at] = batch.packets.get_unchecked(packet).key.round_keys().as_ptr().cast();
                let nonce = _mm_loadu_si128(batch.nonces.as_ptr().add(packet).cast());
                state[at] = _mm_xor_si128(_mm_xor_si128(nonce, one), *keys[at]);
            }
            for round in 1..ROUNDS {
                for at in 0..8 {
                    state[at] = _mm_aesenc_si128(state[at], *keys[at].add(round));
                }
            }
            for at in 0..8 {
                *masks.add(first + at) = _mm_aesenclast_si128(state[at], *keys[at].add(ROUNDS));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn store(place: *mut Sums, sum: [__m512i; 3]) {
    // SAFETY: the caller hands over room for a sum.
    unsafe {
        _mm512_store_si512(place.cast(), sum[0]);
        _mm512_store_si512(place.cast::<__m512i>().add(1), sum[1]);
        _mm512_store_si512(place.cast::<__m512i>().add(2), sum[2]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn broadcast(block: *const u8) -> __m512i {
    // SAFETY: the caller hands over a block of 16 octets.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
fn reversed(blocks: __m512i) -> __m512i {
    _mm512_shuffle_epi8(blocks, octet_order())
}

/// The order that turns the octets of blocks round.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
fn octet_order() -> __m512i {
    _mm512_broadcast_i32x4(_mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f))
}

/// Low, middle and high part of the carry-less products, lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
fn multiply(a: __m512i, b: __m512i) -> [__m512i; 3] {
    [
        _mm512_clmulepi64_epi128::<0x00>(a, b),
        _mm512_xor_si512(_mm512_clmulepi64_epi128::<0x01>(a, b), _mm512_clmulepi64_epi128::<0x10>(a, b)),
        _mm512_clmulepi64_epi128::<0x11>(a, b),
    ]
}

/// Lane n of the result is the sum of the lanes of `sums[n]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
fn fold(sums: [__m512i; 4]) -> __m512i {
    let [a, b, c, d] = sums;
    let ab = _mm512_xor_si512(_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
    let cd = _mm512_xor_si512(_mm512_shuffle_i64x2::<0x44>(c, d), _mm512_shuffle_i64x2::<0xee>(c, d));
    _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(ab, cd), _mm512_shuffle_i64x2::<0xdd>(ab, cd))
}

/// Reduces modulo x^128 + x^127 + x^126 + x^121 + 1 (RFC 8452 section 3), lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
fn reduce([low, middle, high]: [__m512i; 3]) -> __m512i {
    let polynomial = _mm512_set1_epi64(0xc200_0000_0000_0000_u64 as i64);
    let mut low = _mm512_xor_si512(low, _mm512_bslli_epi128::<8>(middle));
    let high = _mm512_xor_si512(high, _mm512_bsrli_epi128::<8>(middle));
    for _ in 0..2 {
        let fold = _mm512_clmulepi64_epi128::<0x00>(low, polynomial);
        low = _mm512_xor_si512(_mm512_shuffle_epi32::<0x4e>(low), fold);
    }
    _mm512_xor_si512(low, high)
}

/// A register of one block from each of four places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn gather(blocks: [*const u8; 4]) -> __m512i {
    // SAFETY: the caller hands over four blocks of 16 octets.
    unsafe {
        let [a, b, c, d] = blocks;
        let ab = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
        let ab = _mm256_inserti128_si256::<1>(ab, _mm_loadu_si128(b.cast()));
        let cd = _mm256_castsi128_si256(_mm_loadu_si128(c.cast()));
        let cd = _mm256_inserti128_si256::<1>(cd, _mm_loadu_si128(d.cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(ab), cd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Aad, TAG_LEN};

    /// Seals a burst of packets of two ciphers and five keys, and returns their texts; none where the CPU cannot.
    fn sealed(halves: bool) -> Option<Vec<Vec<u8>>> {
        if !missing().is_empty() {
            eprintln!("SKIPPED: this CPU has no {}", missing().join(", "));
            return None;
        }
        let cipher = |at: usize| if at.is_multiple_of(2) { Cipher::Aes128Gcm16 } else { Cipher::Aes256Gcm16 };
        let keys: Vec<KeyBlock> = (0..5)
            .map(|at| {
                KeyBlock::expand(cipher(at), &vec![at as u8 + 1; cipher(at).key_len()], [9; 4]).unwrap()
            })
            .collect();
        let mut texts: Vec<Vec<u8>> = (0..120).map(|at| vec![at as u8; 13 * at + TAG_LEN]).collect();
        let mut jobs: Vec<Job<'_>> = (0..)
            .zip(&mut texts)
            .map(|(at, text)| Job {
                key: &keys[at % 5],
                iv: (at as u64).to_be_bytes(),
                aad: Aad::new(7, at as u32),
                direction: Direction::Seal,
                text,
                done: false,
            })
            .collect();
        run(&mut jobs, halves);
        assert!(jobs.iter().all(|job| job.done));
        Some(texts)
    }

    #[test]
    fn registers_in_halves_or_whole_lead_to_the_same_packets() {
        assert!(sealed(true) == sealed(false));
    }

    #[test]
    fn wiping_leaves_no_octet_of_what_a_burst_left() {
        let left = || {
            // SAFETY: octets of this thread's own memory, all of which were written when it was made.
            SCRATCH.with(|scratch| unsafe {
                let octets = scratch.get().cast::<u8>();
                (0..size_of::<Scratch>()).filter(|at| octets.add(*at).read_volatile() != 0).count()
            })
        };
        Vaes.wipe();
        assert_eq!(left(), 0);
        if sealed(true).is_some() {
            assert!(left() > 10_000, "only {} octets were left: nothing was tested", left());
            Vaes.wipe();
            assert_eq!(left(), 0);
        }
    }
}
