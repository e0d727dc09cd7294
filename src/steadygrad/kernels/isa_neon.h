/* Primitives of loops.h for NEON on 64-bit ARM, where every processor has it. */
#include <arm_neon.h>

#include "half.h"

#define ISA_NAME "neon"
#define ISA(name) name##_neon
#define ISA_FN
#define ISA_INLINE static inline __attribute__((always_inline))
#define FLOATS 4
#define DOUBLES 2

#define vf float32x4_t
#define vd float64x2_t
#define vz uint32x4_t

ISA_INLINE vf ISA(abs_f)(vf x) { return vabsq_f32(x); }
ISA_INLINE vd ISA(abs_d)(vd x) { return vabsq_f64(x); }
/* maxnm is m where x is NaN */
ISA_INLINE vf ISA(max_f)(vf x, vf m) { return vmaxnmq_f32(x, m); }
ISA_INLINE vd ISA(max_d)(vd x, vd m) { return vmaxnmq_f64(x, m); }
ISA_INLINE vf ISA(zero_f)(void) { return vdupq_n_f32(0); }
ISA_INLINE vd ISA(zero_d)(void) { return vdupq_n_f64(0); }
ISA_INLINE vd ISA(set_d)(double x) { return vdupq_n_f64(x); }
ISA_INLINE vd ISA(mul_d)(vd a, vd b) { return vmulq_f64(a, b); }
ISA_INLINE vd ISA(fma_d)(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }
ISA_INLINE vd ISA(low)(vf x) { return vcvt_f64_f32(vget_low_f32(x)); }
ISA_INLINE vd ISA(high)(vf x) { return vcvt_high_f64_f32(x); }
ISA_INLINE vd ISA(widen)(const float *p) { return vcvt_f64_f32(vld1_f32(p)); }
ISA_INLINE void ISA(put_narrow)(float *p, vd x) { vst1_f32(p, vcvt_f32_f64(x)); }
ISA_INLINE vz ISA(no_zeros)(void) { return vdupq_n_u32(0); }
ISA_INLINE vz ISA(count_f)(vz z, vf x) { return vsubq_u32(z, vceqzq_f32(x)); }
ISA_INLINE vz ISA(count_d)(vz z, vd x)
{
    return vaddq_u32(z, vreinterpretq_u32_u64(vshrq_n_u64(vceqzq_f64(x), 63)));
}
ISA_INLINE int64_t ISA(zeros)(vz z) { return (int64_t)vaddlvq_u32(z); }
ISA_INLINE void ISA(store_f)(float *p, vf x) { vst1q_f32(p, x); }
ISA_INLINE void ISA(store_d)(double *p, vd x) { vst1q_f64(p, x); }

ISA_INLINE vf ISA(load_f32)(const float *p) { return vld1q_f32(p); }
ISA_INLINE vd ISA(load_f64)(const double *p) { return vld1q_f64(p); }
ISA_INLINE vf ISA(load_f16)(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
ISA_INLINE vf ISA(load_bf16)(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
/* fcvtxn rounds to odd in hardware: the second rounding is then the only one. */
ISA_INLINE vf ISA(odd)(vd low, vd high) { return vcvtx_high_f32_f64(vcvtx_f32_f64(low), high); }
ISA_INLINE void ISA(store_f16)(uint16_t *p, vd low, vd high)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(ISA(odd)(low, high))));
}
ISA_INLINE void ISA(store_bf16)(uint16_t *p, vd low, vd high)
{
    float x[4];
    vst1q_f32(x, ISA(odd)(low, high));
    for (int i = 0; i < 4; i++)
        p[i] = sg_bf16_of_float(x[i]);
}
ISA_INLINE void ISA(fetch)(const void *p) { __builtin_prefetch(p); }
