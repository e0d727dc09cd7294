/* Primitives of loops.h in plain C, four floats wide: the shape compilers turn into
 * whatever vectors the target has. */
#include "half.h"

#define ISA_NAME "portable"
#define ISA(name) name##_portable
#define ISA_FN
#define ISA_INLINE static inline
#define FLOATS 4
#define DOUBLES 2

typedef struct {
    float at[4];
} sg_f4;
typedef struct {
    double at[2];
} sg_d2;
#define vf sg_f4
#define vd sg_d2
#define vz int64_t
#define EACH(type, n, value)      \
    type out;                     \
    for (int i = 0; i < (n); i++) \
        out.at[i] = (value);      \
    return out

ISA_INLINE vf ISA(abs_f)(vf x) { EACH(vf, 4, fabsf(x.at[i])); }
ISA_INLINE vd ISA(abs_d)(vd x) { EACH(vd, 2, fabs(x.at[i])); }
/* m where x is NaN */
ISA_INLINE vf ISA(max_f)(vf x, vf m) { EACH(vf, 4, x.at[i] > m.at[i] ? x.at[i] : m.at[i]); }
ISA_INLINE vd ISA(max_d)(vd x, vd m) { EACH(vd, 2, x.at[i] > m.at[i] ? x.at[i] : m.at[i]); }
ISA_INLINE vf ISA(zero_f)(void) { EACH(vf, 4, 0); }
ISA_INLINE vd ISA(zero_d)(void) { EACH(vd, 2, 0); }
ISA_INLINE vd ISA(set_d)(double x) { EACH(vd, 2, x); }
ISA_INLINE vd ISA(mul_d)(vd a, vd b) { EACH(vd, 2, a.at[i] * b.at[i]); }
ISA_INLINE vd ISA(fma_d)(vd a, vd b, vd c) { EACH(vd, 2, a.at[i] * b.at[i] + c.at[i]); }
ISA_INLINE vd ISA(low)(vf x) { EACH(vd, 2, x.at[i]); }
ISA_INLINE vd ISA(high)(vf x) { EACH(vd, 2, x.at[i + 2]); }
ISA_INLINE vd ISA(widen)(const float *p) { EACH(vd, 2, p[i]); }
ISA_INLINE void ISA(put_narrow)(float *p, vd x)
{
    for (int i = 0; i < 2; i++)
        p[i] = (float)x.at[i];
}
ISA_INLINE vz ISA(no_zeros)(void) { return 0; }
ISA_INLINE vz ISA(count_f)(vz z, vf x)
{
    return z + (x.at[0] == 0) + (x.at[1] == 0) + (x.at[2] == 0) + (x.at[3] == 0);
}
ISA_INLINE vz ISA(count_d)(vz z, vd x) { return z + (x.at[0] == 0) + (x.at[1] == 0); }
ISA_INLINE int64_t ISA(zeros)(vz z) { return z; }
ISA_INLINE void ISA(store_f)(float *p, vf x) { memcpy(p, x.at, sizeof x); }
ISA_INLINE void ISA(store_d)(double *p, vd x) { memcpy(p, x.at, sizeof x); }

ISA_INLINE vf ISA(load_f32)(const float *p) { EACH(vf, 4, p[i]); }
ISA_INLINE vd ISA(load_f64)(const double *p) { EACH(vd, 2, p[i]); }
ISA_INLINE vf ISA(load_f16)(const uint16_t *p) { EACH(vf, 4, sg_f16_to_float(p[i])); }
ISA_INLINE vf ISA(load_bf16)(const uint16_t *p) { EACH(vf, 4, sg_bf16_to_float(p[i])); }

#define PUT(convert)                    \
    for (int i = 0; i < 2; i++) {       \
        p[i] = convert(low.at[i]);      \
        p[i + 2] = convert(high.at[i]); \
    }
#define F16_ONCE(x) sg_f16_of_float(sg_float_odd(x))
#define BF16_ONCE(x) sg_bf16_of_float(sg_float_odd(x))
ISA_INLINE void ISA(store_f16)(uint16_t *p, vd low, vd high) { PUT(F16_ONCE); }
ISA_INLINE void ISA(store_bf16)(uint16_t *p, vd low, vd high) { PUT(BF16_ONCE); }
ISA_INLINE void ISA(fetch)(const void *p) { (void)p; }
