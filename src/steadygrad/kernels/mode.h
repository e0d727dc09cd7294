/* The processor's floating-point mode while figures are made. */
#ifndef STEADYGRAD_MODE_H
#define STEADYGRAD_MODE_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

/* A framework may have switched subnormals off in this thread; figures must not
 * depend on that, nor on which thread measures. */
#if defined(__x86_64__) && defined(__GNUC__)
typedef unsigned float_mode;
static inline float_mode standard_mode(void)
{
    float_mode before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* round to nearest, no flushing, no traps */
    return before;
}
static inline void restore_mode(float_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t float_mode;
static inline float_mode standard_mode(void)
{
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
}
static inline void restore_mode(float_mode before)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
#else
typedef int float_mode;
static inline float_mode standard_mode(void) { return 0; }
static inline void restore_mode(float_mode before) { (void)before; }
#endif

#endif
