/* Chunks, their order, and the threads that share them. */
#include "core.h"

#include <stdlib.h>

#include "mode.h"
#include "parts.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define HAS_THREADS 1
#endif

#if defined(__x86_64__) && defined(__GNUC__)
static int has_f16c(void)
{
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static int find_loops(const sg_loops **found)
{
    int n = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found[n++] = &sg_loops_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        found[n++] = &sg_loops_avx2;
    found[n++] = &sg_loops_portable;
    return n;
}
#else
static int find_loops(const sg_loops **found)
{
    int n = 0;
#if defined(__aarch64__) && defined(__GNUC__)
    found[n++] = &sg_loops_neon;
#endif
    found[n++] = &sg_loops_portable;
    return n;
}
#endif

/* Found once: cpuid takes tens of microseconds under a hypervisor. Threads that race here
 * find the same. */
const sg_loops *sg_loops_at(int rank)
{
    static const sg_loops *found[4];
    static int count;
    int n = __atomic_load_n(&count, __ATOMIC_ACQUIRE);
    if (n == 0) {
        n = find_loops(found);
        __atomic_store_n(&count, n, __ATOMIC_RELEASE);
    }
    return rank >= 0 && rank < n ? found[rank] : NULL;
}

int64_t sg_item_size(int type)
{
    static const int64_t sizes[SG_TYPES] = {4, 8, 2, 2, 8, 16};
    return sizes[type];
}

static int64_t chunk_size(const sg_tensor *t)
{
    return (t->rank ? SG_GATHER_BYTES : SG_CHUNK_BYTES) / sg_item_size(t->type);
}

static int64_t chunk_count(const sg_tensor *t)
{
    int64_t size = chunk_size(t);
    return (t->size + size - 1) / size;
}

/* ---- tensors with gaps: gathered in logical order, a row of the last dimension at a time ---- */

typedef struct {
    const sg_tensor *tensor;
    int64_t index[64];
    char *at;
} walk;

static void walk_to(walk *w, const sg_tensor *t, int64_t element)
{
    int64_t item = sg_item_size(t->type);
    w->tensor = t;
    w->at = t->data;
    for (int d = t->rank - 1; d >= 0; d--) {
        w->index[d] = element % t->shape[d];
        element /= t->shape[d];
        w->at += w->index[d] * t->strides[d] * item;
    }
}

/* Steps over `run` elements of the current row, of which at least as many are left. */
static void walk_on(walk *w, int64_t run, int64_t item)
{
    const sg_tensor *t = w->tensor;
    for (int d = t->rank - 1; d >= 0; d--, run = 1) {
        w->at += run * t->strides[d] * item;
        w->index[d] += run;
        if (w->index[d] < t->shape[d])
            return;
        w->at -= t->shape[d] * t->strides[d] * item;
        w->index[d] = 0;
    }
}

#define MOVE(type, to, to_step, from, from_step)         \
    for (int64_t i = 0; i < run; i++)                    \
    memcpy((to) + i * (to_step) * (int64_t)sizeof(type), \
           (from) + i * (from_step) * (int64_t)sizeof(type), sizeof(type))

static void move_run(char *to, int64_t to_step, const char *from, int64_t from_step, int64_t run,
                     int64_t item)
{
    if (item == 2)
        MOVE(uint16_t, to, to_step, from, from_step);
    else if (item == 4)
        MOVE(uint32_t, to, to_step, from, from_step);
    else if (item == 8)
        MOVE(uint64_t, to, to_step, from, from_step);
    else
        MOVE(uint64_t[2], to, to_step, from, from_step);
}

static void exchange(const sg_tensor *t, int64_t first, int64_t size, char *buffer, int storing)
{
    int64_t item = sg_item_size(t->type), last = t->rank - 1, step = t->strides[last];
    walk w;
    walk_to(&w, t, first);
    while (size) {
        int64_t run = t->shape[last] - w.index[last];
        run = run < size ? run : size;
        if (storing)
            move_run(w.at, step, buffer, 1, run, item);
        else
            move_run(buffer, 1, w.at, step, run, item);
        walk_on(&w, run, item);
        buffer += run * item;
        size -= run;
    }
}

/* ---- one chunk ---- */

typedef struct {
    const sg_tensor *tensors;
    int64_t count;
    double p;
    const double *coefs;
    const sg_loops *loops;
} job;

static int64_t size_at(const sg_tensor *t, int64_t chunk)
{
    int64_t size = chunk_size(t), left = t->size - chunk * size;
    return left < size ? left : size;
}

/* What to fetch while a flat chunk is worked on: further on in a long tensor, but the
 * tensor to come where this one is over before that. */
static const char *ahead_of(const job *j, const sg_tensor *t, int64_t next, const char *data)
{
    if (t->size * sg_item_size(t->type) > 2 * SG_AHEAD_BYTES || next < 0 || next >= j->count)
        return data + SG_AHEAD_BYTES;
    return j->tensors[next].data;
}

static int needs_powers(const job *j, const sg_part *part)
{
    return j->p != 2.0 && j->p != INFINITY && part->nonfinite == 0;
}

/* Apart from `measure` for its large frame, which flat tensors need not pay for. */
static __attribute__((noinline)) void read_gathered(const job *j, const sg_tensor *t, int64_t first,
                                                    int64_t size, sg_part *part)
{
    char buffer[SG_GATHER_BYTES];
    exchange(t, first, size, buffer, 0);
    j->loops->read[t->type](buffer, size, buffer, part);
    if (needs_powers(j, part))
        sg_power_sum(buffer, size, t->type, j->p, part);
}

static void measure(const job *j, int64_t tensor, int64_t chunk, sg_part *part)
{
    const sg_tensor *t = j->tensors + tensor;
    int64_t first = chunk * chunk_size(t), size = size_at(t, chunk);
    *part = (sg_part){.unit = 1.0};
    if (t->rank) {
        read_gathered(j, t, first, size, part);
        return;
    }
    const char *data = (const char *)t->data + first * sg_item_size(t->type);
    j->loops->read[t->type](data, size, ahead_of(j, t, tensor + 1, data), part);
    if (needs_powers(j, part))
        sg_power_sum(data, size, t->type, j->p, part);
}

static __attribute__((noinline)) void scale_gathered(const job *j, const sg_tensor *t,
                                                     int64_t first, int64_t size, double coef)
{
    char buffer[SG_GATHER_BYTES];
    exchange(t, first, size, buffer, 0);
    j->loops->scale[t->type](buffer, size, buffer, coef);
    exchange(t, first, size, buffer, 1);
}

static void multiply(const job *j, int64_t tensor, int64_t chunk, int64_t next)
{
    const sg_tensor *t = j->tensors + tensor;
    int64_t first = chunk * chunk_size(t), size = size_at(t, chunk);
    if (t->rank) {
        scale_gathered(j, t, first, size, j->coefs[tensor]);
        return;
    }
    char *data = (char *)t->data + first * sg_item_size(t->type);
    j->loops->scale[t->type](data, size, ahead_of(j, t, next, data), j->coefs[tensor]);
}

/* ---- joining chunks, in their order ---- */

typedef struct {
    sg_part part;
    double lost; /* what rounding took from the sum so far */
} total;

static double rescaled(double sum, double ratio, double p)
{
    /* a square taken first would underflow where the product does not */
    return p == 2.0 ? sum * ratio * ratio : sum * pow(ratio, p);
}

static void add(total *t, double sum)
{
    double joined = t->part.sum + sum;
    double larger = t->part.sum > sum ? t->part.sum : sum;
    double smaller = t->part.sum > sum ? sum : t->part.sum;
    t->lost += (larger - joined) + smaller;
    t->part.sum = joined;
}

static void fold(total *t, const sg_part *part, double p)
{
    t->part.nonfinite += part->nonfinite;
    t->part.zeros += part->zeros;
    t->part.has_nan |= part->has_nan;
    if (part->max_abs > t->part.max_abs)
        t->part.max_abs = part->max_abs;
    if (part->nonfinite || !(part->sum > 0))
        return;
    double sum = part->sum;
    if (t->part.sum == 0) {
        t->part.unit = part->unit;
    } else if (part->unit > t->part.unit) {
        double ratio = t->part.unit / part->unit;
        t->part.sum = rescaled(t->part.sum, ratio, p);
        t->lost = rescaled(t->lost, ratio, p);
        t->part.unit = part->unit;
    } else if (part->unit < t->part.unit) {
        sum = rescaled(sum, part->unit / t->part.unit, p);
    }
    add(t, sum);
}

static double norm_of(const total *t, double p)
{
    double sum = t->part.sum + t->lost;
    if (t->part.nonfinite)
        return t->part.has_nan ? NAN : INFINITY;
    if (p == INFINITY)
        return t->part.max_abs;
    return t->part.unit * (p == 2.0 ? sqrt(sum) : pow(sum, 1.0 / p));
}

double sg_total(const double *norms, int64_t count, double p)
{
    total t = {{.unit = 1.0}, 0};
    for (int64_t i = 0; i < count; i++) {
        sg_part whole = {.unit = norms[i], .sum = 1.0, .max_abs = norms[i]};
        whole.has_nan = norms[i] != norms[i];
        whole.nonfinite = whole.has_nan || norms[i] == INFINITY;
        if (norms[i] != 0)
            fold(&t, &whole, p);
    }
    return norm_of(&t, p);
}

static void put(sg_figures out, int64_t tensor, const total *t, double p)
{
    out.norms[tensor] = norm_of(t, p);
    out.max_abs[tensor] = t->part.max_abs;
    out.nonfinite[tensor] = t->part.nonfinite;
    out.zeros[tensor] = t->part.zeros;
}

/* ---- one thread ---- */

static void read_alone(const job *j, sg_figures out)
{
    for (int64_t i = 0; i < j->count; i++) {
        total t = {{.unit = 1.0}, 0};
        for (int64_t c = 0, n = chunk_count(j->tensors + i); c < n; c++) {
            sg_part part;
            measure(j, i, c, &part);
            fold(&t, &part, j->p);
        }
        put(out, i, &t, j->p);
    }
}

/* The last tensor first: what was read last is what the cache still holds. */
static void scale_alone(const job *j)
{
    for (int64_t i = j->count - 1; i >= 0; i--) {
        if (j->coefs[i] == 1.0)
            continue;
        for (int64_t c = 0, n = chunk_count(j->tensors + i); c < n; c++)
            multiply(j, i, c, i - 1);
    }
}

/* ---- several threads: spans of chunks, handed out by a counter ---- */

#ifdef HAS_THREADS

#define SPAN 8

typedef struct {
    job job;
    int64_t *starts; /* number of the first chunk of each tensor; one more past the end */
    sg_part *parts;  /* by chunk; NULL when scaling */
    int64_t next;
} crew;

static int64_t tensor_of(const crew *c, int64_t chunk)
{
    int64_t low = 0, high = c->job.count; /* starts[low] <= chunk < starts[high] */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (c->starts[middle] <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void do_span(crew *c, int64_t chunk, int64_t end)
{
    int64_t tensor = tensor_of(c, chunk);
    for (; chunk < end; chunk++) {
        while (chunk >= c->starts[tensor + 1])
            tensor++;
        int64_t local = chunk - c->starts[tensor];
        if (c->parts)
            measure(&c->job, tensor, local, c->parts + chunk);
        else if (c->job.coefs[tensor] != 1.0)
            multiply(&c->job, tensor, local, tensor + 1);
    }
}

static void *work(void *crew_)
{
    crew *c = crew_;
    int64_t all = c->starts[c->job.count];
    float_mode before = standard_mode();
    for (;;) {
        int64_t first = __atomic_fetch_add(&c->next, SPAN, __ATOMIC_RELAXED);
        if (first >= all)
            break;
        do_span(c, first, first + SPAN < all ? first + SPAN : all);
    }
    restore_mode(before);
    return NULL;
}

/* Threads live for one call: nothing survives to hang a forked child or an exit, and
 * their start is small beside SG_THREADING_FROM. One that cannot start is not missed. */
static void work_together(crew *c, int threads)
{
    pthread_t others[63];
    int started = 0;
    sigset_t all, before;
    sigfillset(&all); /* signals stay with the threads that expect them */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < threads - 1 && started < 63 &&
           pthread_create(&others[started], NULL, work, c) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(c);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}

static int prepare(crew *c, int measuring)
{
    int64_t n = c->job.count;
    c->next = 0;
    c->parts = NULL;
    c->starts = malloc((size_t)(n + 1) * sizeof *c->starts);
    if (!c->starts)
        return -1;
    c->starts[0] = 0;
    for (int64_t i = 0; i < n; i++)
        c->starts[i + 1] = c->starts[i] + chunk_count(c->job.tensors + i);
    if (measuring)
        c->parts = malloc((size_t)c->starts[n] * sizeof *c->parts);
    return measuring && !c->parts ? -1 : 0;
}

static void dismiss(crew *c)
{
    free(c->starts);
    free(c->parts);
}

static int read_together(const job *j, int threads, sg_figures out)
{
    crew c = {.job = *j};
    if (prepare(&c, 1) == 0) {
        work_together(&c, threads);
        for (int64_t i = 0; i < j->count; i++) {
            total t = {{.unit = 1.0}, 0};
            for (int64_t k = c.starts[i]; k < c.starts[i + 1]; k++)
                fold(&t, c.parts + k, j->p);
            put(out, i, &t, j->p);
        }
        dismiss(&c);
        return 0;
    }
    dismiss(&c);
    return -1;
}

static int scale_together(const job *j, int threads)
{
    crew c = {.job = *j};
    int failed = prepare(&c, 0);
    if (!failed)
        work_together(&c, threads);
    dismiss(&c);
    return failed;
}

#else

static int read_together(const job *j, int threads, sg_figures out)
{
    (void)threads;
    read_alone(j, out);
    return 0;
}

static int scale_together(const job *j, int threads)
{
    (void)threads;
    scale_alone(j);
    return 0;
}

#endif

static int useful_threads(const job *j, int threads)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < j->count; i++)
        if (!j->coefs || j->coefs[i] != 1.0)
            bytes += j->tensors[i].size * sg_item_size(j->tensors[i].type);
    if (bytes < SG_THREADING_FROM)
        return 1;
    return bytes / SG_BYTES_A_THREAD < threads ? (int)(bytes / SG_BYTES_A_THREAD) : threads;
}

int sg_read(const sg_tensor *tensors, int64_t count, double p, int threads, const sg_loops *loops,
            sg_figures out)
{
    job j = {tensors, count, p, NULL, loops};
    float_mode before = standard_mode();
    int result = 0;
    threads = useful_threads(&j, threads);
    if (threads > 1)
        result = read_together(&j, threads, out);
    else
        read_alone(&j, out);
    restore_mode(before);
    return result;
}

int sg_scale(const sg_tensor *tensors, int64_t count, const double *coefs, int threads,
             const sg_loops *loops)
{
    job j = {tensors, count, 0, coefs, loops};
    float_mode before = standard_mode();
    int result = 0;
    threads = useful_threads(&j, threads);
    if (threads > 1)
        result = scale_together(&j, threads);
    else
        scale_alone(&j);
    restore_mode(before);
    return result;
}
