/* The measuring and scaling core: plain C, knows neither Python nor a framework.
 *
 * A caller describes tensors (pointer, size, type, and strides where the memory has
 * gaps) and gets four figures for each from one read. Work is cut into chunks whose
 * borders depend on the tensor alone and joined in their order, so the bits of a
 * result do not depend on the number of threads.
 */
#ifndef STEADYGRAD_CORE_H
#define STEADYGRAD_CORE_H

#include <stddef.h>
#include <stdint.h>

enum { SG_F32, SG_F64, SG_F16, SG_BF16, SG_C64, SG_C128, SG_TYPES };

/* shape and strides (in elements) are read only where rank > 0; rank 0 is flat memory. */
typedef struct {
    void *data;
    int64_t size;
    const int64_t *shape;
    const int64_t *strides;
    int32_t rank;
    int32_t type;
} sg_tensor;

typedef struct {
    double *norms;   /* p-norm; nan where the tensor holds NaN, else inf where it holds inf */
    double *max_abs; /* over finite elements */
    int64_t *nonfinite;
    int64_t *zeros;
} sg_figures;

/* What one chunk gives. The p-norm of its elements is unit * sum^(1/p). */
typedef struct {
    double unit;
    double sum;
    double max_abs;
    int64_t nonfinite;
    int64_t zeros;
    int has_nan;
} sg_part;

/* `ahead` is what to fetch into the cache meanwhile: the byte that is wanted at data + i
 * is told of at ahead + i. It may lie anywhere, since a fetch never faults. */
typedef void (*sg_reader)(const void *data, int64_t size, const char *ahead, sg_part *part);
typedef void (*sg_scaler)(void *data, int64_t size, const char *ahead, double coef);

/* One set of loops for one instruction set, indexed by type. */
typedef struct {
    const char *name;
    sg_reader read[SG_TYPES];
    sg_scaler scale[SG_TYPES];
} sg_loops;

/* The sets that this processor runs, best first; NULL past the last. */
const sg_loops *sg_loops_at(int rank);

/* 0, or -1 when memory for the chunks ran out. */
int sg_read(const sg_tensor *tensors, int64_t count, double p, int threads, const sg_loops *loops,
            sg_figures out);

/* The p-norm of all tensors taken as one vector, from theirs. */
double sg_total(const double *norms, int64_t count, double p);

/* Multiplies in place; a tensor whose coefficient is 1 is not written. */
int sg_scale(const sg_tensor *tensors, int64_t count, const double *coefs, int threads,
             const sg_loops *loops);

/* Adds up the rows of values that have the same key; `out` has room for all of them. The
 * rows come in the order in which their keys come first. Types up to SG_BF16.
 * Returns how many there are, or -1 when memory ran out. */
int64_t sg_sum_rows(const int64_t *keys, int64_t entries, const void *values, int64_t width,
                    int type, double *out);

int64_t sg_item_size(int type);

/* The deviation, by n - 1, of about `most` elements of evenly spread rows. */
double sg_deviation(const float *data, int64_t rows, int64_t width, int64_t most);

/* An activation [outer, units, inner]: the share of units that are 0 everywhere, and the share of
 * about `most` elements at the flat ends of a tanh or sigmoid, 0 for what is neither by its range.
 * 0, or -1 when memory ran out. */
int sg_units(const float *data, int64_t outer, int64_t units, int64_t inner, int64_t most,
             double *dead, double *flat);

/* At most `most` elements of each tensor, evenly spread, side by side: flat memory, types up to
 * SG_BF16. sg_taken says how many of one. */
void sg_take(const sg_tensor *tensors, int64_t count, int64_t most, double *out);
int64_t sg_taken(int64_t size, int64_t most);

/* Bytes from which threads are worth their start, and what each must have to do. */
#define SG_THREADING_FROM ((int64_t)4 << 20)
#define SG_BYTES_A_THREAD ((int64_t)2 << 20)

/* Long enough for the hardware's prefetching to get going, short enough for a second
 * pass to find the chunk in the cache. Gathered chunks lie on a stack. */
#define SG_CHUNK_BYTES 131072
/* How far ahead to fetch: past the page where the hardware stops. */
#define SG_AHEAD_BYTES 8192
#define SG_GATHER_BYTES 32768

#endif
