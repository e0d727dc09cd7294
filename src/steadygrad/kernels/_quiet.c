/* Steps that are like the one before, taken without a line of Python.
 *
 * `steadygrad run` only looks at most steps: it reads the gradients and keeps the figures. In
 * Python that is some dozens of calls, and between two steps the training puts the code and data of
 * all of them out of the caches. So Python says once on what terms a step is quiet and what is
 * kept; C looks at each step whether the terms hold, and calls Python for every other step.
 */
#define PY_SSIZE_T_CLEAN
#include "_quiet.h"
#include "_terms.h"

#include <math.h>
#include <string.h>

/* Whether one of the weak references is to this object. */
static int among(PyObject *references, PyObject *object)
{
    Py_ssize_t n = PyTuple_Size(references);
    int found = NO;
    for (Py_ssize_t i = 0; found == NO && i < n; i++) {
        PyObject *own = PyObject_CallNoArgs(PyTuple_GetItem(references, i));
        found = own ? own == object : RAISED;
        Py_XDECREF(own);
    }
    return found;
}

typedef int (*taker)(quiet *q, PyObject *terms, PyObject *args);

static PyObject *call(PyObject *self, PyObject *args, PyObject *kwargs, taker take)
{
    quiet *q = (quiet *)self;
    if (!sg_is_ready(q))
        return NULL;
    Py_INCREF(self); /* what Python does may let go of this */
    PyObject *terms = q->terms;
    Py_XINCREF(terms);
    int outcome = terms ? take(q, terms, args) : NOT_THIS_ONE;
    Py_XDECREF(terms);
    PyObject *result = sg_conclude(q, outcome, NULL, args, kwargs);
    Py_DECREF(self);
    return result;
}

/* ---- a call that needs no answer on some terms ---- */

enum { OPTIMIZERS, IDLE, SAME, CALL_NOW, EMPTY, SETS, OWNER, COUNT, CALL_TERMS };

/* Whether no step is under way in any of those that are alive. */
static int all_idle(const quiet *q, PyObject *references)
{
    Py_ssize_t n = PyTuple_Size(references);
    int idle = YES;
    for (Py_ssize_t i = 0; idle == YES && i < n; i++) {
        PyObject *owner = PyObject_CallNoArgs(PyTuple_GetItem(references, i));
        if (!owner)
            return RAISED;
        idle = owner == Py_None || sg_is_attribute(owner, q->names[STEP], Py_None);
        Py_DECREF(owner);
    }
    return idle;
}

static int take_call(quiet *q, PyObject *terms, PyObject *args)
{
    int held;
    if (PyTuple_Size(terms) != CALL_TERMS || PyTuple_Size(args) < 1)
        return NOT_THIS_ONE;
    if ((held = among(PyTuple_GetItem(terms, OPTIMIZERS), PyTuple_GetItem(args, 0))) != YES ||
        (held = sg_still_same(q, PyTuple_GetItem(terms, SAME))) != YES ||
        (held = sg_all_same(PyTuple_GetItem(terms, CALL_NOW))) != YES ||
        (held = sg_all_empty(PyTuple_GetItem(terms, EMPTY))) != YES)
        return held == NO ? CHANGED : FAILED;
    if ((held = all_idle(q, PyTuple_GetItem(terms, IDLE))) != YES)
        return held == NO ? NOT_THIS_ONE : FAILED;
    PyObject *sets = PyTuple_GetItem(terms, SETS);
    for (Py_ssize_t i = 0; i < PyTuple_Size(sets); i++) {
        PyObject *set = PyTuple_GetItem(sets, i);
        if (PyObject_SetAttr(PyTuple_GetItem(set, 0), PyTuple_GetItem(set, 1),
                             PyTuple_GetItem(set, 2)) != 0)
            return FAILED;
    }
    PyObject *owner = PyTuple_GetItem(terms, OWNER);
    if (owner != Py_None && sg_count_up(owner, PyTuple_GetItem(terms, COUNT)) < 0)
        return FAILED;
    return DONE;
}

static PyObject *call_unless(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return call(self, args, kwargs, take_call);
}

/* ---- a step ---- */

enum {
    OPTIMIZER, /* a weak reference */
    STEP_SAME, /* what holds as long as these terms do */
    STEP_EMPTY,
    NOW,     /* what must hold beside, and may not at one step alone */
    MODULES, /* where this module is loaded, steps of optimizers without state are for Python */
    MAKER,
    LISTED,     /* the parameters, as the groups have them, */
    PARAMS,     /* and each once */
    SPARSE,     /* whether any gradient may be */
    REST_EMPTY, /* where these hold, no clip call was made before this step, */
    UNREAD,     /* and this is what is known of it; */
    CLOCKS,     /* these clocks move then; */
    METER,      /* and this one counts the backward passes */
    PASSES,     /* tells of the other steps, None for those that are for Python */
    SEAL,       /* reads gradients that C has refused; None and False where nobody can */
    HEARD,      /* gives the loss */
    ENGINE,
    UNDER_WAY, /* what its `step` is until the step is over */
    SAMPLER,   /* has something to do from this step on, */
    SAMPLE,    /* which is this */
    JOURNAL,   /* its last step is this one, */
    KIND,      /* of this type, made of a tuple, */
    NUMBER,    /* with the optimizer's number */
    IDS,       /* and its tensors' */
    TIME,      /* gives the time of day */
    QUEUE,     /* where it goes, */
    APPEND,    /* by this, */
    ROOM,      /* as long as it has fewer than these */
    SHUT,      /* and nothing is in these; */
    FILE_STEP, /* does all that for steps that are not plain */
    UNUSUAL,   /* says by bounds which steps are usual, */
    WAITING,   /* of which these wait to be looked into; */
    NOTICE,    /* is told of the others */
    CLOCK,     /* gives seconds */
    SPENT,     /* is told of the seconds spent, every so many steps */
    EVERY,
    STEP_TERMS
};

/* Whether a step is one for these terms at all. */
static int is_usual(const quiet *q, PyObject *terms, PyObject *optimizer, PyObject *args)
{
    PyObject *given = PyTuple_GetItem(args, 1), *options = PyTuple_GetItem(args, 2);
    if (!PyTuple_Check(given) || PyTuple_Size(given) != 1 || PyObject_Not(options) != 1)
        return NO;
    PyObject *own = PyObject_GetAttr(optimizer, q->names[DICT]);
    int scaled = own ? PySequence_Contains(own, q->names[GRAD_SCALE]) : RAISED;
    Py_XDECREF(own);
    if (scaled != NO)
        return scaled == RAISED ? RAISED : NO;
    PyObject *state = PyObject_GetAttr(optimizer, q->names[STATE]);
    int empty = state ? PyObject_Not(state) : RAISED;
    Py_XDECREF(state);
    if (empty == YES)
        empty = PyDict_Contains(PyTuple_GetItem(terms, MODULES), PyTuple_GetItem(terms, MAKER));
    return empty < 0 ? RAISED : !empty;
}

/* Whether the optimizer moves the parameters of before; its groups are kept in `groups`. */
static int moves_the_same(const quiet *q, PyObject *terms, PyObject *optimizer, PyObject **groups)
{
    *groups = PyObject_GetAttr(optimizer, q->names[GROUPS]);
    int same = *groups ? sg_hold(*groups, PyTuple_GetItem(terms, LISTED)) : RAISED;
    PyObject *first = same == YES ? PySequence_GetItem(*groups, 0) : NULL;
    if (same == YES)
        same = first ? PyDict_Check(first) : RAISED;
    Py_XDECREF(first);
    return same;
}

/* The optimizer steps: what is later is told from these. -1 raised. */
static int move_clocks(const quiet *q, PyObject *terms)
{
    PyObject *clocks = PyTuple_GetItem(terms, CLOCKS);
    PyObject *now = PyObject_GetAttr(PyTuple_GetItem(terms, METER), q->names[BACKWARDS]);
    int failed = !now;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_Size(clocks); i++) {
        PyObject *clock = PyTuple_GetItem(clocks, i), *answer = NULL;
        PyObject *clips = PyObject_GetAttr(clock, q->names[CLIPS]);
        int none = clips ? PyObject_Not(clips) : RAISED;
        int stepped = none == YES ? sg_is_attribute(clock, q->names[STEPPED], Py_True) : none;
        Py_XDECREF(clips);
        if (stepped == YES) /* nothing but the time has changed since the last one */
            failed = PyObject_SetAttr(clock, q->names[STEP], now) != 0;
        else if (stepped == NO)
            failed = !(answer = PyObject_CallMethodObjArgs(clock, q->names[STEPPED_AT], now, NULL));
        else
            failed = 1;
        Py_XDECREF(answer);
    }
    Py_XDECREF(now);
    return failed ? -1 : 0;
}

/* What the script did to the gradients: a tuple, None for a step that is for Python, NULL raised.
 */
static PyObject *passed_by(PyObject *terms, PyObject *step, int *at_rest)
{
    int rests = sg_all_empty(PyTuple_GetItem(terms, REST_EMPTY));
    *at_rest = rests == YES;
    if (rests == RAISED)
        return NULL;
    if (rests == YES)
        return Py_NewRef(PyTuple_GetItem(terms, UNREAD));
    return PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, PASSES), step,
                                        PyTuple_GetItem(terms, PARAMS), NULL);
}

/* The figures of the gradients as a bytearray; None and False as `SEAL` gives them. */
static PyObject *figures_of(PyObject *self, PyObject *terms, PyObject *passed)
{
    PyObject *known = PyTuple_GetItem(passed, 0), *params = PyTuple_GetItem(terms, PARAMS);
    if (!known)
        return NULL;
    if (known != Py_None)
        return Py_NewRef(known);
    PyObject *module = PyType_GetModule(Py_TYPE(self));
    PyObject *read =
        !module ? NULL
                : sg_read_gradients(module, params, PyTuple_GetItem(terms, SPARSE) == Py_True);
    if (read != Py_None)
        return read;
    Py_DECREF(read);
    return PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, SEAL), params, NULL);
}

/* Whether a step lies in the range of those before, so that `UNUSUAL` may look at it later. */
static int may_wait(const quiet *q, PyObject *terms, PyObject *step, double norm, double loss)
{
    PyObject *bounds = PyObject_GetAttr(PyTuple_GetItem(terms, UNUSUAL), q->names[BOUNDS]);
    int may = RAISED;
    if (bounds && PyTuple_Size(bounds) == 4) {
        double highest_norm = PyFloat_AsDouble(PyTuple_GetItem(bounds, 0));
        double highest_loss = PyFloat_AsDouble(PyTuple_GetItem(bounds, 1));
        int late = PyObject_RichCompareBool(step, PyTuple_GetItem(bounds, 2), Py_GE);
        Py_ssize_t together = PyLong_AsSsize_t(PyTuple_GetItem(bounds, 3));
        may = late && norm < highest_norm && !(loss > highest_loss) &&
              PyList_Size(PyTuple_GetItem(terms, WAITING)) + 1 < together;
    }
    Py_XDECREF(bounds);
    return PyErr_Occurred() ? RAISED : may;
}

/* After an unusual step more of the next one is measured. -1 raised. */
static int notice(const quiet *q, PyObject *terms, PyObject *step, PyObject *norm, PyObject *loss)
{
    int may = may_wait(q, terms, step, PyFloat_AsDouble(norm), PyFloat_AsDouble(loss)), failed;
    if (may == RAISED)
        return -1;
    if (may) {
        PyObject *one = PyTuple_Pack(3, step, norm, loss);
        failed = !one || PyList_Append(PyTuple_GetItem(terms, WAITING), one) != 0;
        Py_XDECREF(one);
        return failed ? -1 : 0;
    }
    PyObject *answer =
        PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, NOTICE), step, norm, loss, NULL);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

/* Whether a step can be queued as it is: plain numbers, and a queue that takes them. */
static int is_plain(PyObject *terms, PyObject *loss, PyObject *lr)
{
    PyObject *queue = PyTuple_GetItem(terms, QUEUE);
    if (!PyFloat_CheckExact(lr) || (loss != Py_None && !PyFloat_CheckExact(loss)))
        return NO;
    if (loss != Py_None && PyFloat_AsDouble(loss) != PyFloat_AsDouble(loss))
        return NO;
    if (PyObject_Size(queue) >= PyLong_AsSsize_t(PyTuple_GetItem(terms, ROOM)))
        return PyErr_Occurred() ? RAISED : NO;
    return sg_all_empty(PyTuple_GetItem(terms, SHUT));
}

/* `FILE_STEP` for a plain step. -1 raised. */
static int queue_up(const quiet *q, PyObject *terms, PyObject *step, PyObject *norm, PyObject *loss,
                    PyObject *lr, PyObject *figures, PyObject *passed)
{
    PyObject *told = loss == Py_None ? Py_False : Py_True, *sealed = NULL, *answer = NULL;
    PyObject *value = loss == Py_None ? PyFloat_FromDouble(NAN) : Py_NewRef(loss);
    PyObject *now = PyObject_CallNoArgs(PyTuple_GetItem(terms, TIME));
    PyObject *parts =
        !value || !now ? NULL
                       : PyTuple_Pack(9, step, now, value, told, lr, PyTuple_GetItem(terms, NUMBER),
                                      PyTuple_GetItem(terms, IDS), figures, passed);
    if (parts)
        sealed = PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, KIND), parts, NULL);
    if (sealed && PyObject_SetAttr(PyTuple_GetItem(terms, JOURNAL), q->names[LATEST], sealed) == 0)
        answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, APPEND), sealed, NULL);
    int failed = !answer || notice(q, terms, step, norm, value) != 0;
    Py_XDECREF(answer);
    Py_XDECREF(sealed);
    Py_XDECREF(parts);
    Py_XDECREF(now);
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Measure beside the gradients what is due before this step. -1 raised. */
static int sample(const quiet *q, PyObject *terms, PyObject *step)
{
    PyObject *idle = PyObject_GetAttr(PyTuple_GetItem(terms, SAMPLER), q->names[IDLE_BEFORE]);
    int due = idle ? PyObject_RichCompareBool(step, idle, Py_GE) : -1;
    Py_XDECREF(idle);
    if (due != YES)
        return due;
    PyObject *answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, SAMPLE), step,
                                                    PyTuple_GetItem(terms, PARAMS), NULL);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

/* Hand over a step whose gradients were read. -1 raised. */
static int file_step(const quiet *q, PyObject *terms, PyObject *step, PyObject *loss, PyObject *lr,
                     PyObject *figures, PyObject *passed)
{
    PyObject *norm = sample(q, terms, step) == 0 ? sg_total_of(figures) : NULL, *answer;
    int plain = norm ? is_plain(terms, loss, lr) : RAISED, failed = plain == RAISED;
    if (plain == YES)
        failed = queue_up(q, terms, step, norm, loss, lr, figures, passed);
    else if (plain == NO) {
        answer = PyObject_CallFunctionObjArgs(
            PyTuple_GetItem(terms, FILE_STEP), PyTuple_GetItem(terms, KIND), step,
            PyTuple_GetItem(terms, IDS), norm, loss, lr, figures, passed, NULL);
        failed = !answer;
        Py_XDECREF(answer);
    }
    Py_XDECREF(norm);
    return failed ? -1 : 0;
}

/* The learning rate of the first group, with a reference of ours: another thread may put another in
 * its place whenever Python runs. */
static PyObject *rate_in(const quiet *q, PyObject *groups)
{
    PyObject *group = PySequence_GetItem(groups, 0);
    PyObject *lr = group ? PyDict_GetItemWithError(group, q->names[LR]) : NULL; /* borrowed */
    lr = PyErr_Occurred() ? NULL : Py_NewRef(lr ? lr : Py_None);
    Py_XDECREF(group);
    return lr;
}

/* Keep a step whose gradients were read; it is under way now. -1 raised. */
static int keep(const quiet *q, PyObject *terms, PyObject *groups, PyObject *step, PyObject *passed,
                PyObject *figures)
{
    PyObject *engine = PyTuple_GetItem(terms, ENGINE);
    PyObject *under_way = PyTuple_GetItem(terms, UNDER_WAY);
    PyObject *loss = PyObject_CallNoArgs(PyTuple_GetItem(terms, HEARD));
    PyObject *lr = loss ? rate_in(q, groups) : NULL;
    int failed = !lr;
    failed = failed || file_step(q, terms, step, loss, lr, figures, passed) != 0 ||
             PyObject_SetAttr(engine, q->names[SEALED], figures) != 0;
    Py_XDECREF(loss);
    Py_XDECREF(lr);
    PyObject *one = failed ? NULL : PyLong_FromLong(1);
    failed = !one || PyObject_SetAttr(under_way, q->names[DEPTH], one) != 0;
    Py_XDECREF(one);
    return failed ? -1 : PyObject_SetAttr(engine, q->names[STEP], under_way);
}

/* Add up what was spent on so many steps, and tell of it now and then. -1 raised. */
static int account(const quiet *q, PyObject *terms, PyObject *began, long steps)
{
    PyObject *engine = PyTuple_GetItem(terms, ENGINE);
    PyObject *after = sg_spend(q, engine, PyTuple_GetItem(terms, CLOCK), began);
    int failed = !after;
    if (!failed && steps % PyLong_AsLong(PyTuple_GetItem(terms, EVERY)) == 0) {
        PyObject *answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(terms, SPENT), after, NULL);
        failed = !answer;
        Py_XDECREF(answer);
    }
    Py_XDECREF(after);
    return failed ? -1 : 0;
}

/* Keep a step, under a number that is taken here: while Python runs another thread may step. */
static int keep_as_next(const quiet *q, PyObject *terms, PyObject *groups, PyObject *passed,
                        PyObject *figures, PyObject *began)
{
    long steps = sg_count_up(PyTuple_GetItem(terms, ENGINE), q->names[STEPS]);
    PyObject *step = steps < 0 ? NULL : PyLong_FromLong(steps - 1);
    int failed = !step || keep(q, terms, groups, step, passed, figures) != 0;
    Py_XDECREF(step);
    return failed ? -1 : account(q, terms, began, steps);
}

static int take_gradients(quiet *q, PyObject *terms, PyObject *groups)
{
    int at_rest, outcome = FAILED;
    PyObject *engine = PyTuple_GetItem(terms, ENGINE), *passed = NULL, *figures = NULL;
    PyObject *began = PyObject_CallNoArgs(PyTuple_GetItem(terms, CLOCK));
    PyObject *step = began ? PyObject_GetAttr(engine, q->names[STEPS]) : NULL;
    if (step)
        passed = passed_by(terms, step, &at_rest);
    if (passed && passed != Py_None)
        figures = figures_of((PyObject *)q, terms, passed);
    if (passed == Py_None || figures == Py_None)
        outcome = NOT_THIS_ONE;
    else if (figures == Py_False)
        outcome = CHANGED;
    else if (figures && (!at_rest || move_clocks(q, terms) == 0) &&
             keep_as_next(q, terms, groups, passed, figures, began) == 0)
        outcome = DONE;
    Py_XDECREF(began);
    Py_XDECREF(step);
    Py_XDECREF(passed);
    Py_XDECREF(figures);
    return outcome;
}

static int take_step(quiet *q, PyObject *terms, PyObject *args)
{
    int held;
    PyObject *groups = NULL;
    if (PyTuple_Size(terms) != STEP_TERMS || PyTuple_Size(args) != 3)
        return NOT_THIS_ONE;
    PyObject *optimizer = PyTuple_GetItem(args, 0);
    PyObject *own = PyObject_CallNoArgs(PyTuple_GetItem(terms, OPTIMIZER));
    held = own ? own == optimizer : RAISED;
    Py_XDECREF(own);
    if (held != YES || (held = is_usual(q, terms, optimizer, args)) != YES ||
        (held = sg_all_same(PyTuple_GetItem(terms, NOW))) != YES)
        return held == NO ? NOT_THIS_ONE : FAILED;
    if ((held = sg_still_same(q, PyTuple_GetItem(terms, STEP_SAME))) == YES &&
        (held = sg_all_empty(PyTuple_GetItem(terms, STEP_EMPTY))) == YES)
        held = moves_the_same(q, terms, optimizer, &groups);
    int outcome = held == YES ? take_gradients(q, terms, groups) : held == NO ? CHANGED : FAILED;
    Py_XDECREF(groups);
    return outcome;
}

static PyObject *call_step(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return call(self, args, kwargs, take_step);
}

/* ---- a backward pass, and a derivative by inputs ---- */

enum {
    PASS_SAME,  /* what holds as long as these terms do */
    PASS_NOW,   /* what must hold beside, and may not at one pass alone */
    TASK,       /* gives -1 where no pass is under way */
    TENSOR,     /* the type of a root that calls nothing again */
    LOSSES,     /* adds up losses */
    PASSED,     /* has a count of the passes, */
    PASS_COUNT, /* of this name */
    PASS_TERMS
};

/* Whether this thread is in no backward pass. */
static int is_outside(PyObject *task)
{
    PyObject *number = PyObject_CallNoArgs(task);
    long now = number ? PyLong_AsLong(number) : 0;
    Py_XDECREF(number);
    return PyErr_Occurred() ? RAISED : now == -1;
}

/* Whether a loss is the first since the last step, and none that a GradScaler made. */
static int is_first(const quiet *q, PyObject *losses)
{
    int is = sg_is_attribute(losses, q->names[SCALED], Py_None);
    return is == YES ? sg_is_attribute(losses, q->names[FRESH], Py_False) : is;
}

/* -1 raised. */
static int hear(const quiet *q, PyObject *losses, PyObject *loss)
{
    if (PyObject_SetAttr(losses, q->names[SCALE], Py_None) != 0 ||
        PyObject_SetAttr(losses, q->names[SUM], loss) != 0 ||
        PyObject_SetAttr(losses, q->names[FRESH], Py_True) != 0)
        return -1;
    return sg_count_up(losses, q->names[BACKWARDS]) < 0 ? -1 : 0;
}

static int take_pass(quiet *q, PyObject *terms, PyObject *args)
{
    int held;
    PyObject *given = PyTuple_Size(args) == 1 ? PyTuple_GetItem(args, 0) : NULL;
    if (!given || !PyTuple_Check(given) || PyTuple_Size(terms) != PASS_TERMS ||
        PyTuple_Size(given) < 2)
        return NOT_THIS_ONE;
    PyObject *root = PyTuple_GetItem(given, 0), *losses = PyTuple_GetItem(terms, LOSSES);
    if ((PyObject *)Py_TYPE(root) != PyTuple_GetItem(terms, TENSOR) ||
        PyTuple_GetItem(given, 1) != Py_None)
        return NOT_THIS_ONE;
    if ((held = sg_still_same(q, PyTuple_GetItem(terms, PASS_SAME))) != YES)
        return held == NO ? CHANGED : FAILED;
    if ((held = sg_all_same(PyTuple_GetItem(terms, PASS_NOW))) != YES ||
        (held = is_outside(PyTuple_GetItem(terms, TASK))) != YES ||
        (held = is_first(q, losses)) != YES)
        return held == NO ? NOT_THIS_ONE : FAILED;
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)q));
    PyObject *loss = module ? sg_number(module, root) : NULL;
    int outcome = loss == Py_None ? NOT_THIS_ONE : loss ? DONE : FAILED;
    if (outcome == DONE &&
        (hear(q, losses, loss) != 0 ||
         sg_count_up(PyTuple_GetItem(terms, PASSED), PyTuple_GetItem(terms, PASS_COUNT)) < 0))
        outcome = FAILED;
    Py_XDECREF(loss);
    return outcome;
}

static PyObject *call_pass(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return call(self, args, kwargs, take_pass);
}

enum {
    GRAD_SAME, /* what holds as long as these terms do */
    BY,        /* the type of a single input */
    GRAD_TERMS
};

static int take_grad(quiet *q, PyObject *terms, PyObject *args)
{
    PyObject *given = PyTuple_Size(args) == 1 ? PyTuple_GetItem(args, 0) : NULL;
    if (!given || !PyTuple_Check(given) || PyTuple_Size(terms) != GRAD_TERMS ||
        PyTuple_Size(given) < 2 ||
        (PyObject *)Py_TYPE(PyTuple_GetItem(given, 1)) != PyTuple_GetItem(terms, BY))
        return NOT_THIS_ONE;
    int held = sg_still_same(q, PyTuple_GetItem(terms, GRAD_SAME));
    return held == YES ? DONE : held == NO ? CHANGED : FAILED;
}

static PyObject *call_grad(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return call(self, args, kwargs, take_grad);
}

/* ---- the types ---- */

SLOTS(unless_slots, call_unless, "QuietCall(otherwise, prepare, fault)");
SLOTS(step_slots, call_step, "QuietStep(otherwise, prepare, fault)");
SLOTS(pass_slots, call_pass, "QuietPass(otherwise, prepare, fault)");
SLOTS(grad_slots, call_grad, "QuietGrad(otherwise, prepare, fault)");

static PyType_Spec specs[] = {
    SPEC("QuietCall", unless_slots),
    SPEC("QuietStep", step_slots),
    SPEC("QuietPass", pass_slots),
    SPEC("QuietGrad", grad_slots),
};

int sg_add_quiet(PyObject *module)
{
    int failed = 0;
    for (size_t i = 0; !failed && i < sizeof specs / sizeof *specs; i++) {
        PyObject *type = PyType_FromModuleAndSpec(module, specs + i, NULL);
        failed = type ? PyModule_AddObjectRef(module, strrchr(specs[i].name, '.') + 1, type) : -1;
        Py_XDECREF(type);
    }
    return failed;
}
