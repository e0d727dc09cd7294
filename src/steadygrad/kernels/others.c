/* Complex tensors and p-norms other than 2 and inf: plain loops, since either costs
 * arithmetic that no width of vector hides.
 *
 * A complex element counts as one: its magnitude is the figure, it is zero when both
 * parts are, and not finite when one part is not, or when no double holds its magnitude.
 */
#include "parts.h"

#define LANES 8

#define READ_COMPLEX(kind, type)                                                                 \
    static void pass_##kind(const type *z, int64_t size, double scale, sg_part *part)            \
    {                                                                                            \
        double sums[LANES] = {0}, largest = 0;                                                   \
        int64_t zeros = 0, at = 0;                                                               \
        for (int64_t i = 0; i < size; i++) {                                                     \
            double re = z[2 * i] * scale, im = z[2 * i + 1] * scale;                             \
            double square = re * re + im * im;                                                   \
            sums[i % LANES] += square;                                                           \
            at = square > largest ? i : at;                                                      \
            largest = square > largest ? square : largest;                                       \
            zeros += z[2 * i] == 0 && z[2 * i + 1] == 0;                                         \
        }                                                                                        \
        part->sum = 0;                                                                           \
        for (int i = 0; i < LANES; i++)                                                          \
            part->sum += sums[i];                                                                \
        part->max_abs = hypot(z[2 * at], z[2 * at + 1]);                                         \
        part->zeros = zeros;                                                                     \
    }                                                                                            \
    /* The largest part tells the unit: a magnitude's square could have over- or underflowed. */ \
    static double scan_##kind(const type *z, int64_t size, sg_part *part)                        \
    {                                                                                            \
        double part_max = 0, largest = 0;                                                        \
        for (int64_t i = 0; i < size; i++) {                                                     \
            double re = fabs((double)z[2 * i]), im = fabs((double)z[2 * i + 1]);                 \
            double magnitude = hypot(re, im);                                                    \
            if (magnitude <= DBL_MAX) {                                                          \
                largest = magnitude > largest ? magnitude : largest;                             \
                part_max = re > part_max ? re : part_max;                                        \
                part_max = im > part_max ? im : part_max;                                        \
            } else {                                                                             \
                part->nonfinite++;                                                               \
                part->has_nan |= re != re || im != im;                                           \
            }                                                                                    \
        }                                                                                        \
        part->max_abs = largest;                                                                 \
        return part_max;                                                                         \
    }                                                                                            \
    void sg_read_##kind(const void *data, int64_t size, const char *ahead, sg_part *part)        \
    {                                                                                            \
        (void)ahead;                                                                             \
        pass_##kind(data, size, 1.0, part);                                                      \
        if (part->sum <= DBL_MAX && sg_unit(part->max_abs) == 1.0 && part->max_abs > 0)          \
            return;                                                                              \
        double unit = sg_unit(scan_##kind(data, size, part));                                    \
        if (unit != 1.0 && part->nonfinite == 0) {                                               \
            pass_##kind(data, size, 1.0 / unit, part);                                           \
            part->unit = unit;                                                                   \
        }                                                                                        \
    }

READ_COMPLEX(c64, float)
READ_COMPLEX(c128, double)

static double magnitude(const void *data, int64_t i, int type)
{
    switch (type) {
    case SG_F32: return fabs((double)((const float *)data)[i]);
    case SG_F64: return fabs(((const double *)data)[i]);
    case SG_F16: return fabs((double)sg_f16_to_float(((const uint16_t *)data)[i]));
    case SG_BF16: return fabs((double)sg_bf16_to_float(((const uint16_t *)data)[i]));
    case SG_C64: {
        const float *z = (const float *)data + 2 * i;
        return sqrt((double)z[0] * z[0] + (double)z[1] * z[1]);
    }
    default: {
        const double *z = (const double *)data + 2 * i;
        return hypot(z[0], z[1]);
    }
    }
}

/* Over the largest magnitude each ratio is at most 1, and one is 1: nothing that
 * counts under- or overflows, whatever p. */
void sg_power_sum(const void *data, int64_t size, int type, double p, sg_part *part)
{
    double largest = part->max_abs, sums[LANES] = {0};
    part->unit = largest > 0 ? largest : 1.0;
    part->sum = 0;
    for (int64_t i = 0; largest > 0 && i < size; i++) {
        double ratio = magnitude(data, i, type) / largest;
        sums[i % LANES] += p == 1.0 ? ratio : p == 0.5 ? sqrt(ratio) : pow(ratio, p);
    }
    for (int i = 0; i < LANES; i++)
        part->sum += sums[i];
}
