/* Terms on which C does what Python would: what holds them, and whether they hold. */
#define PY_SSIZE_T_CLEAN
#include "_terms.h"
#include "_gate.h"
#include "_stamped.h"

#include <string.h>

static const char *const NAME_OF[NAMES] = {
    "step",      "steps",        "seconds",    "sealed",  "depth",       "grad_scale",
    "__dict__",  "param_groups", "state",      "lr",      "backwards",   "clips",
    "stepped",   "stepped_at",   "latest",     "bounds",  "idle_before", "_scaled",
    "_fresh",    "scale",        "_sum",       "waiting", "readings",    "clip",
    "mark",      "broken",       "_clip_norm", "norm",    "coef",        "factor",
    "threshold", "ids",          "total",      "_grads",  "_versions",   "_version",
};

int sg_is_attribute(PyObject *owner, PyObject *name, PyObject *expected)
{
    PyObject *now = PyObject_GetAttr(owner, name);
    int is = now ? now == expected : RAISED;
    Py_XDECREF(now);
    return is;
}

/* Whether the attribute is the value, for all (owner, name, value) in a tuple. */
int sg_all_same(PyObject *triples)
{
    Py_ssize_t n = PyTuple_Size(triples);
    int same = YES;
    for (Py_ssize_t i = 0; same == YES && i < n; i++) {
        PyObject *triple = PyTuple_GetItem(triples, i); /* borrowed */
        same = sg_is_attribute(PyTuple_GetItem(triple, 0), PyTuple_GetItem(triple, 1),
                               PyTuple_GetItem(triple, 2));
    }
    return same;
}

/* Those of the triples whose changes nobody counts; NULL raised. */
static PyObject *uncounted_of(PyObject *triples)
{
    PyObject *list = PyList_New(0), *all = NULL;
    int counts = list ? 0 : RAISED;
    for (Py_ssize_t i = 0; counts >= 0 && i < PyTuple_Size(triples); i++) {
        PyObject *triple = PyTuple_GetItem(triples, i); /* borrowed */
        counts = sg_counts(PyTuple_GetItem(triple, 0), PyTuple_GetItem(triple, 1));
        if (counts == 0 && PyList_Append(list, triple) != 0)
            counts = RAISED;
    }
    if (counts >= 0)
        all = PyList_AsTuple(list);
    Py_XDECREF(list);
    return all;
}

int sg_still_same(quiet *q, PyObject *triples)
{
    unsigned long long now = sg_changes();
    if (q->uncounted && q->as_of == now) {
        PyObject *uncounted = Py_NewRef(q->uncounted); /* what Python does may let go of this */
        int same = sg_all_same(uncounted);
        Py_DECREF(uncounted);
        return same;
    }
    if (!q->uncounted && !(q->uncounted = uncounted_of(triples)))
        return RAISED;
    int same = sg_all_same(triples);
    if (same == YES)
        q->as_of = now;
    return same;
}

/* Whether what the attribute holds is empty, for all (owner, name) in a tuple. */
int sg_all_empty(PyObject *pairs)
{
    Py_ssize_t n = PyTuple_Size(pairs);
    int empty = YES;
    for (Py_ssize_t i = 0; empty == YES && i < n; i++) {
        PyObject *pair = PyTuple_GetItem(pairs, i); /* borrowed */
        PyObject *now = PyObject_GetAttr(PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1));
        empty = now ? PyObject_Not(now) : RAISED;
        Py_XDECREF(now);
    }
    return empty;
}

long sg_count_up(PyObject *owner, PyObject *name)
{
    PyObject *old = PyObject_GetAttr(owner, name);
    long value = old ? PyLong_AsLong(old) + 1 : 0;
    PyObject *new = value > 0 ? PyLong_FromLong(value) : NULL;
    int failed = !new || PyObject_SetAttr(owner, name, new) != 0;
    Py_XDECREF(old);
    Py_XDECREF(new);
    return failed ? -1 : value;
}

int sg_visit(PyObject *self, visitproc visit, void *arg)
{
    quiet *q = (quiet *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(q->otherwise);
    Py_VISIT(q->prepare);
    Py_VISIT(q->fault);
    Py_VISIT(q->terms);
    Py_VISIT(q->uncounted);
    return 0;
}

int sg_clear(PyObject *self)
{
    quiet *q = (quiet *)self;
    Py_CLEAR(q->otherwise);
    Py_CLEAR(q->prepare);
    Py_CLEAR(q->fault);
    Py_CLEAR(q->terms);
    Py_CLEAR(q->uncounted);
    for (int i = 0; i < NAMES; i++)
        Py_CLEAR(q->names[i]);
    return 0;
}

void sg_dealloc(PyObject *self) { sg_end(self, sg_clear); }

int sg_begin(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"otherwise", "prepare", "fault", NULL};
    PyObject *otherwise, *prepare, *fault;
    quiet *q = (quiet *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO", names, &otherwise, &prepare, &fault))
        return -1;
    sg_clear(self);
    for (int i = 0; i < NAMES; i++)
        if (!(q->names[i] = PyUnicode_InternFromString(NAME_OF[i])))
            return -1;
    q->otherwise = Py_NewRef(otherwise);
    q->prepare = Py_NewRef(prepare);
    q->fault = Py_NewRef(fault);
    return 0;
}

/* Ask for terms; whoever stands behind the call has just done it whole. -1 raised. */
static int agree(quiet *q)
{
    PyObject *terms = PyObject_CallNoArgs(q->prepare);
    int failed = !terms;
    if (terms && terms != Py_None && !PyTuple_Check(terms)) {
        PyErr_SetString(PyExc_TypeError, "terms are a tuple, or None");
        failed = 1;
    }
    Py_CLEAR(q->uncounted);
    PyObject *old = q->terms;
    q->terms = failed || terms == Py_None ? NULL : Py_NewRef(terms);
    Py_XDECREF(old);
    Py_XDECREF(terms);
    return failed ? -1 : 0;
}

/* Tell Python of an exception of ours; -1 where it is to be raised. */
int sg_tell(const quiet *q)
{
    PyObject *type, *error, *trace, *answer;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace)
        PyException_SetTraceback(error, trace); /* tells whose fault it is */
    answer = PyObject_CallFunctionObjArgs(q->fault, error, NULL);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

PyObject *sg_total_of(PyObject *figures)
{
    double total;
    Py_ssize_t size = PyByteArray_Size(figures);
    memcpy(&total, PyByteArray_AsString(figures) + size - (Py_ssize_t)sizeof total, sizeof total);
    return PyFloat_FromDouble(total);
}

PyObject *sg_spend(const quiet *q, PyObject *owner, PyObject *clock, PyObject *began)
{
    PyObject *now = PyObject_CallNoArgs(clock);
    PyObject *before = now ? PyObject_GetAttr(owner, q->names[SECONDS]) : NULL;
    PyObject *after = before ? PyFloat_FromDouble(PyFloat_AsDouble(before) + PyFloat_AsDouble(now) -
                                                  PyFloat_AsDouble(began))
                             : NULL;
    if (after && PyObject_SetAttr(owner, q->names[SECONDS], after) != 0)
        Py_CLEAR(after);
    Py_XDECREF(now);
    Py_XDECREF(before);
    return after;
}

int sg_is_ready(const quiet *q)
{
    if (!q->otherwise)
        PyErr_SetString(PyExc_RuntimeError, "nothing stands behind this call");
    return q->otherwise != NULL;
}

PyObject *sg_conclude(quiet *q, int outcome, PyObject *answer, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL;
    if (outcome == CHANGED || outcome == FAILED)
        Py_CLEAR(q->terms);
    if (outcome == FAILED)
        outcome = sg_tell(q) == 0 ? DONE : FAILED;
    if (outcome == DONE)
        result = answer ? answer : Py_NewRef(Py_None);
    else if (outcome != FAILED)
        result = PyObject_Call(q->otherwise, args, kwargs);
    if (result && outcome != DONE && !q->terms && agree(q) != 0 && sg_tell(q) != 0)
        Py_CLEAR(result);
    return result;
}
