//! The inner loops of the vaes engine: AES over four chunks (FIPS 197) and, in its shadow, GHASH of the four before them
//! (NIST SP 800-38D section 6.4). States and held texts enter in registers; encrypted counters and sums leave.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

use penstock_tables::KeyBlock;
use penstock_tables::key::ROUND_KEYS;

use super::{Chunk, GROUP, broadcast, octet_order};

/// One instruction for each of the four states, with the round key that stands at `$at` of expanded keys: in all four lanes,
/// so that no broadcast takes a third of a cycle from the AES units (Zen 4).
macro_rules! round_of_expanded_key {
    ($op:literal, $at:literal) => {
        concat!("vmovdqa64 zmm16, [{keys} + 64 * ", $at, "]\n", round_of_zmm16!($op),)
    };
}

/// The same with the round key as a key block has it.
macro_rules! round_of_one_key {
    ($op:literal, $at:literal) => {
        concat!("vbroadcasti32x4 zmm16, [{keys} + 16 * ", $at, "]\n", round_of_zmm16!($op),)
    };
}

macro_rules! round_of_zmm16 {
    ($op:literal) => {
        concat!(
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
            round_of_its_key!($op, $at, "{k0}", "{s0}"),
            round_of_its_key!($op, $at, "{k1}", "{s1}"),
            round_of_its_key!($op, $at, "{k2}", "{s2}"),
            round_of_its_key!($op, $at, "{k3}", "{s3}"),
        )
    };
}

macro_rules! round_of_its_key {
    ($op:literal, $at:literal, $keys:literal, $state:literal) => {
        concat!(
            "vbroadcasti32x4 zmm16, [",
            $keys,
            " + 16 * ",
            $at,
            "]\n",
            $op,
            " ",
            $state,
            ", ",
            $state,
            ", zmm16\n",
        )
    };
}

/// The same with states of two halves of 256 bits: a broadcast to 256 bits takes nothing from the AES units.
macro_rules! round_of_four_keys_in_halves {
    ($op:literal, $at:literal) => {
        concat!(
            round_of_its_halves!($op, $at, "{k0}", "{s0:y}", "{t0:y}"),
            round_of_its_halves!($op, $at, "{k1}", "{s1:y}", "{t1:y}"),
            round_of_its_halves!($op, $at, "{k2}", "{s2:y}", "{t2:y}"),
            round_of_its_halves!($op, $at, "{k3}", "{s3:y}", "{t3:y}"),
        )
    };
}

macro_rules! round_of_its_halves {
    ($op:literal, $at:literal, $keys:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcasti32x4 ymm16, [",
            $keys,
            " + 16 * ",
            $at,
            "]\n",
            $op,
            " ",
            $low,
            ", ",
            $low,
            ", ymm16\n",
            $op,
            " ",
            $high,
            ", ",
            $high,
            ", ymm16\n",
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

/// Operands of `encrypt_and_hash` for groups; `$keys` is where the round keys stand.
macro_rules! with_group {
    ($rounds:ident, $round:ident, $state:ident, $held:ident, $sum:ident, $keys:ident, $powers:ident) => {
        encrypt_and_hash!($rounds, $round, hash_of_group,
            s0 = inout(zmm_reg) $state[0], s1 = inout(zmm_reg) $state[1], s2 = inout(zmm_reg) $state[2],
            s3 = inout(zmm_reg) $state[3], h0 = in(zmm_reg) $held[0], h1 = in(zmm_reg) $held[1],
            h2 = in(zmm_reg) $held[2], h3 = in(zmm_reg) $held[3], low = inout(zmm_reg) $sum[0],
            middle = inout(zmm_reg) $sum[1], high = inout(zmm_reg) $sum[2], swap = in(zmm_reg) octet_order(),
            keys = in(reg) $keys, powers = in(reg) $powers, out("zmm16") _, out("zmm17") _, out("zmm18") _,
            out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            options(nostack, readonly, preserves_flags)
        )
    };
}

/// Operands of `encrypt_and_hash` for lists; those of the keys follow.
macro_rules! with_list {
    ($rounds:ident, $round:ident, $state:ident, $held:ident, $sum:ident, $before:ident, $($keys:tt)*) => {
        encrypt_and_hash!($rounds, $round, hash_of_list,
            s0 = inout(zmm_reg) $state[0], s1 = inout(zmm_reg) $state[1], s2 = inout(zmm_reg) $state[2],
            s3 = inout(zmm_reg) $state[3], h0 = in(zmm_reg) $held[0], h1 = in(zmm_reg) $held[1],
            h2 = in(zmm_reg) $held[2], h3 = in(zmm_reg) $held[3], low = inout(zmm_reg) $sum[0],
            middle = inout(zmm_reg) $sum[1], high = inout(zmm_reg) $sum[2], swap = in(zmm_reg) octet_order(),
            place = out(reg) _, before = in(reg) $before, $($keys)*, out("zmm16") _, out("zmm17") _,
            out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("k1") _,
            options(nostack, preserves_flags)
        )
    };
}

/// Round keys as [`encrypt_group`] and [`encrypt_list`] take them.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// Of a key block.
    Plain(*const [u8; 16]),
    /// Each in all lanes of a register.
    Expanded(*const RoundKeys),
}

/// Round keys, each in all lanes of a register.
#[repr(C, align(64))]
pub(super) struct RoundKeys(pub(super) [[u8; 64]; ROUND_KEYS]);

/// Puts each round key in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn expand<const ROUNDS: usize>(key: &KeyBlock, place: *mut RoundKeys) -> Keys {
    for (at, round_key) in key.round_keys()[..=ROUNDS].iter().enumerate() {
        // SAFETY: the caller hands over room for all of them.
        unsafe { _mm512_store_si512(place.cast::<__m512i>().add(at), broadcast(round_key.as_ptr())) };
    }
    Keys::Expanded(place)
}

/// Encrypts `state` with `keys`, and adds the products of the four texts in `held` with the powers from `powers` on to
/// `sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt_group<const ROUNDS: usize>(
    state: &mut [__m512i; GROUP],
    keys: Keys,
    held: &[__m512i; GROUP],
    powers: *const u8,
    sum: &mut [__m512i; 3],
) {
    // SAFETY: reads the keys of `ROUNDS` rounds and 16 powers.
    unsafe {
        match keys {
            Keys::Plain(keys) => with_group!(ROUNDS, round_of_one_key, state, held, sum, keys, powers),
            Keys::Expanded(keys) => {
                with_group!(ROUNDS, round_of_expanded_key, state, held, sum, keys, powers)
            }
        }
    }
}

/// Encrypts `state`, all with the same keys, and hashes the four texts in `held`, which belong to `before`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt_list<const ROUNDS: usize>(
    state: &mut [__m512i; GROUP],
    keys: *const RoundKeys,
    held: &[__m512i; GROUP],
    before: *const Chunk,
    sum: &mut [__m512i; 3],
) {
    // SAFETY: reads keys, and the powers and sums that `before` points to, which it writes.
    unsafe { with_list!(ROUNDS, round_of_expanded_key, state, held, sum, before, keys = in(reg) keys) }
}

/// Encrypts `state` with the keys of `now`, and hashes the four texts in `held`, which belong to `before`. `HALVES`: in
/// registers of 256 bits, which is faster where those of 512 are two of them to the CPU.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt_mixed_list<const ROUNDS: usize, const HALVES: bool>(
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
        if HALVES {
            let mut high = state.map(|state| _mm512_extracti64x4_epi64::<1>(state));
            with_list!(ROUNDS, round_of_four_keys_in_halves, state, held, sum, before,
                t0 = inout(ymm_reg) high[0], t1 = inout(ymm_reg) high[1], t2 = inout(ymm_reg) high[2],
                t3 = inout(ymm_reg) high[3], k0 = in(reg) k0, k1 = in(reg) k1, k2 = in(reg) k2, k3 = in(reg) k3);
            for (state, high) in state.iter_mut().zip(high) {
                *state = _mm512_inserti64x4::<1>(*state, high);
            }
        } else {
            with_list!(ROUNDS, round_of_four_keys, state, held, sum, before,
                k0 = in(reg) k0, k1 = in(reg) k1, k2 = in(reg) k2, k3 = in(reg) k3);
        }
    }
}
