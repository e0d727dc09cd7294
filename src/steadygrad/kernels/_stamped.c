/* Objects whose changes are counted.
 *
 * Terms rest on attributes of a dozen objects, which hardly ever change. The training's own work
 * puts all of them out of the caches between two steps, so that to look at each costs several
 * misses; to look at one count of their changes costs one in all.
 */
#define PY_SSIZE_T_CLEAN
#include "_stamped.h"

static unsigned long long changes;
static PyObject *names; /* of attributes whose changes are counted */
static PyObject *type;

unsigned long long sg_changes(void) { return changes; }

static int set(PyObject *self, PyObject *name, PyObject *value)
{
    int counts = PySet_Contains(names, name);
    if (counts < 0)
        return -1;
    changes += (unsigned)counts; /* before: what is let go of may look at terms */
    return PyObject_GenericSetAttr(self, name, value);
}

int sg_counts(PyObject *owner, PyObject *name)
{
    if (!PyObject_TypeCheck(owner, (PyTypeObject *)type))
        return 0;
    /* what a property gives may change without being set */
    PyObject *of_type = PyObject_GetAttr((PyObject *)Py_TYPE(owner), name);
    if (!of_type)
        PyErr_Clear();
    int is_plain = !of_type || !PyType_GetSlot(Py_TYPE(of_type), Py_tp_descr_get);
    Py_XDECREF(of_type);
    return is_plain ? PySet_Add(names, name) == 0 ? 1 : -1 : 0;
}

static PyType_Slot slots[] = {
    {Py_tp_doc, "An object whose changes are counted, where terms rest on them."},
    {Py_tp_setattro, set},
    {0, NULL},
};

static PyType_Spec spec = {
    "steadygrad.kernels._read.Stamped",
    sizeof(PyObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    slots,
};

int sg_add_stamped(PyObject *module)
{
    if (!names)
        names = PySet_New(NULL);
    if (!type)
        type = names ? PyType_FromSpec(&spec) : NULL;
    return type ? PyModule_AddObjectRef(module, "Stamped", type) : -1;
}
