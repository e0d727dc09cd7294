/* Clip calls that are like the one before, taken without a line of Python.
 *
 * Most loops clip all weights in one place, at one threshold, at every step. What such a call is
 * stands in the terms; C reads the gradients before it, and notes what it has left of them. Every
 * other call is Python's; see `steadygrad.torch.clip_calls.usual`.
 */
#define PY_SSIZE_T_CLEAN
#include "_clips.h"
#include "_gate.h"
#include "_quiet.h"
#include "_terms.h"

#include <math.h>
#include <string.h>
#include <structmember.h>

enum {
    SAME,  /* what holds as long as these terms do */
    EMPTY, /* what must be beside, and may not at one call alone */
    LOG,   /* has readings, and calls that wait for their step */
    LOSSES,
    ENTRY,       /* adds up the seconds spent, */
    TIMER,       /* which this gives */
    MODULES,     /* where there is this module, */
    FLAT,        /* parameters may be pieces */
    DISTRIBUTED, /* if this says so */
    GENERATOR,   /* a type: what can be read only once */
    FAILING,     /* gives the like of one that raised after some items */
    READING,     /* a type, and its attributes */
    OF_READING,
    WEIGHT, /* a type of tuple: marks a weight at a call */
    NOTE,   /* a type of calls */
    OVER,   /* told of a call that left no finite norm */
    SPARSE, /* whether any gradient may be */
    PATTERNS,
    CLIP_TERMS
};

enum {
    PATTERN,
    ADDRESSES, /* of the parameters, as bytes, */
    NUMBERS,   /* and as a list of numbers */
    OTHERS,    /* such lists of others, none of whose parameters are these */
    BEHIND,    /* the arguments behind the parameters */
    HAND,      /* their clock */
    SINCE,     /* backward passes since its last step */
    LIMIT,     /* the threshold, */
    MAX_NORM,  /* and as the script gave it */
    FACTS,     /* the attributes of such a call */
    PATTERN_TERMS
};

/* ---- a call under way ---- */

typedef struct {
    PyObject_HEAD PyObject *arguments; /* with which it goes on */
    PyObject *quiet;                   /* who began it; the others are NULL when it is over */
    PyObject *terms;
    PyObject *pattern;
    PyObject *reading;
    PyObject *grads;
} usual;

static int visit_usual(PyObject *self, visitproc visit, void *arg)
{
    usual *u = (usual *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(u->arguments);
    Py_VISIT(u->quiet);
    Py_VISIT(u->terms);
    Py_VISIT(u->pattern);
    Py_VISIT(u->reading);
    Py_VISIT(u->grads);
    return 0;
}

static int clear_usual(PyObject *self)
{
    usual *u = (usual *)self;
    Py_CLEAR(u->arguments);
    Py_CLEAR(u->quiet);
    Py_CLEAR(u->terms);
    Py_CLEAR(u->pattern);
    Py_CLEAR(u->reading);
    Py_CLEAR(u->grads);
    return 0;
}

static void end_usual(PyObject *self) { sg_end(self, clear_usual); }

/* An object of a class of Python's with these attributes, which it takes over. */
static PyObject *made(const quiet *q, PyObject *type, PyObject *attributes)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    PyObject *object = attributes ? alloc((PyTypeObject *)type, 0) : NULL;
    if (object && PyObject_SetAttr(object, q->names[DICT], attributes) != 0)
        Py_CLEAR(object);
    Py_XDECREF(attributes);
    return object;
}

/* Set an item to a value that is taken over; -1 raised. */
static int put(PyObject *dict, PyObject *name, PyObject *value)
{
    int failed = !dict || !value || PyDict_SetItem(dict, name, value) != 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Set an attribute to a value that is taken over; -1 raised. */
static int set(PyObject *owner, PyObject *name, PyObject *value)
{
    int failed = !value || PyObject_SetAttr(owner, name, value) != 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Append to a list that is an attribute; -1 raised. */
static int append(PyObject *owner, PyObject *name, PyObject *item)
{
    PyObject *list = PyObject_GetAttr(owner, name);
    int failed = !list || PyList_Append(list, item) != 0;
    Py_XDECREF(list);
    return failed ? -1 : 0;
}

/* Add up what was spent; -1 raised. */
static int spend(const quiet *q, PyObject *terms, PyObject *began)
{
    PyObject *after =
        sg_spend(q, PyTuple_GetItem(terms, ENTRY), PyTuple_GetItem(terms, TIMER), began);
    Py_XDECREF(after);
    return after ? 0 : -1;
}

/* ---- its start ---- */

/* Whether a list holds the objects at these addresses, in their order. */
static int is_at(PyObject *list, PyObject *addresses)
{
    Py_ssize_t n = PyList_Size(list);
    const char *bytes = PyBytes_AsString(addresses);
    if (PyBytes_Size(addresses) != n * (Py_ssize_t)sizeof(uintptr_t))
        return NO;
    for (Py_ssize_t i = 0; i < n; i++) {
        uintptr_t address;
        memcpy(&address, bytes + i * (Py_ssize_t)sizeof address, sizeof address);
        if ((uintptr_t)PyList_GetItem(list, i) != address)
            return NO;
    }
    return YES;
}

/* The terms of calls like this one, borrowed; NULL for none. */
static PyObject *pattern_of(PyObject *patterns, PyObject *given, PyObject *parameters)
{
    for (Py_ssize_t k = 0; k < PyTuple_Size(patterns); k++) {
        PyObject *pattern = PyTuple_GetItem(patterns, k);
        PyObject *behind = PyTuple_GetItem(pattern, BEHIND);
        Py_ssize_t n = PyTuple_Size(behind);
        int same = PyTuple_Size(given) == n + 1;
        for (Py_ssize_t i = 0; same && i < n; i++)
            same = PyTuple_GetItem(given, i + 1) == PyTuple_GetItem(behind, i);
        if (same && is_at(parameters, PyTuple_GetItem(pattern, ADDRESSES)))
            return pattern;
    }
    return NULL;
}

/* Whether parameters may be pieces of others. */
static int may_be_pieces(PyObject *terms)
{
    int loaded = PyDict_Contains(PyTuple_GetItem(terms, MODULES), PyTuple_GetItem(terms, FLAT));
    PyObject *answer =
        loaded == YES ? PyObject_CallNoArgs(PyTuple_GetItem(terms, DISTRIBUTED)) : NULL;
    if (loaded == YES)
        loaded = answer ? PyObject_IsTrue(answer) : RAISED;
    Py_XDECREF(answer);
    return loaded;
}

/* Whether the call stands where the one before it stood. */
static int stands_there(const quiet *q, PyObject *clock, PyObject *since, PyObject *now)
{
    PyObject *clips = PyObject_GetAttr(clock, q->names[CLIPS]);
    int there = clips ? PyObject_Not(clips) : RAISED;
    PyObject *step = there == YES ? PyObject_GetAttr(clock, q->names[STEP]) : NULL;
    PyObject *passes = step ? PyNumber_Subtract(now, step) : NULL;
    if (there == YES)
        there = passes ? PyObject_RichCompareBool(passes, since, Py_EQ) : RAISED;
    Py_XDECREF(clips);
    Py_XDECREF(step);
    Py_XDECREF(passes);
    return there;
}

/* Whether there is no reading but those of other parameters. */
static int are_unread(const quiet *q, PyObject *log, PyObject *others)
{
    PyObject *readings = PyObject_GetAttr(log, q->names[READINGS]);
    int unread = readings ? YES : RAISED;
    for (Py_ssize_t i = 0; unread == YES && i < PyList_Size(readings); i++) {
        PyObject *ids = PyObject_GetAttr(PyList_GetItem(readings, i), q->names[IDENTITIES]);
        unread = ids ? NO : RAISED;
        for (Py_ssize_t k = 0; unread == NO && k < PyTuple_Size(others); k++)
            unread = PyTuple_GetItem(others, k) == ids;
        Py_XDECREF(ids);
    }
    Py_XDECREF(readings);
    return unread;
}

/* A list of what `of` gives for each of these. */
static PyObject *each(const quiet *q, PyObject *grads, PyObject *(*of)(const quiet *, PyObject *))
{
    Py_ssize_t n = PyList_Size(grads);
    PyObject *all = PyList_New(n);
    for (Py_ssize_t i = 0; all && i < n; i++) {
        PyObject *one = of(q, PyList_GetItem(grads, i));
        if (!one || PyList_SetItem(all, i, one) != 0)
            Py_CLEAR(all);
    }
    return all;
}

static PyObject *version_of(const quiet *q, PyObject *tensor)
{
    return PyObject_GetAttr(tensor, q->names[VERSION]);
}

static PyObject *weakly(const quiet *q, PyObject *object)
{
    (void)q;
    return PyWeakref_NewRef(object, NULL);
}

/* A reading of these gradients, whose figures are taken over. */
static PyObject *reading_of(const quiet *q, PyObject *terms, PyObject *pattern, PyObject *grads,
                            PyObject *figures)
{
    PyObject *attributes = PyDict_Copy(PyTuple_GetItem(terms, OF_READING));
    int failed =
        put(attributes, q->names[SEALED], figures) != 0 ||
        put(attributes, q->names[IDENTITIES], Py_NewRef(PyTuple_GetItem(pattern, NUMBERS))) != 0 ||
        put(attributes, q->names[TOTAL], sg_total_of(figures)) != 0 ||
        put(attributes, q->names[REFERENCES], each(q, grads, weakly)) != 0 ||
        put(attributes, q->names[VERSIONS], each(q, grads, version_of)) != 0;
    if (failed)
        Py_CLEAR(attributes);
    return made(q, PyTuple_GetItem(terms, READING), attributes);
}

/* A weight and its gradient at this call. */
static PyObject *mark_of(const quiet *q, PyObject *terms, PyObject *weight, PyObject *grad)
{
    PyObject *type = PyTuple_GetItem(terms, WEIGHT), *mark = NULL;
    newfunc new = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *owner = PyWeakref_NewRef(weight, NULL), *own = PyWeakref_NewRef(grad, NULL);
    PyObject *version = owner && own ? version_of(q, weight) : NULL;
    PyObject *parts = version ? PyTuple_Pack(3, owner, own, version) : NULL;
    PyObject *args = parts ? PyTuple_Pack(1, parts) : NULL;
    if (args)
        mark = new ((PyTypeObject *)type, args, NULL);
    Py_XDECREF(owner);
    Py_XDECREF(own);
    Py_XDECREF(version);
    Py_XDECREF(parts);
    Py_XDECREF(args);
    return mark;
}

/* A clip call is made on the parameters of this clock; -1 raised. */
static int clipped_at(const quiet *q, PyObject *clock, PyObject *now, PyObject *mark)
{
    int failed = set(clock, q->names[MARK], mark) != 0 ||
                 set(clock, q->names[CLIPS], PyLong_FromLong(1)) != 0 ||
                 PyObject_SetAttr(clock, q->names[CLIP], now) != 0 ||
                 PyObject_SetAttr(clock, q->names[BROKEN], Py_False) != 0;
    return failed ? -1 : 0;
}

/* What follows the call to its end; NULL raised. */
static PyObject *visit_of(quiet *q, PyObject *terms, PyObject *pattern, PyObject *given,
                          PyObject *reading, PyObject *grads)
{
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)q));
    PyObject *type = module ? PyObject_GetAttrString(module, "UsualClip") : NULL, *visit = NULL;
    if (type)
        visit =
            ((allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc))((PyTypeObject *)type, 0);
    if (visit) {
        usual *u = (usual *)visit;
        u->arguments = Py_NewRef(given);
        u->quiet = Py_NewRef((PyObject *)q);
        u->terms = Py_NewRef(terms);
        u->pattern = Py_NewRef(pattern);
        u->reading = Py_NewRef(reading);
        u->grads = Py_NewRef(grads);
    }
    Py_XDECREF(type);
    return visit;
}

/* Note that the call begins on gradients whose figures are taken over; NULL raised. */
static PyObject *began_on(quiet *q, PyObject *terms, PyObject *pattern, PyObject *given,
                          PyObject *parameters, PyObject *grads, PyObject *figures, PyObject *now)
{
    PyObject *weight = PyList_GetItem(parameters, 0), *grad = PyList_GetItem(grads, 0);
    PyObject *clock = PyTuple_GetItem(pattern, HAND), *visit = NULL;
    PyObject *reading = reading_of(q, terms, pattern, grads, figures);
    if (reading && append(PyTuple_GetItem(terms, LOG), q->names[READINGS], reading) == 0 &&
        clipped_at(q, clock, now, mark_of(q, terms, weight, grad)) == 0)
        visit = visit_of(q, terms, pattern, given, reading, grads);
    Py_XDECREF(reading);
    return visit;
}

/* A call of a known pattern begins. */
static int begin_call(quiet *q, PyObject *terms, PyObject *pattern, PyObject *given,
                      PyObject *parameters, PyObject **visit)
{
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)q));
    PyObject *began = PyObject_CallNoArgs(PyTuple_GetItem(terms, TIMER)), *figures = NULL;
    PyObject *now = PyObject_GetAttr(PyTuple_GetItem(terms, LOSSES), q->names[BACKWARDS]);
    PyObject *grads = module && began && now ? sg_gradients_of(module, parameters) : NULL;
    int outcome = FAILED;
    int held = grads ? stands_there(q, PyTuple_GetItem(pattern, HAND),
                                    PyTuple_GetItem(pattern, SINCE), now)
                     : RAISED;
    if (held == YES)
        figures = sg_read_list(module, grads, PyTuple_GetItem(terms, SPARSE) == Py_True);
    if (held == NO || figures == Py_None)
        outcome = NOT_THIS_ONE;
    else if (figures) {
        Py_INCREF(figures);
        *visit = began_on(q, terms, pattern, given, parameters, grads, figures, now);
        outcome = *visit && spend(q, terms, began) == 0 ? DONE : FAILED;
    }
    Py_XDECREF(figures);
    Py_XDECREF(began);
    Py_XDECREF(now);
    Py_XDECREF(grads);
    return outcome;
}

static int take_clip(quiet *q, PyObject *terms, PyObject *given, PyObject *parameters,
                     PyObject **visit)
{
    int held;
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)q));
    if (!module || PyTuple_Size(terms) != CLIP_TERMS)
        return module ? NOT_THIS_ONE : FAILED;
    if ((held = sg_still_same(q, PyTuple_GetItem(terms, SAME))) != YES)
        return held == NO ? CHANGED : FAILED;
    PyObject *pattern = pattern_of(PyTuple_GetItem(terms, PATTERNS), given, parameters);
    if (!pattern || !sg_are_plain(module, parameters))
        return NOT_THIS_ONE;
    if ((held = sg_all_empty(PyTuple_GetItem(terms, EMPTY))) != YES ||
        (held = sg_is_attribute(PyTuple_GetItem(terms, LOSSES), q->names[SCALE], Py_None)) != YES)
        return held == NO ? NOT_THIS_ONE : FAILED;
    if ((held = are_unread(q, PyTuple_GetItem(terms, LOG), PyTuple_GetItem(pattern, OTHERS))) !=
        YES)
        return held == NO ? NOT_THIS_ONE : FAILED;
    if ((held = may_be_pieces(terms)) != NO)
        return held == YES ? NOT_THIS_ONE : FAILED;
    return begin_call(q, terms, pattern, given, parameters, visit);
}

/* ---- arguments that can be read only once ---- */

/* Arguments with another first one, which is taken over. */
static PyObject *with_first(PyObject *given, PyObject *first)
{
    PyObject *rest = first ? PyTuple_GetSlice(given, 1, PyTuple_Size(given)) : NULL;
    PyObject *one = rest ? PyTuple_Pack(1, first) : NULL;
    PyObject *all = one ? PySequence_Concat(one, rest) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(rest);
    Py_XDECREF(one);
    return all;
}

/* Arguments that go on failing as this generator did, whose exception is set. */
static PyObject *failing(PyObject *terms, PyObject *given, PyObject *items)
{
    PyObject *type, *error, *trace, *again;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace)
        PyException_SetTraceback(error, trace);
    again = PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, FAILING), items, error, NULL);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return with_first(given, again);
}

/* The arguments with what a generator gives in a list; as they are where it gives nothing. */
static PyObject *read_once(PyObject *terms, PyObject *given)
{
    PyObject *generator = PyTuple_GetItem(given, 0), *items = PyList_New(0), *item, *all;
    while (items && (item = PyIter_Next(generator))) {
        if (PyList_Append(items, item) != 0)
            Py_CLEAR(items);
        Py_DECREF(item);
    }
    if (!items)
        return NULL;
    if (PyErr_Occurred())
        all = failing(terms, given, items);
    else if (PyList_Size(items))
        all = with_first(given, Py_NewRef(items));
    else
        all = Py_NewRef(given);
    Py_DECREF(items);
    return all;
}

/* What the call is given, each part as often as it is wanted; NULL raised. */
static PyObject *listed(PyObject *terms, PyObject *given)
{
    int once = (PyObject *)Py_TYPE(PyTuple_GetItem(given, 0)) == PyTuple_GetItem(terms, GENERATOR);
    return once ? read_once(terms, given) : Py_NewRef(given);
}

static PyObject *call_clip(PyObject *self, PyObject *args, PyObject *kwargs)
{
    quiet *q = (quiet *)self;
    PyObject *given = PyTuple_Size(args) == 1 ? PyTuple_GetItem(args, 0) : NULL;
    if (!sg_is_ready(q))
        return NULL;
    int known = q->terms && given && PyTuple_Check(given) && PyTuple_Size(given) > 0 &&
                PyTuple_Size(q->terms) == CLIP_TERMS;
    if (!known)
        return sg_conclude(q, NOT_THIS_ONE, NULL, args, kwargs);
    Py_INCREF(self); /* what Python does may let go of this, and of the terms */
    PyObject *terms = Py_NewRef(q->terms), *visit = NULL, *parameters = NULL, *result = NULL;
    PyObject *own = listed(terms, given), *again = own ? PyTuple_Pack(1, own) : NULL;
    if (again) {
        PyObject *first = PyTuple_GetItem(own, 0);
        int outcome = NOT_THIS_ONE;
        if (PyList_CheckExact(first) || PyTuple_CheckExact(first)) {
            parameters = PySequence_List(first);
            outcome = parameters ? take_clip(q, terms, own, parameters, &visit) : FAILED;
        }
        if (outcome != DONE)
            Py_CLEAR(visit);
        result = sg_conclude(q, outcome, visit, again, kwargs);
    }
    Py_XDECREF(parameters);
    Py_XDECREF(own);
    Py_XDECREF(again);
    Py_DECREF(terms);
    Py_DECREF(self);
    return result;
}

/* ---- its end ---- */

/* What torch multiplies gradients by. */
static double coefficient(double limit, double norm)
{
    double coef = limit / (norm + 1e-6);
    return coef < 1.0 || coef != coef ? coef : 1.0;
}

/* Note what the call has left, at a finite norm; -1 raised. */
static int note(const quiet *q, const usual *u, PyObject *norm)
{
    PyObject *log = PyTuple_GetItem(u->terms, LOG), *losses = PyTuple_GetItem(u->terms, LOSSES);
    PyObject *attributes = PyDict_Copy(PyTuple_GetItem(u->pattern, FACTS)), *call = NULL;
    double limit = PyFloat_AsDouble(PyTuple_GetItem(u->pattern, LIMIT));
    PyObject *coef = PyFloat_FromDouble(coefficient(limit, PyFloat_AsDouble(norm)));
    int failed = !attributes || !coef || put(attributes, q->names[NORM], Py_NewRef(norm)) != 0 ||
                 put(attributes, q->names[COEF], Py_NewRef(coef)) != 0;
    if (failed)
        Py_CLEAR(attributes);
    call = made(q, PyTuple_GetItem(u->terms, NOTE), attributes);
    failed = !call || PyObject_SetAttr(u->reading, q->names[FACTOR], coef) != 0 ||
             PyObject_SetAttr(u->reading, q->names[THRESHOLD],
                              PyTuple_GetItem(u->pattern, MAX_NORM)) != 0 ||
             set(u->reading, q->names[VERSIONS], each(q, u->grads, version_of)) != 0 ||
             append(log, q->names[WAITING_CALLS], call) != 0 ||
             PyObject_SetAttr(losses, q->names[CLIP_NORM], norm) != 0;
    Py_XDECREF(coef);
    Py_XDECREF(call);
    return failed ? -1 : 0;
}

/* The function is about to return this; -1 raised. */
static int over(const quiet *q, const usual *u, PyObject *result)
{
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)q)), *answer;
    PyObject *began = PyObject_CallNoArgs(PyTuple_GetItem(u->terms, TIMER));
    PyObject *norm = module && began ? sg_number(module, result) : NULL;
    int failed = !norm;
    if (norm && norm != Py_None && isfinite(PyFloat_AsDouble(norm)))
        failed = note(q, u, norm) != 0 || spend(q, u->terms, began) != 0;
    else if (norm) {
        answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(u->terms, OVER),
                                              PyTuple_GetItem(u->pattern, PATTERN), u->reading,
                                              u->grads, result, NULL);
        failed = !answer;
        Py_XDECREF(answer);
    }
    Py_XDECREF(began);
    Py_XDECREF(norm);
    return failed ? -1 : 0;
}

static PyObject *returns(PyObject *self, PyObject *result)
{
    usual *u = (usual *)self;
    int failed = 0;
    if (u->quiet) {
        const quiet *q = (const quiet *)u->quiet;
        failed = over(q, u, result) != 0 && sg_tell(q) != 0;
    }
    return failed ? NULL : Py_NewRef(result);
}

static PyObject *ends(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    Py_RETURN_NONE;
}

/* Whether these parameters' gradients are those, at those versions. */
static PyObject *are_those(PyObject *module, PyObject *args)
{
    PyObject *parameters, *references, *versions;
    if (!PyArg_ParseTuple(args, "OOO", &parameters, &references, &versions))
        return NULL;
    Py_ssize_t n = PyList_Size(references);
    if (n < 0 || PyList_Size(parameters) != n || PyList_Size(versions) != n)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    PyObject *grads = sg_gradients_of(module, parameters);
    int same = grads ? YES : RAISED;
    for (Py_ssize_t i = 0; same == YES && i < n; i++) {
        PyObject *grad = PyList_GetItem(grads, i), *version;
        same = grad != Py_None && PyWeakref_GetObject(PyList_GetItem(references, i)) == grad;
        if (same == YES) {
            version = PyObject_GetAttrString(grad, "_version");
            same = version ? PyObject_RichCompareBool(version, PyList_GetItem(versions, i), Py_EQ)
                           : RAISED;
            Py_XDECREF(version);
        }
    }
    Py_XDECREF(grads);
    return same == RAISED ? NULL : PyBool_FromLong(same);
}

/* ---- the types ---- */

static PyMethodDef usual_methods[] = {
    {"returns", returns, METH_O, "(result) -> it"},
    {"ends", ends, METH_NOARGS, "() -> None"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef usual_members[] = {
    {"arguments", T_OBJECT, offsetof(usual, arguments), READONLY, "With which the call goes on."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot usual_slots[] = {
    {Py_tp_doc, "A clip call like the one before, from its start to its end."},
    {Py_tp_methods, usual_methods},
    {Py_tp_members, usual_members},
    {Py_tp_traverse, visit_usual},
    {Py_tp_clear, clear_usual},
    {Py_tp_dealloc, end_usual},
    {0, NULL},
};

static PyType_Spec usual_spec = {"steadygrad.kernels._read.UsualClip", sizeof(usual), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, usual_slots};

SLOTS(clip_slots, call_clip, "QuietClip(otherwise, prepare, fault)");

static PyType_Spec clip_spec = SPEC("QuietClip", clip_slots);

static PyMethodDef functions[] = {
    {"are_those", are_those, METH_VARARGS,
     "(parameters, weak references, versions) -> whether their gradients are those still"},
    {NULL, NULL, 0, NULL},
};

int sg_add_clips(PyObject *module)
{
    PyObject *usual = PyType_FromModuleAndSpec(module, &usual_spec, NULL);
    PyObject *clip = usual ? PyType_FromModuleAndSpec(module, &clip_spec, NULL) : NULL;
    int failed = !clip || PyObject_SetAttrString(usual, "replaced", Py_False) != 0 ||
                 PyObject_SetAttrString(usual, "result", Py_None) != 0 ||
                 PyModule_AddObjectRef(module, "UsualClip", usual) != 0 ||
                 PyModule_AddObjectRef(module, "QuietClip", clip) != 0 ||
                 PyModule_AddFunctions(module, functions) != 0;
    Py_XDECREF(usual);
    Py_XDECREF(clip);
    return failed ? -1 : 0;
}
