/* Terms on which C does what Python would: what holds them, and whether they hold. */
#ifndef SG_TERMS_H
#define SG_TERMS_H

#include <Python.h>

/* Attributes of what is in the terms. */
enum {
    STEP,
    STEPS,
    SECONDS,
    SEALED,
    DEPTH,
    GRAD_SCALE,
    DICT,
    GROUPS,
    STATE,
    LR,
    BACKWARDS,
    CLIPS,
    STEPPED,
    STEPPED_AT,
    LATEST,
    BOUNDS,
    IDLE_BEFORE,
    SCALED,
    FRESH,
    SCALE,
    SUM,
    WAITING_CALLS,
    READINGS,
    CLIP,
    MARK,
    BROKEN,
    CLIP_NORM,
    NORM,
    COEF,
    FACTOR,
    THRESHOLD,
    IDENTITIES,
    TOTAL,
    REFERENCES,
    VERSIONS,
    VERSION,
    NAMES
};

/* Terms hold, they do not, or asking raised. */
enum { RAISED = -1, NO, YES };

/* What became of a call. */
enum { FAILED = -1, DONE, NOT_THIS_ONE, CHANGED };

typedef struct {
    PyObject_HEAD PyObject *otherwise; /* what every other call goes to */
    PyObject *prepare;                 /* gives terms, a tuple, or None for none now */
    PyObject *fault;                   /* is told of an exception of ours */
    PyObject *terms;                   /* NULL for none */
    PyObject *uncounted;               /* what holds them and has to be looked at each time */
    unsigned long long as_of;          /* how many changes there had been when all of it held */
    PyObject *names[NAMES];
} quiet;

int sg_visit(PyObject *self, visitproc visit, void *arg);
int sg_clear(PyObject *self);
void sg_dealloc(PyObject *self);
int sg_begin(PyObject *self, PyObject *args, PyObject *kwargs);

/* Whether the attribute is the value. */
int sg_is_attribute(PyObject *owner, PyObject *name, PyObject *expected);

/* Whether the attribute is the value, for all (owner, name, value) in a tuple. */
int sg_all_same(PyObject *triples);

/* The same of what holds the terms: all of it the first time, and after changes. */
int sg_still_same(quiet *q, PyObject *triples);

/* Whether what the attribute holds is empty, for all (owner, name) in a tuple. */
int sg_all_empty(PyObject *pairs);

/* Add one to a count; its new value, or -1. */
long sg_count_up(PyObject *owner, PyObject *name);

/* The norm of all tensors together, from figures that were read. */
PyObject *sg_total_of(PyObject *figures);

/* Add to an owner's `seconds` what has gone by since `began`; the new sum, NULL raised. */
PyObject *sg_spend(const quiet *q, PyObject *owner, PyObject *clock, PyObject *began);

/* Tell Python of an exception of ours; -1 where it is to be raised. */
int sg_tell(const quiet *q);

/* Whether something stands behind the call; else an exception. */
int sg_is_ready(const quiet *q);

/* The end of a call: `answer` where C has done it, with a reference that is taken over (NULL for
 * None), else what stands behind it gives. */
PyObject *sg_conclude(quiet *q, int outcome, PyObject *answer, PyObject *args, PyObject *kwargs);

/* The slots of such a type. */
#define SLOTS(NAME, CALL, TEXT)                                      \
    static PyType_Slot NAME[] = {                                    \
        {Py_tp_doc, TEXT},           {Py_tp_new, PyType_GenericNew}, \
        {Py_tp_init, sg_begin},      {Py_tp_call, CALL},             \
        {Py_tp_traverse, sg_visit},  {Py_tp_clear, sg_clear},        \
        {Py_tp_dealloc, sg_dealloc}, {0, NULL},                      \
    }

#define SPEC(NAME, SLOTS)                                                                         \
    {"steadygrad.kernels._read." NAME, sizeof(quiet), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, \
     SLOTS}

#endif
