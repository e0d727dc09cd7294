/* A callable that stands before a function of ours in a training's way.
 *
 * What is called at every step asks first whether torch traces. In Python that is a frame, a tuple
 * and a dict more a call, which the training's own work puts out of the caches in between.
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
    PyObject_HEAD PyObject *function; /* called where `tracer` gives None, */
    PyObject *traced;                 /* and this where it does not */
    PyObject *tracer;
} gate;

static int visit(PyObject *self, visitproc visit, void *arg)
{
    gate *g = (gate *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(g->function);
    Py_VISIT(g->traced);
    Py_VISIT(g->tracer);
    return 0;
}

static int clear(PyObject *self)
{
    gate *g = (gate *)self;
    Py_CLEAR(g->function);
    Py_CLEAR(g->traced);
    Py_CLEAR(g->tracer);
    return 0;
}

static void end(PyObject *self) { sg_end(self, clear); }

static int begin(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"function", "traced", "tracer", NULL};
    PyObject *function, *traced, *tracer;
    gate *g = (gate *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO", names, &function, &traced, &tracer))
        return -1;
    clear(self);
    g->function = Py_NewRef(function);
    g->traced = Py_NewRef(traced);
    g->tracer = Py_NewRef(tracer);
    return 0;
}

static PyObject *call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    gate *g = (gate *)self;
    if (!g->function || !g->tracer) {
        PyErr_SetString(PyExc_RuntimeError, "a gate without a function");
        return NULL;
    }
    PyObject *tracer = PyObject_CallNoArgs(g->tracer);
    if (!tracer)
        return NULL;
    /* a reference of our own: the function may put another in its place */
    PyObject *function = Py_NewRef(tracer == Py_None ? g->function : g->traced);
    PyObject *result = PyObject_Call(function, args, kwargs);
    Py_DECREF(function);
    Py_DECREF(tracer);
    return result;
}

static PyMemberDef members[] = {
    {"function", T_OBJECT, offsetof(gate, function), 0, "Called where nothing is traced."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Gate(function, traced, tracer)"},
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
