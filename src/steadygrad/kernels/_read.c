/* The Python face of core.c: stable ABI, no framework's ABI.
 *
 * Tensors arrive as Python objects and are described by their framework through the
 * C exchange table of DLPack (a few nanoseconds each, so nothing need be cached and
 * nothing goes stale when a storage moves), or, where a framework has no such table,
 * as an array of sg_tensor that Python has filled. Results go to memory that the caller
 * owns, given by address. The GIL is released while memory is read.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "_clips.h"
#include "_gate.h"
#include "_quiet.h"
#include "_stamped.h"

/* ---- what DLPack's exchange table promises, version 1 ---- */

typedef struct {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct {
    uint32_t major;
    uint32_t minor;
    void *older;
    void *allocate;
    void *owned_from_object;
    void *object_from_owned;
    int (*describe)(void *object, dl_tensor *out);
    void *stream;
} dl_exchange;

enum { DL_CPU = 1, DL_INT = 0, DL_FLOAT = 2, DL_BFLOAT = 4, DL_COMPLEX = 5 };

static int type_of(const dl_tensor *d)
{
    if (d->lanes != 1)
        return -1;
    switch (d->code << 8 | d->bits) {
    case DL_FLOAT << 8 | 32: return SG_F32;
    case DL_FLOAT << 8 | 64: return SG_F64;
    case DL_FLOAT << 8 | 16: return SG_F16;
    case DL_BFLOAT << 8 | 16: return SG_BF16;
    case DL_COMPLEX << 8 | 64: return SG_C64;
    case DL_COMPLEX << 8 | 128: return SG_C128;
    default: return -1;
    }
}

/* ---- layouts ---- */

enum { FLAT, GAPPED, OVERLAPPING };

static int is_contiguous(const dl_tensor *d)
{
    int64_t expected = 1;
    for (int i = d->ndim - 1; i >= 0; i--) {
        if (d->shape[i] != 1 && d->strides[i] != expected)
            return 0;
        expected *= d->shape[i];
    }
    return 1;
}

/* Dimensions taken by rising stride: flat when each steps over exactly what is below
 * it, free of overlap when it steps over at least that. */
static int layout_of(const dl_tensor *d)
{
    int64_t covered = 1;
    int layout = FLAT;
    uint64_t done = 0;
    if (is_contiguous(d))
        return FLAT;
    for (int taken = 0; taken < d->ndim; taken++) {
        int next = -1;
        for (int i = 0; i < d->ndim; i++)
            if (!(done >> i & 1) && (next < 0 || d->strides[i] < d->strides[next]))
                next = i;
        done |= (uint64_t)1 << next;
        if (d->shape[next] == 1)
            continue;
        if (d->strides[next] < covered)
            return OVERLAPPING;
        if (d->strides[next] != covered)
            layout = GAPPED;
        covered = (d->shape[next] - 1) * d->strides[next] + covered;
    }
    return layout;
}

/* What is to be done with a tensor. */
enum { READING, WRITING, IN_ORDER };

/* 0, or -1 where these loops cannot serve. */
static int describe(const dl_tensor *d, int purpose, sg_tensor *t)
{
    int type = type_of(d), layout;
    if (type < 0 || d->device_type != DL_CPU || d->ndim > 63)
        return -1;
    t->size = 1;
    for (int i = 0; i < d->ndim; i++)
        t->size *= d->shape[i];
    layout = t->size ? layout_of(d) : FLAT;
    if (layout == OVERLAPPING && purpose == WRITING)
        return -1;
    if (purpose == IN_ORDER && (type > SG_BF16 || !is_contiguous(d)))
        return -1;
    t->data = (char *)d->data + d->byte_offset;
    t->type = type;
    t->rank = layout == FLAT ? 0 : d->ndim;
    t->shape = d->shape;
    t->strides = d->strides;
    return 0;
}

/* ---- Python objects to sg_tensor ---- */

typedef struct {
    dl_exchange *exchange;
    PyObject *plain;     /* types whose objects hold their own memory; */
    PyObject *parameter; /* a subclass may be a wrapper around others */
} source;

/* Whether a tensor is one whose memory holds the opposite of its elements, of which DLPack does not
 * tell; norms need not ask. -1 with an exception. */
static int is_negated(PyObject *object)
{
    PyObject *answer = PyObject_CallMethod(object, "is_neg", NULL);
    int negated = answer ? answer == Py_True : -1;
    Py_XDECREF(answer);
    return negated;
}

/* What the framework says of an object; -1 for what is none of its tensors, or not ours. */
static int told(const source *s, PyObject *object, dl_tensor *d)
{
    PyObject *type = (PyObject *)Py_TYPE(object);
    if (type != s->plain && type != s->parameter)
        return -1;
    if (s->exchange->describe(object, d) != 0) {
        PyErr_Clear(); /* sparse, functorch and the like: not an error, not ours */
        return -1;
    }
    return 0;
}

static int describe_object(const source *s, PyObject *object, int purpose, sg_tensor *t)
{
    dl_tensor d;
    return told(s, object, &d) != 0 ? -1 : describe(&d, purpose, t);
}

/* NULL with *refused set to the index of the first object that cannot be served, or
 * with a Python exception. */
static sg_tensor *describe_all(const source *s, PyObject *list, Py_ssize_t n, int purpose,
                               Py_ssize_t *refused)
{
    sg_tensor *tensors = malloc((size_t)(n + 1) * sizeof *tensors);
    *refused = -1;
    if (!tensors) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *object = PyList_GetItem(list, i); /* borrowed */
        if (!object || describe_object(s, object, purpose, tensors + i) != 0) {
            *refused = i;
            free(tensors);
            return NULL;
        }
    }
    return tensors;
}

/* ---- what `bind` was told, once ---- */

typedef struct {
    source source;
    PyObject *threads; /* gives how many the framework uses */
    PyObject *grad;    /* the attribute's name */
} bound;

static int let_go(PyObject *module)
{
    bound *b = PyModule_GetState(module);
    Py_CLEAR(b->source.plain);
    Py_CLEAR(b->source.parameter);
    Py_CLEAR(b->threads);
    Py_CLEAR(b->grad);
    return 0;
}

static dl_exchange *exchange_of(PyObject *capsule)
{
    dl_exchange *exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    while (exchange && exchange->major > 1)
        exchange = exchange->older;
    if (exchange && exchange->major == 1 && exchange->describe)
        return exchange;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "no DLPack exchange table of version 1");
    return NULL;
}

static PyObject *bind(PyObject *self, PyObject *args)
{
    PyObject *capsule, *plain, *parameter, *threads;
    bound *b = PyModule_GetState(self);
    if (!PyArg_ParseTuple(args, "OOOO", &capsule, &plain, &parameter, &threads))
        return NULL;
    let_go(self);
    if (!(b->source.exchange = exchange_of(capsule)))
        return NULL;
    if (!(b->grad = PyUnicode_InternFromString("grad")))
        return NULL;
    b->source.plain = Py_NewRef(plain);
    b->source.parameter = Py_NewRef(parameter);
    b->threads = Py_NewRef(threads);
    Py_RETURN_NONE;
}

/* NULL with an exception where nothing was bound. */
static const source *source_of(PyObject *self)
{
    const bound *b = PyModule_GetState(self);
    if (b->source.exchange && b->grad)
        return &b->source;
    PyErr_SetString(PyExc_RuntimeError, "bind() has not been called");
    return NULL;
}

static const sg_loops *loops_named(const char *name)
{
    const sg_loops *loops;
    for (int i = 0; (loops = sg_loops_at(i)); i++)
        if (strcmp(loops->name, name) == 0)
            return loops;
    PyErr_Format(PyExc_ValueError, "no instruction set %s on this processor", name);
    return NULL;
}

/* ---- running without the GIL ---- */

/* Elements from which on the GIL is worth giving up: whoever takes it keeps it for milliseconds. */
enum { LARGE = 1 << 22 };

/* Elements below which no second thread is of use. */
enum { WORTH_THREADS = 1 << 18 };

static sg_figures figures_in(PyObject *bytes, Py_ssize_t n)
{
    double *rows = (double *)(void *)PyByteArray_AsString(bytes);
    return (sg_figures){rows, rows + n, (int64_t *)(rows + 2 * n), (int64_t *)(rows + 3 * n)};
}

/* The figures as the bytes of four rows, and the total norm after them: made here, since asking an
 * array for its address takes longer than reading a small model's gradients. */
static PyObject *run_read(const sg_tensor *tensors, Py_ssize_t n, double p, int threads,
                          const sg_loops *loops)
{
    int failed;
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (n * 4 + 1) * (Py_ssize_t)sizeof(double));
    if (!bytes)
        return NULL;
    sg_figures figures = figures_in(bytes, n);
    int64_t size = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        size += tensors[i].size;
    PyThreadState *state = size > LARGE ? PyEval_SaveThread() : NULL;
    failed = sg_read(tensors, n, p, threads, loops, figures);
    figures.norms[n * 4] = sg_total(figures.norms, n, p);
    if (state)
        PyEval_RestoreThread(state);
    if (!failed)
        return bytes;
    Py_DECREF(bytes);
    return PyErr_NoMemory();
}

static PyObject *run_scale(const sg_tensor *tensors, Py_ssize_t n, unsigned long long coefs,
                           int threads, const sg_loops *loops)
{
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = sg_scale(tensors, n, (const double *)(uintptr_t)coefs, threads, loops);
    Py_END_ALLOW_THREADS
    return failed ? PyErr_NoMemory() : PyLong_FromLong(-1);
}

static PyObject *read_objects(PyObject *self, PyObject *args)
{
    PyObject *list;
    double p;
    int threads;
    const char *name;
    Py_ssize_t refused;
    const source *s = source_of(self);
    if (!s || !PyArg_ParseTuple(args, "Odis", &list, &p, &threads, &name))
        return NULL;
    Py_ssize_t n = PyList_Size(list); /* raises for anything but a list */
    const sg_loops *loops = n < 0 ? NULL : loops_named(name);
    if (!loops)
        return NULL;
    sg_tensor *tensors = describe_all(s, list, n, READING, &refused);
    if (!tensors)
        return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(refused);
    PyObject *result = run_read(tensors, n, p, threads, loops);
    free(tensors);
    return result;
}

PyObject *sg_gradients_of(PyObject *module, PyObject *parameters)
{
    PyObject *name = ((const bound *)PyModule_GetState(module))->grad;
    Py_ssize_t n = PyList_Size(parameters); /* raises for anything but a list */
    PyObject *all = n < 0 ? NULL : PyList_New(n);
    for (Py_ssize_t i = 0; all && i < n; i++) {
        PyObject *parameter = PyList_GetItem(parameters, i); /* borrowed */
        PyObject *grad = NULL;
        if (parameter) /* without the exchange table nothing was bound */
            grad = name ? PyObject_GetAttr(parameter, name)
                        : PyObject_GetAttrString(parameter, "grad");
        if (!grad || PyList_SetItem(all, i, grad) != 0)
            Py_CLEAR(all);
    }
    return all;
}

int sg_are_plain(PyObject *module, PyObject *list)
{
    const source *s = &((const bound *)PyModule_GetState(module))->source;
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        PyObject *type = (PyObject *)Py_TYPE(PyList_GetItem(list, i));
        if (type != s->plain && type != s->parameter)
            return 0;
    }
    return 1;
}

/* How many threads for so many elements; -1 with an exception. */
static int threads_for(const bound *b, int64_t size)
{
    if (size < WORTH_THREADS)
        return 1;
    PyObject *number = PyObject_CallNoArgs(b->threads);
    long threads = number ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    return (int)threads;
}

static int is_true(PyObject *object, const char *attribute)
{
    PyObject *answer = PyObject_GetAttrString(object, attribute);
    int is = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return is;
}

/* What stands in for a sparse tensor. */
typedef struct {
    double *rows; /* what it stores, added up; NULL where its values serve as they are */
    int64_t not_stored;
} stand_in;

/* A COO tensor as what it stores, elements of one place added up; `values` and `indices` are its.
 * -1 where these loops cannot serve. */
static int add_up(const source *s, PyObject *values, PyObject *indices, sg_tensor *t, stand_in *in)
{
    dl_tensor keys;
    if (describe_object(s, values, IN_ORDER, t) != 0 || told(s, indices, &keys) != 0)
        return -1;
    int is_row = keys.ndim == 2 && keys.shape[0] == 1 && keys.strides[1] == 1;
    if (!is_row || keys.code != DL_INT || keys.bits != 64 || keys.device_type != DL_CPU)
        return -1;
    int64_t entries = keys.shape[1];
    if (!entries || t->size > LARGE || !(in->rows = malloc((size_t)t->size * sizeof(double))))
        return -1;
    int64_t width = t->size / entries;
    int64_t count =
        sg_sum_rows((const int64_t *)(const void *)((char *)keys.data + keys.byte_offset), entries,
                    t->data, width, t->type, in->rows);
    if (count < 0)
        return -1;
    *t = (sg_tensor){.data = (char *)in->rows, .size = count * width, .type = SG_F64};
    return 0;
}

/* One sparse tensor; its values are appended to `alive` where they are read where they lie. */
static int describe_sparse(const source *s, PyObject *object, PyObject *alive, sg_tensor *t,
                           stand_in *in)
{
    PyObject *whole = PyObject_CallMethod(object, "numel", NULL);
    PyObject *values = PyObject_CallMethod(object, "_values", NULL);
    PyObject *coalesced = PyObject_CallMethod(object, "is_coalesced", NULL), *indices = NULL;
    int failed = !whole || !values || !coalesced || PyList_Append(alive, values) != 0;
    if (!failed && coalesced == Py_True)
        failed = describe_object(s, values, READING, t) != 0;
    else if (!failed)
        failed = !(indices = PyObject_CallMethod(object, "_indices", NULL)) ||
                 add_up(s, values, indices, t, in) != 0;
    if (!failed)
        in->not_stored = PyLong_AsLongLong(whole) - t->size;
    Py_XDECREF(whole);
    Py_XDECREF(values);
    Py_XDECREF(coalesced);
    Py_XDECREF(indices);
    PyErr_Clear();
    return failed ? -1 : 0;
}

PyObject *sg_read_list(PyObject *module, PyObject *grads, int any_sparse)
{
    PyObject *alive, *result = NULL;
    int served = 1;
    int64_t size = 0;
    const bound *b = PyModule_GetState(module);
    const source *s = &b->source;
    if (!s->exchange)
        return Py_NewRef(Py_None);
    Py_ssize_t n = PyList_Size(grads);
    sg_tensor *tensors = malloc((size_t)(n + 1) * sizeof *tensors);
    stand_in *ins = calloc((size_t)(n + 1), sizeof *ins);
    alive = PyList_New(0);
    if (!tensors || !ins || !alive)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; served && !PyErr_Occurred() && i < n; i++) {
        PyObject *object = PyList_GetItem(grads, i); /* borrowed */
        int sparse = any_sparse && object != Py_None ? is_true(object, "is_sparse") : 0;
        served = (sparse ? describe_sparse(s, object, alive, tensors + i, ins + i)
                         : describe_object(s, object, READING, tensors + i)) == 0;
        size += served ? tensors[i].size : 0;
    }
    int threads = served && !PyErr_Occurred() ? threads_for(b, size) : 0;
    if (threads > 0)
        result = run_read(tensors, n, 2.0, threads, sg_loops_at(0));
    else if (!PyErr_Occurred())
        result = Py_NewRef(Py_None);
    for (Py_ssize_t i = 0; ins && i < n; i++) {
        if (threads > 0 && result)
            figures_in(result, n).zeros[i] += ins[i].not_stored;
        free(ins[i].rows);
    }
    free(ins);
    free(tensors);
    Py_XDECREF(alive);
    return result;
}

PyObject *sg_read_gradients(PyObject *module, PyObject *parameters, int any_sparse)
{
    if (!((const bound *)PyModule_GetState(module))->source.exchange)
        return Py_NewRef(Py_None);
    PyObject *grads = sg_gradients_of(module, parameters);
    PyObject *result = grads ? sg_read_list(module, grads, any_sparse) : NULL;
    Py_XDECREF(grads);
    return result;
}

static PyObject *read_gradients(PyObject *self, PyObject *args)
{
    PyObject *parameters;
    int any_sparse;
    return PyArg_ParseTuple(args, "Op", &parameters, &any_sparse)
               ? sg_read_gradients(self, parameters, any_sparse)
               : NULL;
}

/* A list as it is, any other sequence as one; a new reference. */
static PyObject *as_list(PyObject *sequence)
{
    return PyList_Check(sequence) ? Py_NewRef(sequence) : PySequence_List(sequence);
}

/* Whether these parameters go on in the list from place `at`, which moves past them; -1 raised. */
static int go_on(PyObject *own, PyObject *parameters, Py_ssize_t *at)
{
    PyObject *list = as_list(own);
    Py_ssize_t count = PyList_Size(parameters);
    int same = list && count >= 0 ? 1 : -1;
    for (Py_ssize_t i = 0; same == 1 && i < PyList_Size(list); i++, ++*at)
        same = *at < count && PyList_GetItem(list, i) == PyList_GetItem(parameters, *at);
    Py_XDECREF(list);
    return same;
}

int sg_hold(PyObject *groups, PyObject *parameters)
{
    Py_ssize_t at = 0;
    PyObject *list = as_list(groups);
    int same = list ? 1 : -1;
    for (Py_ssize_t g = 0; same == 1 && g < PyList_Size(list); g++) {
        PyObject *own = PyMapping_GetItemString(PyList_GetItem(list, g), "params");
        same = own ? go_on(own, parameters, &at) : -1;
        Py_XDECREF(own);
    }
    Py_XDECREF(list);
    return same == 1 ? at == PyList_Size(parameters) : same;
}

static PyObject *holds(PyObject *self, PyObject *args)
{
    PyObject *groups, *parameters;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &groups, &parameters))
        return NULL;
    int hold = sg_hold(groups, parameters);
    return hold < 0 ? NULL : PyBool_FromLong(hold);
}

static PyObject *scale_objects(PyObject *self, PyObject *args)
{
    PyObject *list, *result;
    int threads;
    const char *name;
    unsigned long long coefs;
    Py_ssize_t refused;
    const source *s = source_of(self);
    if (!s || !PyArg_ParseTuple(args, "OKis", &list, &coefs, &threads, &name))
        return NULL;
    Py_ssize_t n = PyList_Size(list); /* raises for anything but a list */
    const sg_loops *loops = n < 0 ? NULL : loops_named(name);
    if (!loops)
        return NULL;
    sg_tensor *tensors = describe_all(s, list, n, WRITING, &refused);
    if (!tensors)
        return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(refused);
    result = run_scale(tensors, n, coefs, threads, loops);
    free(tensors);
    return result;
}

static PyObject *read_table(PyObject *self, PyObject *args)
{
    unsigned long long table;
    Py_ssize_t n;
    double p;
    int threads;
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "Kndis", &table, &n, &p, &threads, &name))
        return NULL;
    const sg_loops *loops = loops_named(name);
    return loops ? run_read((const sg_tensor *)(uintptr_t)table, n, p, threads, loops) : NULL;
}

static PyObject *scale_table(PyObject *self, PyObject *args)
{
    unsigned long long table, coefs;
    Py_ssize_t n;
    int threads;
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "KnKis", &table, &n, &coefs, &threads, &name))
        return NULL;
    const sg_loops *loops = loops_named(name);
    return loops ? run_scale((const sg_tensor *)(uintptr_t)table, n, coefs, threads, loops) : NULL;
}

static PyObject *sum_rows(PyObject *self, PyObject *args)
{
    unsigned long long keys, values, out;
    Py_ssize_t entries, width;
    int type;
    int64_t rows;
    (void)self;
    if (!PyArg_ParseTuple(args, "KnKniK", &keys, &entries, &values, &width, &type, &out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    rows = sg_sum_rows((const int64_t *)(uintptr_t)keys, entries, (const void *)(uintptr_t)values,
                       width, type, (double *)(uintptr_t)out);
    Py_END_ALLOW_THREADS
    return rows < 0 ? PyErr_NoMemory() : PyLong_FromLongLong(rows);
}

/* ---- a loss ---- */

/* What `item` gives, at about half the time where its code is out of the caches. */
PyObject *sg_number(PyObject *module, PyObject *object)
{
    sg_tensor t;
    double value;
    const source *s = &((const bound *)PyModule_GetState(module))->source;
    if (!s->exchange || describe_object(s, object, IN_ORDER, &t) != 0 || t.size != 1)
        Py_RETURN_NONE;
    int negated = is_negated(object);
    if (negated)
        return negated < 0 ? NULL : Py_NewRef(Py_None);
    sg_take(&t, 1, 1, &value);
    return PyFloat_FromDouble(value);
}

static PyObject *number(PyObject *self, PyObject *object)
{
    return source_of(self) ? sg_number(self, object) : NULL;
}

/* ---- samples ---- */

/* The elements of a tensor in their order, float32 on the CPU; NULL where it is another. */
static const float *floats_of(const source *s, PyObject *object, dl_tensor *d)
{
    if (told(s, object, d) != 0)
        return NULL;
    if (type_of(d) != SG_F32 || d->device_type != DL_CPU || !is_contiguous(d))
        return NULL;
    int negated = is_negated(object);
    if (negated < 0)
        PyErr_Clear();
    return negated ? NULL : (const float *)(const void *)((char *)d->data + d->byte_offset);
}

static int64_t product(const int64_t *sizes, int from, int to)
{
    int64_t all = 1;
    for (int i = from; i < to; i++)
        all *= sizes[i];
    return all;
}

static PyObject *units(PyObject *self, PyObject *args)
{
    PyObject *object;
    dl_tensor d;
    int axis, failed;
    Py_ssize_t most;
    double dead, flat;
    const source *s = source_of(self);
    if (!s || !PyArg_ParseTuple(args, "Oin", &object, &axis, &most))
        return NULL;
    const float *data = floats_of(s, object, &d);
    if (!data || d.ndim < 2 || !product(d.shape, 0, d.ndim))
        Py_RETURN_NONE;
    axis = axis < 0 ? d.ndim + axis : axis;
    int64_t outer = product(d.shape, 0, axis), inner = product(d.shape, axis + 1, d.ndim);
    PyThreadState *state = outer * d.shape[axis] * inner > LARGE ? PyEval_SaveThread() : NULL;
    failed = sg_units(data, outer, d.shape[axis], inner, most, &dead, &flat);
    if (state)
        PyEval_RestoreThread(state);
    return failed ? PyErr_NoMemory() : Py_BuildValue("dd", dead, flat);
}

static PyObject *deviation(PyObject *self, PyObject *args)
{
    PyObject *object;
    dl_tensor d;
    Py_ssize_t most;
    const source *s = source_of(self);
    if (!s || !PyArg_ParseTuple(args, "On", &object, &most))
        return NULL;
    const float *data = floats_of(s, object, &d);
    if (!data || d.ndim < 1 || product(d.shape, 0, d.ndim) < 2)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(sg_deviation(data, d.shape[0], product(d.shape, 1, d.ndim), most));
}

static PyObject *take_objects(PyObject *self, PyObject *args)
{
    PyObject *list, *bytes = NULL;
    Py_ssize_t refused, most;
    int64_t taken = 0;
    const source *s = source_of(self);
    if (!s || !PyArg_ParseTuple(args, "On", &list, &most))
        return NULL;
    Py_ssize_t n = PyList_Size(list); /* raises for anything but a list */
    if (n < 0)
        return NULL;
    sg_tensor *tensors = describe_all(s, list, n, IN_ORDER, &refused);
    if (!tensors)
        return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(refused);
    for (Py_ssize_t i = 0; i < n; i++)
        taken += sg_taken(tensors[i].size, most);
    bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(taken * (int64_t)sizeof(double)));
    if (bytes)
        sg_take(tensors, n, most, (double *)(void *)PyByteArray_AsString(bytes));
    free(tensors);
    return bytes;
}

static PyObject *instruction_sets(PyObject *self, PyObject *unused)
{
    PyObject *names = PyList_New(0);
    const sg_loops *loops;
    (void)self;
    (void)unused;
    for (int i = 0; names && (loops = sg_loops_at(i)); i++) {
        PyObject *name = PyUnicode_FromString(loops->name);
        if (!name || PyList_Append(names, name) != 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS,
     "(exchange, type, type, threads): how objects of these two types are described, and who knows "
     "the number of threads"},
    {"read_objects", read_objects, METH_VARARGS,
     "(tensors, p, threads, set) -> rows, or the index refused"},
    {"read_gradients", read_gradients, METH_VARARGS,
     "(parameters, any sparse) -> rows of their gradients' 2-norms, or None for refused"},
    {"holds", holds, METH_VARARGS, "(groups, parameters) -> whether they hold these and no others"},
    {"scale_objects", scale_objects, METH_VARARGS,
     "(tensors, coefs, threads, set) -> -1, or the index refused"},
    {"read_table", read_table, METH_VARARGS, "(table, count, p, threads, set) -> rows"},
    {"scale_table", scale_table, METH_VARARGS, "(table, count, coefs, threads, set) -> -1"},
    {"sum_rows", sum_rows, METH_VARARGS, "(keys, entries, values, width, type, out) -> rows"},
    {"number", number, METH_O, "(tensor) -> its only element, or None for refused"},
    {"units", units, METH_VARARGS,
     "(tensor, axis, most) -> (dead, saturated), or None for refused"},
    {"deviation", deviation, METH_VARARGS, "(tensor, most) -> deviation, or None for refused"},
    {"take_objects", take_objects, METH_VARARGS,
     "(tensors, most) -> elements, or the index refused"},
    {"instruction_sets", instruction_sets, METH_NOARGS, "() -> names, best first"},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    int failed = PyModule_AddStringConstant(module, "BUILT_FROM", SG_SOURCES);
    failed = failed ? failed : sg_add_gate(module);
    failed = failed ? failed : sg_add_stamped(module);
    failed = failed ? failed : sg_add_quiet(module);
    return failed ? failed : sg_add_clips(module);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static int visit_bound(PyObject *module, visitproc visit, void *arg)
{
    bound *b = PyModule_GetState(module);
    Py_VISIT(b->source.plain);
    Py_VISIT(b->source.parameter);
    Py_VISIT(b->threads);
    return 0;
}

static void free_bound(void *module) { let_go(module); }

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_read", NULL,       sizeof(bound), methods, slots,
    visit_bound,           let_go,  free_bound,
};

PyMODINIT_FUNC PyInit__read(void) { return PyModuleDef_Init(&module); }
