//! AES-GCM with AVX-512, VAES and VPCLMULQDQ (RFC 4106, NIST SP 800-38D), batched over packets.
//!
//! A burst of jobs enters [`Engine::run`]; sealed or opened texts and tags leave. The texts of a batch are flattened
//! into one list of chunks of 64 octets; eight chunks at a time go through AES, whatever packets they belong to. Each
//! chunk is multiplied by its own four powers of H, the products are summed per segment (see `batch`), and four packets
//! at a time are reduced and get their tags in the four lanes of a register. No branch and no address depends on keys or
//! text.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::{MaybeUninit, offset_of};

use penstock_tables::key::POWERS;
use penstock_tables::{Cipher, KeyBlock};

use super::batch::{Batch, ONLY_MAX, PACKETS, Packet, SEGMENTS, TEXT_MAX, each_batch};
use super::{Direction, Engine, Job, TAG_LEN, aesni};

/// See the module.
#[derive(Debug)]
pub struct Vaes;

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
    features.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}

impl Engine for Vaes {
    fn name(&self) -> &'static str {
        "vaes"
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        each_batch(jobs, |cipher, direction, batch, jobs| {
            // SAFETY: `select` hands this engine out only where `missing` is empty, so the CPU has the features; the
            // packets of a batch point to the texts of `jobs`, which are borrowed mutably for as long.
            unsafe {
                match (cipher, direction) {
                    (Cipher::Aes256Gcm16, Direction::Seal) => run_batch::<14, false>(batch, jobs),
                    (Cipher::Aes256Gcm16, Direction::Open) => run_batch::<14, true>(batch, jobs),
                    (_, Direction::Seal) => run_batch::<10, false>(batch, jobs),
                    (_, Direction::Open) => run_batch::<10, true>(batch, jobs),
                }
            }
        });
    }

    fn prefetch(&self, key: &KeyBlock) {
        aesni::prefetch(key);
    }
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

/// What one batch leaves in memory between its stages; each is written before it is read.
struct Scratch {
    /// Encrypted first counter blocks, four packets in a row.
    masks: [MaybeUninit<Lanes>; PACKETS / 4],
    /// Sums of the groups of four whole chunks of each segment.
    whole: [MaybeUninit<Sums>; SEGMENTS],
    /// Sums of the other chunks of each segment.
    rest: [MaybeUninit<Sums>; SEGMENTS],
    /// The chunks that are not in groups of one packet.
    list: [MaybeUninit<Chunk>; PLANNED],
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn run_batch<const ROUNDS: usize, const OPEN: bool>(batch: &Batch<'_>, jobs: &mut [Job<'_>]) {
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: the caller has checked the features and borrows the texts.
    unsafe {
        let masks: *mut Lanes = (&raw mut (*scratch).masks).cast();
        let whole: *mut Sums = (&raw mut (*scratch).whole).cast();
        let rest: *mut Sums = (&raw mut (*scratch).rest).cast();
        tag_masks::<ROUNDS>(batch, masks);
        if batch.longest >= GROUP * 64 {
            whole_groups::<ROUNDS, OPEN>(batch, whole);
        }
        other_chunks::<ROUNDS, OPEN>(batch, (&raw mut (*scratch).list).cast(), rest);
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

/// One instruction for each of the four states, with the round key that stands at `$at` in the keys they share.
macro_rules! round_of_one_key {
    ($op:literal, $at:literal) => {
        concat!(
            "vbroadcasti32x4 zmm16, [{keys} + 16 * ",
            $at,
            "]\n",
            $op,
            " {s0}, {s0}, zmm16\n",
            $op,
            " {s1}, {s1}, zmm16\n",
            $op,
            " {s2}, {s2}, zmm16\n",
            $op,
            " {s3}, {s3}, zmm16\n",
        )
    };
}

/// The same with the keys of each.
macro_rules! round_of_four_keys {
    ($op:literal, $at:literal) => {
        concat!(
            "vbroadcasti32x4 zmm16, [{k0} + 16 * ",
            $at,
            "]\n",
            $op,
            " {s0}, {s0}, zmm16\n",
            "vbroadcasti32x4 zmm16, [{k1} + 16 * ",
            $at,
            "]\n",
            $op,
            " {s1}, {s1}, zmm16\n",
            "vbroadcasti32x4 zmm16, [{k2} + 16 * ",
            $at,
            "]\n",
            $op,
            " {s2}, {s2}, zmm16\n",
            "vbroadcasti32x4 zmm16, [{k3} + 16 * ",
            $at,
            "]\n",
            $op,
            " {s3}, {s3}, zmm16\n",
        )
    };
}

/// The four parts of the products of a held text and the powers in `zmm17`.
macro_rules! products {
    ($held:literal) => {
        concat!(
            "vpshufb zmm19, ",
            $held,
            ", {swap}\n",
            "vpclmulqdq zmm18, zmm19, zmm17, 0x00\n",
            "vpclmulqdq zmm20, zmm19, zmm17, 0x01\n",
            "vpclmulqdq zmm21, zmm19, zmm17, 0x10\n",
            "vpclmulqdq zmm19, zmm19, zmm17, 0x11\n",
        )
    };
}

/// Adds the products of two chunks of a group to the running sum: behind the second and the fourth.
macro_rules! hash_of_group {
    ("{h0}", "0") => {
        ""
    };
    ("{h2}", "2") => {
        ""
    };
    ("{h1}", "1") => {
        hash_of_two!("{h0}", "0", "{h1}", "1")
    };
    ("{h3}", "3") => {
        hash_of_two!("{h2}", "2", "{h3}", "3")
    };
}

macro_rules! hash_of_two {
    ($one:literal, $first:literal, $other:literal, $second:literal) => {
        concat!(
            "vmovdqu64 zmm17, [{powers} + 64 * ",
            $first,
            "]\n",
            "vpshufb zmm19, ",
            $one,
            ", {swap}\n",
            "vpclmulqdq zmm18, zmm19, zmm17, 0x00\n",
            "vpclmulqdq zmm20, zmm19, zmm17, 0x01\n",
            "vpclmulqdq zmm21, zmm19, zmm17, 0x10\n",
            "vpclmulqdq zmm19, zmm19, zmm17, 0x11\n",
            "vmovdqu64 zmm17, [{powers} + 64 * ",
            $second,
            "]\n",
            "vpshufb zmm23, ",
            $other,
            ", {swap}\n",
            "vpternlogq {middle}, zmm20, zmm21, 0x96\n",
            "vpclmulqdq zmm22, zmm23, zmm17, 0x00\n",
            "vpclmulqdq zmm20, zmm23, zmm17, 0x01\n",
            "vpclmulqdq zmm21, zmm23, zmm17, 0x10\n",
            "vpclmulqdq zmm23, zmm23, zmm17, 0x11\n",
            "vpternlogq {low}, zmm18, zmm22, 0x96\n",
            "vpternlogq {middle}, zmm20, zmm21, 0x96\n",
            "vpternlogq {high}, zmm19, zmm23, 0x96\n",
        )
    };
}

/// Adds the products of one chunk of the list `{before}` to the sum of its segment, and leaves that in memory.
macro_rules! hash_of_list {
    ($held:literal, $at:literal) => {
        concat!(
            "mov {place}, [{before} + 64 * ",
            $at,
            " + 32]\n",
            "vmovdqu64 zmm17, [{place}]\n",
            "kmovb k1, [{before} + 64 * ",
            $at,
            " + 60]\n",
            "mov {place}, [{before} + 64 * ",
            $at,
            " + 40]\n",
            products!($held),
            "vpxorq zmm18 {{k1}}, zmm18, {low}\n",
            "vpxorq zmm20, zmm20, zmm21\n",
            "vpxorq zmm20 {{k1}}, zmm20, {middle}\n",
            "vpxorq zmm19 {{k1}}, zmm19, {high}\n",
            "vmovdqa64 {low}, zmm18\n",
            "vmovdqa64 {middle}, zmm20\n",
            "vmovdqa64 {high}, zmm19\n",
            "vmovdqa64 [{place}], {low}\n",
            "vmovdqa64 [{place} + 64], {middle}\n",
            "vmovdqa64 [{place} + 128], {high}\n",
        )
    };
}

/// AES over four states in whose shadow four chunks are hashed. Assembly, because the compiler would first do all of the
/// one and then all of the other, and a core that looks some hundred instructions ahead then has no work for half of
/// its units. `$round` and `$hash` are macros from above; the operands follow.
macro_rules! encrypt_and_hash {
    ($rounds:ident, $round:ident, $hash:ident, $($operands:tt)*) => {
        if $rounds == 10 {
            asm!(
                 $round!("vaesenc", "1"), $round!("vaesenc", "2"), $hash!("{h0}", "0"),
                $round!("vaesenc", "3"), $round!("vaesenc", "4"), $hash!("{h1}", "1"), $round!("vaesenc", "5"),
                $round!("vaesenc", "6"), $hash!("{h2}", "2"), $round!("vaesenc", "7"), $round!("vaesenc", "8"),
                $hash!("{h3}", "3"), $round!("vaesenc", "9"), $round!("vaesenclast", "10"), $($operands)*
            );
        } else {
            asm!(
                 $round!("vaesenc", "1"), $round!("vaesenc", "2"), $round!("vaesenc", "3"),
                $hash!("{h0}", "0"), $round!("vaesenc", "4"), $round!("vaesenc", "5"), $round!("vaesenc", "6"),
                $hash!("{h1}", "1"), $round!("vaesenc", "7"), $round!("vaesenc", "8"), $round!("vaesenc", "9"),
                $hash!("{h2}", "2"), $round!("vaesenc", "10"), $round!("vaesenc", "11"), $round!("vaesenc", "12"),
                $hash!("{h3}", "3"), $round!("vaesenc", "13"), $round!("vaesenclast", "14"), $($operands)*
            );
        }
    };
}

/// Encrypts `state` with `keys`, and adds the products of the four texts in `held` with the powers from `powers` on to
/// `sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn encrypt_group<const ROUNDS: usize>(
    state: &mut [__m512i; GROUP],
    keys: *const [u8; 16],
    held: &[__m512i; GROUP],
    powers: *const u8,
    sum: &mut [__m512i; 3],
) {
    // SAFETY: reads the keys of `ROUNDS` rounds and 16 powers.
    unsafe {
        encrypt_and_hash!(ROUNDS, round_of_one_key, hash_of_group,
            s0 = inout(zmm_reg) state[0], s1 = inout(zmm_reg) state[1], s2 = inout(zmm_reg) state[2],
            s3 = inout(zmm_reg) state[3], h0 = in(zmm_reg) held[0], h1 = in(zmm_reg) held[1],
            h2 = in(zmm_reg) held[2], h3 = in(zmm_reg) held[3], low = inout(zmm_reg) sum[0],
            middle = inout(zmm_reg) sum[1], high = inout(zmm_reg) sum[2], swap = in(zmm_reg) octet_order(),
            keys = in(reg) keys, powers = in(reg) powers, out("zmm16") _, out("zmm17") _, out("zmm18") _,
            out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// Encrypts `state` with the keys of `now`, and hashes the four texts in `held`, which belong to `before`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn encrypt_list<const ROUNDS: usize>(
    state: &mut [__m512i; GROUP],
    now: &[Chunk; GROUP],
    held: &[__m512i; GROUP],
    before: *const Chunk,
    sum: &mut [__m512i; 3],
) {
    // SAFETY: reads keys, and the powers and sums that `before` points to, which it writes.
    unsafe {
        let (k0, k1) = ((*now[0].key).round_keys().as_ptr(), (*now[1].key).round_keys().as_ptr());
        let (k2, k3) = ((*now[2].key).round_keys().as_ptr(), (*now[3].key).round_keys().as_ptr());
        if k0 == k1 && k0 == k2 && k0 == k3 {
            encrypt_and_hash!(ROUNDS, round_of_one_key, hash_of_list,
                s0 = inout(zmm_reg) state[0], s1 = inout(zmm_reg) state[1], s2 = inout(zmm_reg) state[2],
                s3 = inout(zmm_reg) state[3], h0 = in(zmm_reg) held[0], h1 = in(zmm_reg) held[1],
                h2 = in(zmm_reg) held[2], h3 = in(zmm_reg) held[3], low = inout(zmm_reg) sum[0],
                middle = inout(zmm_reg) sum[1], high = inout(zmm_reg) sum[2], swap = in(zmm_reg) octet_order(),
                place = out(reg) _, keys = in(reg) k0, before = in(reg) before, out("zmm16") _, out("zmm17") _,
                out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("k1") _,
                options(nostack, preserves_flags)
            );
        } else {
            encrypt_and_hash!(ROUNDS, round_of_four_keys, hash_of_list,
                s0 = inout(zmm_reg) state[0], s1 = inout(zmm_reg) state[1], s2 = inout(zmm_reg) state[2],
                s3 = inout(zmm_reg) state[3], h0 = in(zmm_reg) held[0], h1 = in(zmm_reg) held[1],
                h2 = in(zmm_reg) held[2], h3 = in(zmm_reg) held[3], low = inout(zmm_reg) sum[0],
                middle = inout(zmm_reg) sum[1], high = inout(zmm_reg) sum[2], swap = in(zmm_reg) octet_order(),
                place = out(reg) _, k0 = in(reg) k0, k1 = in(reg) k1, k2 = in(reg) k2, k3 = in(reg) k3,
                before = in(reg) before, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("k1") _,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Works on all groups of four whole chunks of the texts, and leaves the sums of each segment in `sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn whole_groups<const ROUNDS: usize, const OPEN: bool>(batch: &Batch<'_>, sums: *mut Sums) {
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
            let keys = packet.key.round_keys().as_ptr();
            let nonce = broadcast((&raw const batch.nonces[place]).cast());
            let base = _mm512_xor_si512(nonce, broadcast(keys.cast()));
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
unsafe fn other_chunks<const ROUNDS: usize, const OPEN: bool>(
    batch: &Batch<'_>,
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
                encrypt_list::<ROUNDS>(&mut state, now, &held, list.add(at - GROUP), &mut sum);
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
unsafe fn hash(chunk: &Chunk, text: __m512i, sum: [__m512i; 3]) -> [__m512i; 3] {
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
struct Plan<'a, 'b> {
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
            while self.ended && self.planned % GROUP != 0 {
                self.list.add(self.planned).write(self.idle());
                self.planned += 1;
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

/// Hashes of four packets whose texts are hashed in one go. `WHOLE`: some have groups of whole chunks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
unsafe fn finish_short<const WHOLE: bool>(
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
            if !WHOLE || packet.len % (64 * GROUP) != 0 {
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
unsafe fn finish_two(
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
            if (packet.len - lead) % (64 * GROUP) != 0 {
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
unsafe fn finish_long(
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
unsafe fn finish<const OPEN: bool>(
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
unsafe fn write_or_check<const OPEN: bool>(packets: &[Packet<'_>], tags: __m512i, jobs: &mut [Job<'_>]) {
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
