/* Steps that are like the one before, taken in C. */
#ifndef SG_QUIET_H
#define SG_QUIET_H

#include <Python.h>

int sg_add_quiet(PyObject *module);

/* Of _read.c: the gradients of a list of parameters, as a list; NULL raised. */
PyObject *sg_gradients_of(PyObject *module, PyObject *parameters);

/* Of _read.c: the figures of gradients as a bytearray, None where C does not serve one of them. */
PyObject *sg_read_list(PyObject *module, PyObject *grads, int any_sparse);

/* Of _read.c: the same of the gradients of parameters. */
PyObject *sg_read_gradients(PyObject *module, PyObject *parameters, int any_sparse);

/* Of _read.c: whether all of a list are tensors or parameters, and no subclass's. */
int sg_are_plain(PyObject *module, PyObject *list);

/* Of _read.c: the only element of a tensor, None for what C does not serve. */
PyObject *sg_number(PyObject *module, PyObject *object);

/* Of _read.c: whether an optimizer's groups hold these parameters and no others; -1 raised. */
int sg_hold(PyObject *groups, PyObject *parameters);

#endif
