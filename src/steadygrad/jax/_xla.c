/* The core as two XLA custom calls for the CPU, and a third by which a step tells the host.
 *
 * XLA describes buffers through a C interface of its own ("typed FFI", major version 0). The
 * few structures that one synchronous handler reads are declared here, so that building
 * needs no header of jaxlib and one build serves every jaxlib: XLA asks a handler for its
 * version when it is registered, and refuses it once the major version is another.
 *
 * `read` takes two float64 (p and the number of threads), then the leaves. It gives, one entry
 * a leaf, norms and largest magnitudes (float64), counts of non-finite and of zero elements
 * (int64). `scale` takes one float64 coefficient a leaf, then the leaves, and gives the leaves
 * multiplied: copies for 1, zeros for 0 whatever a leaf holds. `tell` takes a uint32 and any
 * buffer, and gives nothing: both wait in a queue until Python takes them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../kernels/core.h"

/* ---- what XLA's interface promises, major version 0 ---- */

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int major;
    int minor;
} xla_version;

typedef struct {
    size_t struct_size;
    xla_version version;
    uint32_t traits;
} xla_metadata;

typedef struct {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_complaint;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_version version;
    void *internal;
    void *(*error)(xla_complaint *complaint);
} xla_api;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int type;
    void *data;
    int64_t rank;
    int64_t *lengths;
} xla_buffer;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    int *kinds;
    xla_buffer **at;
} xla_buffers;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_buffers operands;
    xla_buffers results;
} xla_call;

enum { XLA_METADATA = 1, XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 };
enum { XLA_U32 = 8, XLA_F16 = 10, XLA_F32, XLA_F64, XLA_C64 = 15, XLA_BF16, XLA_C128 = 18 };
enum { LEAVES_FROM = 1, FIGURES = 4 };
enum { MOST_BYTES = 1 << 24, WAIT_MS = 10000 };

static void *complaint(const xla_call *call, int code, const char *message)
{
    xla_complaint what = {sizeof what, NULL, message, code};
    return call->api->error(&what);
}

/* Only fields that every version 0.x has are read, so this handler is of whichever asks. */
static void tell_version(const xla_call *call, xla_metadata *metadata)
{
    metadata->version.major = 0;
    metadata->version.minor = call->api ? call->api->version.minor : 0;
    metadata->traits = 0;
}

static int type_of(int xla)
{
    switch (xla) {
    case XLA_F32: return SG_F32;
    case XLA_F64: return SG_F64;
    case XLA_F16: return SG_F16;
    case XLA_BF16: return SG_BF16;
    case XLA_C64: return SG_C64;
    case XLA_C128: return SG_C128;
    default: return -1;
    }
}

static int describe(const xla_buffer *buffer, sg_tensor *t)
{
    *t = (sg_tensor){.data = buffer->data, .size = 1, .type = type_of(buffer->type)};
    for (int64_t i = 0; i < buffer->rank; i++)
        t->size *= buffer->lengths[i];
    return t->type < 0 ? -1 : 0;
}

static void *read_all(const xla_call *call, sg_tensor *tensors)
{
    xla_buffer **given = call->operands.at, **out = call->results.at;
    const double *options = given[0]->data;
    int64_t n = call->operands.size - LEAVES_FROM;
    for (int64_t i = 0; i < n; i++)
        if (describe(given[i + LEAVES_FROM], tensors + i) != 0)
            return complaint(call, XLA_INVALID_ARGUMENT, "steadygrad: no floating-point type");
    sg_figures figures = {out[0]->data, out[1]->data, out[2]->data, out[3]->data};
    if (sg_read(tensors, n, options[0], (int)options[1], sg_loops_at(0), figures) != 0)
        return complaint(call, XLA_RESOURCE_EXHAUSTED, "steadygrad: out of memory");
    return NULL;
}

/* 1 where XLA only wants to know what this handler is. */
static int is_question(const xla_call *call)
{
    for (xla_extension *e = call->extensions; e; e = e->next)
        if (e->type == XLA_METADATA) {
            tell_version(call, ((xla_metadata_extension *)e)->metadata);
            return 1;
        }
    return 0;
}

static void *read_leaves(xla_call *call)
{
    if (is_question(call))
        return NULL;
    if (call->operands.size < LEAVES_FROM || call->results.size != FIGURES)
        return complaint(call, XLA_INVALID_ARGUMENT, "steadygrad: wrong number of buffers");
    sg_tensor *tensors = malloc((size_t)call->operands.size * sizeof *tensors);
    if (!tensors)
        return complaint(call, XLA_RESOURCE_EXHAUSTED, "steadygrad: out of memory");
    void *error = read_all(call, tensors);
    free(tensors);
    return error;
}

/* Leaf by leaf, while the copy is in the cache: these are the small ones. */
static void *scale_leaves(xla_call *call)
{
    if (is_question(call))
        return NULL;
    if (call->operands.size != call->results.size + LEAVES_FROM)
        return complaint(call, XLA_INVALID_ARGUMENT, "steadygrad: wrong number of buffers");
    const double *coefs = call->operands.at[0]->data;
    for (int64_t i = 0; i < call->results.size; i++) {
        const xla_buffer *leaf = call->operands.at[i + LEAVES_FROM];
        sg_tensor out;
        if (describe(call->results.at[i], &out) != 0)
            return complaint(call, XLA_INVALID_ARGUMENT, "steadygrad: no floating-point type");
        size_t bytes = (size_t)(out.size * sg_item_size(out.type));
        if (coefs[i] == 0)
            memset(out.data, 0, bytes);
        else if (out.data != leaf->data && bytes)
            memcpy(out.data, leaf->data, bytes);
        if (coefs[i] != 0 && coefs[i] != 1)
            sg_scale(&out, 1, coefs + i, 1, sg_loops_at(0));
    }
    return NULL;
}

/* ---- what steps have told ----
 *
 * A stack without a lock: steps put on it from whichever thread XLA runs them in, and a process
 * may be forked meanwhile. Whoever takes takes all of it, and turns it round.
 */

typedef struct told {
    struct told *before;
    double when;
    int64_t number;
    int64_t size;
    uint32_t who;
    char bytes[];
} told;

static _Atomic(told *) last_told;
static _Atomic int64_t told_count, bytes_waiting, lost_count;
static atomic_int reader_is_gone;

static int64_t item_size(int xla)
{
    switch (xla) {
    case XLA_F16:
    case XLA_BF16: return 2;
    case XLA_U32:
    case XLA_F32: return 4;
    case XLA_F64:
    case XLA_C64: return 8;
    case XLA_C128: return 16;
    default: return 0;
    }
}

/* A queue that is full is waited for as long as somebody empties it. */
static int has_room(void)
{
    const struct timespec ms = {0, 1000000};
    int64_t before = atomic_load(&bytes_waiting);
    for (int waited = 0; before > MOST_BYTES; waited++) {
        if (atomic_load(&reader_is_gone) || waited > WAIT_MS) {
            atomic_store(&reader_is_gone, 1);
            return 0;
        }
        nanosleep(&ms, NULL);
        int64_t now = atomic_load(&bytes_waiting);
        waited = now < before ? 0 : waited;
        before = now;
    }
    return 1;
}

static void put(uint32_t who, const void *bytes, int64_t size)
{
    told *one = has_room() ? malloc(sizeof *one + (size_t)size) : NULL;
    if (!one) { /* never the script's misfortune */
        atomic_fetch_add(&lost_count, 1);
        return;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    one->when = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    one->who = who;
    one->size = size;
    memcpy(one->bytes, bytes, (size_t)size);
    atomic_fetch_add(&bytes_waiting, size);
    one->number = atomic_fetch_add(&told_count, 1);
    one->before = atomic_load(&last_told);
    while (!atomic_compare_exchange_weak(&last_told, &one->before, one))
        ;
}

static void *tell(xla_call *call)
{
    if (is_question(call))
        return NULL;
    if (call->operands.size != 2)
        return complaint(call, XLA_INVALID_ARGUMENT, "steadygrad: wrong number of buffers");
    const xla_buffer *who = call->operands.at[0], *what = call->operands.at[1];
    int64_t size = item_size(what->type);
    for (int64_t i = 0; i < what->rank; i++)
        size *= what->lengths[i];
    put(*(const uint32_t *)who->data, what->data, size);
    return NULL;
}

/* One entry of the list that `take` gives; frees what it is made of. */
static PyObject *opened(told *one)
{
    PyObject *entry = Py_BuildValue("(kdLy#)", (unsigned long)one->who, one->when,
                                    (long long)one->number, one->bytes, (Py_ssize_t)one->size);
    free(one);
    return entry;
}

static PyObject *take(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    PyObject *list = PyList_New(0);
    if (!list)
        return NULL;
    told *next = NULL, *one = atomic_exchange(&last_told, NULL);
    while (one) {
        told *before = one->before;
        one->before = next;
        next = one;
        one = before;
    }
    int64_t bytes = 0;
    while ((one = next)) {
        next = one->before;
        bytes += one->size;
        PyObject *entry = opened(one);
        if (!entry || PyList_Append(list, entry) != 0) {
            PyErr_Clear();
            atomic_fetch_add(&lost_count, 1);
        }
        Py_XDECREF(entry);
    }
    atomic_fetch_sub(&bytes_waiting, bytes);
    atomic_store(&reader_is_gone, 0);
    return list;
}

static PyObject *count(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromLongLong(atomic_load(&told_count));
}

static PyObject *lost(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromLongLong(atomic_exchange(&lost_count, 0));
}

static PyObject *handlers(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_BuildValue("{s:N,s:N,s:N}", "steadygrad_read",
                         PyCapsule_New((void *)(uintptr_t)read_leaves, NULL, NULL),
                         "steadygrad_scale",
                         PyCapsule_New((void *)(uintptr_t)scale_leaves, NULL, NULL),
                         "steadygrad_tell", PyCapsule_New((void *)(uintptr_t)tell, NULL, NULL));
}

static PyMethodDef methods[] = {
    {"handlers", handlers, METH_NOARGS, "() -> what jax.ffi.register_ffi_target takes, by name"},
    {"take", take, METH_NOARGS, "() -> [(who, when, number, bytes), ...], what was told, in order"},
    {"count", count, METH_NOARGS, "() -> how much was ever told"},
    {"lost", lost, METH_NOARGS, "() -> how much was lost since the last call, for want of memory"},
    {NULL, NULL, 0, NULL},
};

static int say_sources(PyObject *module)
{
    return PyModule_AddStringConstant(module, "BUILT_FROM", SG_SOURCES);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, say_sources}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_xla", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__xla(void) { return PyModuleDef_Init(&module); }
