/* Objects whose changes are counted. */
#ifndef SG_STAMPED_H
#define SG_STAMPED_H

#include <Python.h>

int sg_add_stamped(PyObject *module);

/* How many changes there have been. */
unsigned long long sg_changes(void);

/* Whether each change of this attribute is counted from here on; -1 raised. */
int sg_counts(PyObject *owner, PyObject *name);

#endif
