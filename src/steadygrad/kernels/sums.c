/* Rows of a sparse tensor that stand for the same place, added up in double, in the order in
 * which they come. A place's row is found in a table of open addresses, at most half full.
 */
#include "core.h"

#include <stdlib.h>

#include "half.h"
#include "mode.h"

static double same(double x) { return x; }

#define ADD_ROW(kind, type, wide)                                                       \
    static void put_##kind(double *to, const void *values, int64_t from, int64_t width) \
    {                                                                                   \
        const type *row = (const type *)values + from;                                  \
        for (int64_t i = 0; i < width; i++)                                             \
            to[i] = (double)wide(row[i]);                                               \
    }                                                                                   \
    static void add_##kind(double *to, const void *values, int64_t from, int64_t width) \
    {                                                                                   \
        const type *row = (const type *)values + from;                                  \
        for (int64_t i = 0; i < width; i++)                                             \
            to[i] += (double)wide(row[i]);                                              \
    }

ADD_ROW(f32, float, same)
ADD_ROW(f64, double, same)
ADD_ROW(f16, uint16_t, sg_f16_to_float)
ADD_ROW(bf16, uint16_t, sg_bf16_to_float)

typedef void (*row_mover)(double *to, const void *values, int64_t from, int64_t width);

static const row_mover put[] = {put_f32, put_f64, put_f16, put_bf16};
static const row_mover add_to[] = {add_f32, add_f64, add_f16, add_bf16};

typedef struct {
    int64_t *rows; /* 1 + the row of the key that hashes to here or just before; 0 for none */
    int64_t *keys; /* of each row */
    int64_t count;
    int bits;
} table;

static int make(table *t, int64_t entries)
{
    t->count = 0;
    t->bits = 4;
    while ((int64_t)1 << t->bits < 2 * entries)
        t->bits++;
    t->rows = calloc((size_t)1 << t->bits, sizeof *t->rows);
    t->keys = malloc((size_t)(entries + 1) * sizeof *t->keys);
    return t->rows && t->keys ? 0 : -1;
}

/* The row of a key, and whether it is new. */
static int64_t row_of(table *t, int64_t key, int *fresh)
{
    uint64_t mask = ((uint64_t)1 << t->bits) - 1;
    uint64_t at = (uint64_t)key * 0x9e3779b97f4a7c15u >> (64 - t->bits);
    while (t->rows[at] && t->keys[t->rows[at] - 1] != key)
        at = (at + 1) & mask;
    *fresh = !t->rows[at];
    if (*fresh) {
        t->keys[t->count] = key;
        t->rows[at] = ++t->count;
    }
    return t->rows[at] - 1;
}

int64_t sg_sum_rows(const int64_t *keys, int64_t entries, const void *values, int64_t width,
                    int type, double *out)
{
    table t;
    int fresh, failed = make(&t, entries);
    float_mode before = standard_mode();
    for (int64_t i = 0; i < entries && !failed; i++) {
        int64_t row = row_of(&t, keys[i], &fresh);
        (fresh ? put : add_to)[type](out + row * width, values, i * width, width);
    }
    restore_mode(before);
    free(t.rows);
    free(t.keys);
    return failed ? -1 : t.count;
}
