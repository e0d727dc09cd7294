/* A callable that stands before a function of ours in a training's way.
 *
 * What is called at every step asks first whether torch traces, or a mode of the script is on. In
 * Python that is a frame, a tuple and a dict more a call, which the training's own work puts out of
 * the caches in between.
 */
#define PY_SSIZE_T_CLEAN
#include "_gate.h"

#include <structmember.h>

void sg_end(PyObject *self, inquiry clear)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

typedef struct {
    PyObject_HEAD PyObject *function; /* called where all `watchers` give None or 0, */
    PyObject *watched;                /* and this where one does not */
    PyObject *watchers;
} gate;

static int visit(PyObject *self, visitproc visit, void *arg)
{
    gate *g = (gate *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(g->function);
    Py_VISIT(g->watched);
    Py_VISIT(g->watchers);
    return 0;
}

static int clear(PyObject *self)
{
    gate *g = (gate *)self;
    Py_CLEAR(g->function);
    Py_CLEAR(g->watched);
    Py_CLEAR(g->watchers);
    return 0;
}

static void end(PyObject *self) { sg_end(self, clear); }

static int begin(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"function", "watched", "watchers", NULL};
    PyObject *function, *watched, *watchers;
    gate *g = (gate *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO!", names, &function, &watched,
                                     &PyTuple_Type, &watchers))
        return -1;
    clear(self);
    g->function = Py_NewRef(function);
    g->watched = Py_NewRef(watched);
    g->watchers = Py_NewRef(watchers);
    return 0;
}

/* Whether one of the watchers sees into what is called now; -1 raised. */
static int is_watched(PyObject *watchers)
{
    int watched = 0;
    for (Py_ssize_t i = 0; !watched && i < PyTuple_Size(watchers); i++) {
        PyObject *seer = PyObject_CallNoArgs(PyTuple_GetItem(watchers, i));
        if (!seer)
            return -1;
        int none = seer == Py_None || (PyLong_CheckExact(seer) && PyObject_Not(seer) == 1);
        watched = !none;
        Py_DECREF(seer);
    }
    return watched;
}

static PyObject *call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    gate *g = (gate *)self;
    if (!g->function || !g->watchers) {
        PyErr_SetString(PyExc_RuntimeError, "a gate without a function");
        return NULL;
    }
    int watched = is_watched(g->watchers);
    if (watched < 0)
        return NULL;
    /* a reference of our own: the function may put another in its place */
    PyObject *function = Py_NewRef(watched ? g->watched : g->function);
    PyObject *result = PyObject_Call(function, args, kwargs);
    Py_DECREF(function);
    return result;
}

static PyMemberDef members[] = {
    {"function", T_OBJECT, offsetof(gate, function), 0, "Called where nobody sees into it."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Gate(function, watched, watchers)"},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, begin},
    {Py_tp_call, call},
    {Py_tp_members, members},
    {Py_tp_traverse, visit},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, end},
    {0, NULL},
};

static PyType_Spec spec = {
    "steadygrad.kernels._read.Gate",         sizeof(gate), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots,
};

int sg_add_gate(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type ? PyModule_AddObjectRef(module, "Gate", type) : -1;
    Py_XDECREF(type);
    return failed;
}
