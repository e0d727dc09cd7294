/* Primitives of loops.h for AVX-512 (F, BW, DQ, VL): 16 floats, 8 doubles. */
#include <immintrin.h>

#define ISA_NAME "avx512"
#define ISA(name) name##_avx512
#define ISA_FN __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,popcnt")))
#define ISA_INLINE static inline __attribute__((always_inline)) ISA_FN
#define FLOATS 16
#define DOUBLES 8

#define vf __m512
#define vd __m512d
#define vz int64_t

ISA_INLINE vf ISA(abs_f)(vf x) { return _mm512_abs_ps(x); }
ISA_INLINE vd ISA(abs_d)(vd x) { return _mm512_abs_pd(x); }
/* max(x, m) is m where x is NaN: the order of the operands matters. */
ISA_INLINE vf ISA(max_f)(vf x, vf m) { return _mm512_max_ps(x, m); }
ISA_INLINE vd ISA(max_d)(vd x, vd m) { return _mm512_max_pd(x, m); }
ISA_INLINE vf ISA(zero_f)(void) { return _mm512_setzero_ps(); }
ISA_INLINE vd ISA(zero_d)(void) { return _mm512_setzero_pd(); }
ISA_INLINE vd ISA(set_d)(double x) { return _mm512_set1_pd(x); }
ISA_INLINE vd ISA(mul_d)(vd a, vd b) { return _mm512_mul_pd(a, b); }
ISA_INLINE vd ISA(fma_d)(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
ISA_INLINE vd ISA(low)(vf x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
ISA_INLINE vd ISA(high)(vf x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
ISA_INLINE vd ISA(widen)(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
ISA_INLINE void ISA(put_narrow)(float *p, vd x) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(x)); }
ISA_INLINE vz ISA(no_zeros)(void) { return 0; }
ISA_INLINE vz ISA(count_f)(vz z, vf x)
{
    return z + _mm_popcnt_u32(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_EQ_OQ));
}
ISA_INLINE vz ISA(count_d)(vz z, vd x)
{
    return z + _mm_popcnt_u32(_mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_EQ_OQ));
}
ISA_INLINE int64_t ISA(zeros)(vz z) { return z; }
ISA_INLINE void ISA(store_f)(float *p, vf x) { _mm512_storeu_ps(p, x); }
ISA_INLINE void ISA(store_d)(double *p, vd x) { _mm512_storeu_pd(p, x); }

ISA_INLINE vf ISA(load_f32)(const float *p) { return _mm512_loadu_ps(p); }
ISA_INLINE vd ISA(load_f64)(const double *p) { return _mm512_loadu_pd(p); }
ISA_INLINE vf ISA(load_f16)(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
ISA_INLINE vf ISA(load_bf16)(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

ISA_INLINE vf ISA(join)(__m256 low, __m256 high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
/* Towards zero with the last bit set where inexact: a second rounding, to fewer
 * bits, then gives what one rounding of the double would have given. */
ISA_INLINE __m256 ISA(odd)(vd x)
{
    __m256 f = _mm512_cvt_roundpd_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    __mmask8 inexact = _mm512_cmp_pd_mask(_mm512_cvtps_pd(f), x, _CMP_NEQ_UQ);
    __m256i bits = _mm256_castps_si256(f);
    return _mm256_castsi256_ps(_mm256_mask_or_epi32(bits, inexact, bits, _mm256_set1_epi32(1)));
}
ISA_INLINE vf ISA(narrow_odd)(vd low, vd high) { return ISA(join)(ISA(odd)(low), ISA(odd)(high)); }
ISA_INLINE void ISA(store_f16)(uint16_t *p, vd low, vd high)
{
    vf x = ISA(narrow_odd)(low, high);
    _mm256_storeu_si256((__m256i *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ISA_INLINE void ISA(store_bf16)(uint16_t *p, vd low, vd high)
{
    vf x = ISA(narrow_odd)(low, high);
    __m512i bits = _mm512_castps_si512(x);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    up = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
ISA_INLINE void ISA(fetch)(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
