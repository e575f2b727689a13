//! The field of GHASH in registers (NIST SP 800-38D section 6.3, in the form of RFC 8452): blocks and powers of H enter,
//! sums of products and their remainders leave, four in the lanes of a register.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Unreduced sum of products, lane by lane: low, middle and high part, the middle one as Karatsuba has it (with the
/// others in it).
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub low: __m512i,
    pub middle: __m512i,
    pub high: __m512i,
}

impl Sum {
    /// Of nothing.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
    pub(super) fn zero() -> Sum {
        let zero = _mm512_setzero_si512();
        Sum { low: zero, middle: zero, high: zero }
    }
}

/// The products of four octet-reversed blocks and four powers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn multiply(blocks: __m512i, powers: __m512i) -> Sum {
    let halves = |a| _mm512_xor_si512(a, _mm512_shuffle_epi32::<0x4e>(a));
    Sum {
        low: _mm512_clmulepi64_epi128::<0x00>(blocks, powers),
        middle: _mm512_clmulepi64_epi128::<0x00>(halves(blocks), halves(powers)),
        high: _mm512_clmulepi64_epi128::<0x11>(blocks, powers),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn add(a: Sum, b: Sum) -> Sum {
    Sum {
        low: _mm512_xor_si512(a.low, b.low),
        middle: _mm512_xor_si512(a.middle, b.middle),
        high: _mm512_xor_si512(a.high, b.high),
    }
}

/// Reduces modulo x^128 + x^127 + x^126 + x^121 + 1 (RFC 8452 section 3), lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn reduce(sum: Sum) -> __m512i {
    let polynomial = _mm512_set1_epi64(0xc200_0000_0000_0000_u64 as i64);
    let middle = xor3(sum.middle, sum.low, sum.high);
    let low = _mm512_xor_si512(sum.low, _mm512_bslli_epi128::<8>(middle));
    let high = _mm512_xor_si512(sum.high, _mm512_bsrli_epi128::<8>(middle));
    let fold = _mm512_clmulepi64_epi128::<0x00>(low, polynomial);
    let low = _mm512_xor_si512(_mm512_shuffle_epi32::<0x4e>(low), fold);
    let fold = _mm512_clmulepi64_epi128::<0x00>(low, polynomial);
    xor3(_mm512_shuffle_epi32::<0x4e>(low), fold, high)
}

/// The sum of lanes 0 and 1 of the result is that of all lanes of `a`, the sum of 2 and 3 that of `b`; done twice, lane n is
/// the sum of the lanes of the n-th of four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn fold_two(a: Sum, b: Sum) -> Sum {
    let fold =
        |a, b| _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b));
    Sum { low: fold(a.low, b.low), middle: fold(a.middle, b.middle), high: fold(a.high, b.high) }
}

/// The sum of the four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn sum_of_lanes(a: __m512i) -> __m128i {
    let two = _mm256_xor_si256(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64::<1>(a));
    _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// Turns the octets of each block round.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,bmi2")]
pub(super) fn reversed(blocks: __m512i) -> __m512i {
    let order = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(order))
}
