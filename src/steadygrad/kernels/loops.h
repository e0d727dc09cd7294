/* The loops, written once over the primitives of an isa_*.h included before.
 *
 * Whatever the width of the vectors, element i of a chunk goes to lane i % 32 of the
 * sums, and the lanes are joined in one order: float32, float16 and bfloat16, whose
 * squares are exact in float64, give the same bits with every instruction set.
 */

#define LANES 32
/* Vectors of doubles from a group of narrow elements: of float32 straight from memory,
 * which saves a shuffle; of the others from what was widened to float32. */
#define LOW_f32(x, v) ISA(widen)(x)
#define HIGH_f32(x, v) ISA(widen)((x) + DOUBLES)
#define LOW_f16(x, v) ISA(low)(v)
#define HIGH_f16(x, v) ISA(high)(v)
#define LOW_bf16 LOW_f16
#define HIGH_bf16 HIGH_f16

static ISA_FN double ISA(join_lanes)(double *lanes)
{
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

/* A chunk that holds NaN or inf: its sum is of no use, the finite maximum is. */
#define RECOUNT(kind, type, to_double)                                                 \
    static ISA_FN void ISA(recount_##kind)(const type *x, int64_t size, sg_part *part) \
    {                                                                                  \
        double largest = 0;                                                            \
        for (int64_t i = 0; i < size; i++) {                                           \
            double a = fabs((double)to_double(x[i]));                                  \
            if (a <= DBL_MAX) {                                                        \
                largest = a > largest ? a : largest;                                   \
            } else {                                                                   \
                part->nonfinite++;                                                     \
                part->has_nan |= a != a;                                               \
            }                                                                          \
        }                                                                              \
        part->max_abs = largest;                                                       \
    }

RECOUNT(f32, float, )
RECOUNT(f64, double, )
RECOUNT(f16, uint16_t, sg_f16_to_float)
RECOUNT(bf16, uint16_t, sg_bf16_to_float)

/* float32, float16 and bfloat16: widened to float64, where no sum of theirs overflows. */
#define READ_NARROW(kind, type)                                                            \
    ISA_INLINE void ISA(step_##kind)(const type *x, vd *sums, vf *maxima, vz *zeros)       \
    {                                                                                      \
        for (int g = 0; g < LANES / FLOATS; g++) {                                         \
            vf a = ISA(abs_f)(ISA(load_##kind)(x + g * FLOATS));                           \
            vd low = LOW_##kind(x + g * FLOATS, a), high = HIGH_##kind(x + g * FLOATS, a); \
            maxima[g] = ISA(max_f)(a, maxima[g]);                                          \
            *zeros = ISA(count_f)(*zeros, a);                                              \
            sums[2 * g] = ISA(fma_d)(low, low, sums[2 * g]);                               \
            sums[2 * g + 1] = ISA(fma_d)(high, high, sums[2 * g + 1]);                     \
        }                                                                                  \
    }                                                                                      \
    static ISA_FN void ISA(read_##kind)(const void *data, int64_t size, const char *ahead, \
                                        sg_part *part)                                     \
    {                                                                                      \
        const type *x = data;                                                              \
        vd sums[LANES / DOUBLES];                                                          \
        vf maxima[LANES / FLOATS];                                                         \
        vz zeros = ISA(no_zeros)();                                                        \
        for (int g = 0; g < LANES / FLOATS; g++)                                           \
            maxima[g] = ISA(zero_f)();                                                     \
        for (int g = 0; g < LANES / DOUBLES; g++)                                          \
            sums[g] = ISA(zero_d)();                                                       \
        int64_t body = size / LANES * LANES, rest = size - body;                           \
        for (int64_t i = 0; i < body; i += LANES) {                                        \
            ISA(fetch)(ahead + i * (int64_t)sizeof(type));                                 \
            if (sizeof(type) == 4)                                                         \
                ISA(fetch)(ahead + i * (int64_t)sizeof(type) + 64);                        \
            ISA(step_##kind)(x + i, sums, maxima, &zeros);                                 \
        }                                                                                  \
        if (rest) {                                                                        \
            type tail[LANES] = {0};                                                        \
            memcpy(tail, x + body, (size_t)rest * sizeof(type));                           \
            ISA(step_##kind)(tail, sums, maxima, &zeros);                                  \
        }                                                                                  \
        double lanes[LANES];                                                               \
        float peaks[FLOATS];                                                               \
        for (int g = 0; g < LANES / DOUBLES; g++)                                          \
            ISA(store_d)(lanes + g * DOUBLES, sums[g]);                                    \
        for (int g = 1; g < LANES / FLOATS; g++)                                           \
            maxima[0] = ISA(max_f)(maxima[g], maxima[0]);                                  \
        ISA(store_f)(peaks, maxima[0]);                                                    \
        part->max_abs = 0;                                                                 \
        for (int i = 0; i < FLOATS; i++)                                                   \
            part->max_abs = peaks[i] > part->max_abs ? peaks[i] : part->max_abs;           \
        part->sum = ISA(join_lanes)(lanes);                                                \
        part->zeros = ISA(zeros)(zeros) - (rest ? LANES - rest : 0);                       \
        if (!(part->sum <= DBL_MAX))                                                       \
            ISA(recount_##kind)(x, size, part);                                            \
    }

READ_NARROW(f32, float)
READ_NARROW(f16, uint16_t)
READ_NARROW(bf16, uint16_t)

ISA_INLINE void ISA(step_f64)(const double *x, vd scale, vd *sums, vd *maxima, vz *zeros)
{
    for (int g = 0; g < LANES / DOUBLES; g++) {
        vd a = ISA(abs_d)(ISA(load_f64)(x + g * DOUBLES));
        vd scaled = ISA(mul_d)(a, scale);
        maxima[g % 4] = ISA(max_d)(a, maxima[g % 4]);
        *zeros = ISA(count_d)(*zeros, a);
        sums[g] = ISA(fma_d)(scaled, scaled, sums[g]);
    }
}

static ISA_FN void ISA(pass_f64)(const double *x, int64_t size, const char *ahead, double scale,
                                 sg_part *part)
{
    vd sums[LANES / DOUBLES], maxima[4], times = ISA(set_d)(scale);
    vz zeros = ISA(no_zeros)();
    for (int g = 0; g < 4; g++)
        maxima[g] = ISA(zero_d)();
    for (int g = 0; g < LANES / DOUBLES; g++)
        sums[g] = ISA(zero_d)();
    int64_t body = size / LANES * LANES, rest = size - body;
    for (int64_t i = 0; i < body; i += LANES) {
        for (int line = 0; line < 4; line++)
            ISA(fetch)(ahead + i * (int64_t)sizeof *x + 64 * line);
        ISA(step_f64)(x + i, times, sums, maxima, &zeros);
    }
    if (rest) {
        double tail[LANES] = {0};
        memcpy(tail, x + body, (size_t)rest * sizeof *x);
        ISA(step_f64)(tail, times, sums, maxima, &zeros);
    }
    double lanes[LANES], peaks[4 * DOUBLES];
    for (int g = 0; g < LANES / DOUBLES; g++)
        ISA(store_d)(lanes + g * DOUBLES, sums[g]);
    for (int g = 0; g < 4; g++)
        ISA(store_d)(peaks + g * DOUBLES, maxima[g]);
    part->max_abs = 0;
    for (int i = 0; i < 4 * DOUBLES; i++)
        part->max_abs = peaks[i] > part->max_abs ? peaks[i] : part->max_abs;
    part->sum = ISA(join_lanes)(lanes);
    part->zeros = ISA(zeros)(zeros) - (rest ? LANES - rest : 0);
}

/* Squares leave float64's range only far out: the second pass over the chunk, which
 * is then still in the cache, is for those. */
static ISA_FN void ISA(read_f64)(const void *data, int64_t size, const char *ahead, sg_part *part)
{
    ISA(pass_f64)(data, size, ahead, 1.0, part);
    if (!(part->sum <= DBL_MAX))
        ISA(recount_f64)(data, size, part);
    double unit = sg_unit(part->max_abs);
    if (unit != 1.0 && part->nonfinite == 0) {
        ISA(pass_f64)(data, size, data, 1.0 / unit, part);
        part->unit = unit;
    }
}

/* The group that ends a chunk is worked on in a copy, so that nothing past it is touched. */
#define SCALE(kind, type, step)                                                                    \
    static ISA_FN void ISA(scale_##kind)(void *data, int64_t size, const char *ahead, double coef) \
    {                                                                                              \
        type *x = data, tail[LANES] = {0};                                                         \
        vd times = ISA(set_d)(coef);                                                               \
        int64_t body = size / LANES * LANES, rest = size - body;                                   \
        for (int64_t i = 0; i < body; i += LANES) {                                                \
            for (int64_t byte = 0; byte < LANES * (int64_t)sizeof(type); byte += 64)               \
                ISA(fetch)(ahead + i * (int64_t)sizeof(type) + byte);                              \
            for (int at = 0; at < LANES; at += step)                                               \
                ISA(times_##kind)(x + i + at, times);                                              \
        }                                                                                          \
        memcpy(tail, x + body, (size_t)rest * sizeof(type));                                       \
        for (int at = 0; at < rest; at += step)                                                    \
            ISA(times_##kind)(tail + at, times);                                                   \
        memcpy(x + body, tail, (size_t)rest * sizeof(type));                                       \
    }

#define TIMES_HALF(kind)                                                                     \
    ISA_INLINE void ISA(times_##kind)(uint16_t *x, vd coef)                                  \
    {                                                                                        \
        vf v = ISA(load_##kind)(x);                                                          \
        ISA(store_##kind)(x, ISA(mul_d)(ISA(low)(v), coef), ISA(mul_d)(ISA(high)(v), coef)); \
    }

ISA_INLINE void ISA(times_f32)(float *x, vd coef)
{
    ISA(put_narrow)(x, ISA(mul_d)(ISA(widen)(x), coef));
}
ISA_INLINE void ISA(times_f64)(double *x, vd coef)
{
    ISA(store_d)(x, ISA(mul_d)(ISA(load_f64)(x), coef));
}
TIMES_HALF(f16)
TIMES_HALF(bf16)

SCALE(f32, float, DOUBLES)
SCALE(f64, double, DOUBLES)
SCALE(f16, uint16_t, FLOATS)
SCALE(bf16, uint16_t, FLOATS)

/* A real coefficient multiplies both parts. */
static ISA_FN void ISA(scale_c64)(void *data, int64_t size, const char *ahead, double coef)
{
    ISA(scale_f32)(data, 2 * size, ahead, coef);
}
static ISA_FN void ISA(scale_c128)(void *data, int64_t size, const char *ahead, double coef)
{
    ISA(scale_f64)(data, 2 * size, ahead, coef);
}

#define CAT(a, b) a##b
const sg_loops ISA(sg_loops) = {
    ISA_NAME,
    {ISA(read_f32), ISA(read_f64), ISA(read_f16), ISA(read_bf16), sg_read_c64, sg_read_c128},
    {ISA(scale_f32), ISA(scale_f64), ISA(scale_f16), ISA(scale_bf16), ISA(scale_c64),
     ISA(scale_c128)},
};
