/* A callable that stands before a function of ours in a training's way. */
#ifndef SG_GATE_H
#define SG_GATE_H

#include <Python.h>

int sg_add_gate(PyObject *module);

/* Ends an object of a type of ours that the garbage collector knows; `clear` lets go of what it
 * holds. */
void sg_end(PyObject *self, inquiry clear);

#endif
