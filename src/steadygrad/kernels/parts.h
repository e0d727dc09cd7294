/* What the loops of every instruction set share. */
#ifndef STEADYGRAD_PARTS_H
#define STEADYGRAD_PARTS_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "core.h"
#include "half.h"

/* The power of two by which float64 values up to `largest` are divided before they
 * are squared. At 1 no square overflows, and one that underflows is lost beside the
 * largest; the others bring every value of such a chunk into that range. */
static inline double sg_unit(double largest)
{
    if (largest > 0x1p480)
        return 0x1p600;
    return largest > 0 && largest < 0x1p-400 ? 0x1p-600 : 1.0;
}

extern const sg_loops sg_loops_avx512, sg_loops_avx2, sg_loops_neon, sg_loops_portable;

void sg_read_c64(const void *data, int64_t size, const char *ahead, sg_part *part);
void sg_read_c128(const void *data, int64_t size, const char *ahead, sg_part *part);

/* Replaces unit and sum, which are those of p = 2, by those of another p. */
void sg_power_sum(const void *data, int64_t size, int type, double p, sg_part *part);

#endif
