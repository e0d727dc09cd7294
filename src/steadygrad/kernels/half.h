/* Conversions of 16-bit floats for loops that have no instruction for them. */
#ifndef STEADYGRAD_HALF_H
#define STEADYGRAD_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t sg_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float sg_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float sg_bf16_to_float(uint16_t h) { return sg_float((uint32_t)h << 16); }

static inline uint16_t sg_bf16_of_float(float x)
{
    uint32_t bits = sg_bits(x);
    if (x != x)
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float sg_f16_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00)
        return sg_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest < 0x400) /* subnormal: a count of 2^-24 */
        return sign ? -(float)rest * 0x1p-24f : (float)rest * 0x1p-24f;
    return sg_float(sign | ((rest << 13) + 0x38000000));
}

static inline uint16_t sg_f16_of_float(float x)
{
    uint32_t bits = sg_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest >= 0x7f800000)
        return (uint16_t)(sign | (rest > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (rest >= 0x477ff000) /* rounds over 65504 */
        return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded count in the low bits */
        return (uint16_t)(sign | (sg_bits(sg_float(rest) + 0.5f) - sg_bits(0.5f)));
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}

/* Towards zero with the last bit set where inexact: a second rounding, to fewer
 * bits, then gives what one rounding of the double would have given. */
static inline float sg_float_odd(double x)
{
    float f = (float)x;
    if ((double)f == x || x != x)
        return f;
    uint32_t bits = sg_bits(f);
    return sg_float((fabs((double)f) > fabs(x) ? bits - 1 : bits) | 1);
}

#endif
