/* What is sampled of activations and weights: a part of each, evenly spread, chosen by its place
 * alone. Arithmetic on activations is in float, as the framework's own would be; sums are in
 * double.
 */
#include "core.h"

#include <math.h>
#include <stdlib.h>

#include "half.h"
#include "mode.h"

static int64_t divided_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* Distance between the rows taken, so that they hold about `most` elements together. */
static int64_t gap(int64_t rows, int64_t width, int64_t most)
{
    int64_t room = most / (width > 0 ? width : 1);
    return divided_up(rows, room > 0 ? room : 1);
}

double sg_deviation(const float *data, int64_t rows, int64_t width, int64_t most)
{
    int64_t step = gap(rows, width, most), taken = divided_up(rows, step) * width;
    double sum = 0, squares = 0;
    float_mode before = standard_mode();
    for (int64_t row = 0; row < rows; row += step)
        for (int64_t i = 0; i < width; i++)
            sum += (double)data[row * width + i];
    double mean = sum / (double)taken;
    for (int64_t row = 0; row < rows; row += step)
        for (int64_t i = 0; i < width; i++) {
            double away = (double)data[row * width + i] - mean;
            squares += away * away;
        }
    restore_mode(before);
    return sqrt(squares / (double)(taken - 1));
}

/* Units that are 0 everywhere; -1 when memory ran out. Only those that may still be are read on. */
static int64_t silent(const float *data, int64_t outer, int64_t units, int64_t inner)
{
    int64_t *waiting = malloc((size_t)(units + 1) * sizeof *waiting), left = units;
    if (!waiting)
        return -1;
    for (int64_t u = 0; u < units; u++)
        waiting[u] = u;
    for (int64_t o = 0; o < outer && left; o++) {
        int64_t still = 0;
        for (int64_t place = 0; place < left; place++) {
            const float *block = data + (o * units + waiting[place]) * inner;
            int64_t i = 0;
            while (i < inner && block[i] == 0)
                i++;
            if (i == inner)
                waiting[still++] = waiting[place];
        }
        left = still;
    }
    free(waiting);
    return left;
}

typedef struct {
    float low, high;
    int has_nan;
    int64_t taken, near_one, near_ends; /* |x| > 0.99; within 0.01 of 0 or 1 */
} spread;

/* A row is one place of `inner` in one of `outer`; all its units are taken. */
static spread spread_of(const float *data, int64_t outer, int64_t units, int64_t inner,
                        int64_t most)
{
    int64_t rows = outer * inner, step = gap(rows, units, most);
    spread s = {INFINITY, -INFINITY, 0, 0, 0, 0};
    for (int64_t row = 0; row < rows; row += step) {
        const float *first = data + row / inner * units * inner + row % inner;
        for (int64_t u = 0; u < units; u++) {
            float x = first[u * inner];
            s.low = x < s.low ? x : s.low;
            s.high = x > s.high ? x : s.high;
            s.has_nan |= x != x;
            s.near_one += fabsf(x) > 0.99f;
            s.near_ends += fabsf(x - 0.5f) > 0.49f;
        }
        s.taken += units;
    }
    return s;
}

static double saturated(const spread *s)
{
    if (s->has_nan || s->low < -1 || s->high > 1)
        return 0;
    if (s->low < 0)
        return (double)s->near_one / (double)s->taken;
    /* exact zeros below an exact 1 are a ReLU's: a sigmoid reaches 1 first */
    return s->low > 0 || s->high == 1 ? (double)s->near_ends / (double)s->taken : 0;
}

int sg_units(const float *data, int64_t outer, int64_t units, int64_t inner, int64_t most,
             double *dead, double *flat)
{
    float_mode before = standard_mode();
    int64_t count = silent(data, outer, units, inner);
    spread s = spread_of(data, outer, units, inner, most);
    restore_mode(before);
    *dead = (double)count / (double)units;
    *flat = saturated(&s);
    return count < 0 ? -1 : 0;
}

#define TAKE(kind, type, wide)                                                         \
    static void take_##kind(const void *data, int64_t size, int64_t step, double *out) \
    {                                                                                  \
        for (int64_t i = 0; i < size; i += step)                                       \
            *out++ = (double)wide(((const type *)data)[i]);                            \
    }

static double same(double x) { return x; }

TAKE(f32, float, same)
TAKE(f64, double, same)
TAKE(f16, uint16_t, sg_f16_to_float)
TAKE(bf16, uint16_t, sg_bf16_to_float)

typedef void (*taker)(const void *data, int64_t size, int64_t step, double *out);

static const taker take[] = {take_f32, take_f64, take_f16, take_bf16};

int64_t sg_taken(int64_t size, int64_t most)
{
    return size ? divided_up(size, divided_up(size, most)) : 0;
}

void sg_take(const sg_tensor *tensors, int64_t count, int64_t most, double *out)
{
    for (int64_t i = 0; i < count; i++) {
        const sg_tensor *t = tensors + i;
        if (!t->size)
            continue;
        take[t->type](t->data, t->size, divided_up(t->size, most), out);
        out += sg_taken(t->size, most);
    }
}
