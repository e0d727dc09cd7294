/* Clip calls that are like the one before, taken in C. */
#ifndef SG_CLIPS_H
#define SG_CLIPS_H

#include <Python.h>

int sg_add_clips(PyObject *module);

#endif
