/* Primitives of loops.h for AVX2 with FMA and F16C: 8 floats, 4 doubles. */
#include <immintrin.h>

#define ISA_NAME "avx2"
#define ISA(name) name##_avx2
#define ISA_FN __attribute__((target("avx2,fma,f16c")))
#define ISA_INLINE static inline __attribute__((always_inline)) ISA_FN
#define FLOATS 8
#define DOUBLES 4

#define vf __m256
#define vd __m256d
/* Counts stay in the lanes, as 32-bit floats' masks and 64-bit doubles' masks both
 * subtract to one a match when added up at the width they were compared at. */
#define vz __m256i

ISA_INLINE vf ISA(abs_f)(vf x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
ISA_INLINE vd ISA(abs_d)(vd x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
/* max(x, m) is m where x is NaN: the order of the operands matters. */
ISA_INLINE vf ISA(max_f)(vf x, vf m) { return _mm256_max_ps(x, m); }
ISA_INLINE vd ISA(max_d)(vd x, vd m) { return _mm256_max_pd(x, m); }
ISA_INLINE vf ISA(zero_f)(void) { return _mm256_setzero_ps(); }
ISA_INLINE vd ISA(zero_d)(void) { return _mm256_setzero_pd(); }
ISA_INLINE vd ISA(set_d)(double x) { return _mm256_set1_pd(x); }
ISA_INLINE vd ISA(mul_d)(vd a, vd b) { return _mm256_mul_pd(a, b); }
ISA_INLINE vd ISA(fma_d)(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
ISA_INLINE vd ISA(low)(vf x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
ISA_INLINE vd ISA(high)(vf x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
ISA_INLINE vd ISA(widen)(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
ISA_INLINE void ISA(put_narrow)(float *p, vd x) { _mm_storeu_ps(p, _mm256_cvtpd_ps(x)); }
ISA_INLINE vz ISA(no_zeros)(void) { return _mm256_setzero_si256(); }
ISA_INLINE vz ISA(count_f)(vz z, vf x)
{
    __m256 equal = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_EQ_OQ);
    return _mm256_sub_epi32(z, _mm256_castps_si256(equal));
}
ISA_INLINE vz ISA(count_d)(vz z, vd x)
{
    /* one 64-bit match is two 32-bit ones: keep the lower half */
    __m256d equal = _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_EQ_OQ);
    return _mm256_add_epi32(z, _mm256_srli_epi64(_mm256_castpd_si256(equal), 63));
}
ISA_INLINE int64_t ISA(zeros)(vz z)
{
    int32_t lanes[8];
    int64_t total = 0;
    _mm256_storeu_si256((__m256i *)lanes, z);
    for (int i = 0; i < 8; i++)
        total += lanes[i];
    return total;
}
ISA_INLINE void ISA(store_f)(float *p, vf x) { _mm256_storeu_ps(p, x); }
ISA_INLINE void ISA(store_d)(double *p, vd x) { _mm256_storeu_pd(p, x); }

ISA_INLINE vf ISA(load_f32)(const float *p) { return _mm256_loadu_ps(p); }
ISA_INLINE vd ISA(load_f64)(const double *p) { return _mm256_loadu_pd(p); }
ISA_INLINE vf ISA(load_f16)(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
ISA_INLINE vf ISA(load_bf16)(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

ISA_INLINE vf ISA(join)(__m128 low, __m128 high)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
/* Towards zero with the last bit set where inexact: a second rounding, to fewer
 * bits, then gives what one rounding of the double would have given. */
ISA_INLINE __m128i ISA(halve)(__m256d mask)
{
    __m256 both = _mm256_castpd_ps(mask);
    return _mm_castps_si128(
        _mm_shuffle_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1), 0x88));
}
ISA_INLINE __m128 ISA(odd)(vd x)
{
    __m128 f = _mm256_cvtpd_ps(x);
    __m256d back = _mm256_cvtps_pd(f);
    __m128i over = ISA(halve)(_mm256_cmp_pd(ISA(abs_d)(back), ISA(abs_d)(x), _CMP_GT_OQ));
    __m128i inexact = ISA(halve)(_mm256_cmp_pd(back, x, _CMP_NEQ_UQ));
    __m128i bits = _mm_add_epi32(_mm_castps_si128(f), over);
    return _mm_castsi128_ps(_mm_or_si128(bits, _mm_and_si128(inexact, _mm_set1_epi32(1))));
}
ISA_INLINE void ISA(store_f16)(uint16_t *p, vd low, vd high)
{
    vf x = ISA(join)(ISA(odd)(low), ISA(odd)(high));
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
ISA_INLINE void ISA(store_bf16)(uint16_t *p, vd low, vd high)
{
    vf x = ISA(join)(ISA(odd)(low), ISA(odd)(high));
    __m256i bits = _mm256_castps_si256(x);
    __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
    up = _mm256_srli_epi32(up, 16);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
}
ISA_INLINE void ISA(fetch)(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
