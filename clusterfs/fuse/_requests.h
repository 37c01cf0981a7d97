/* What _native.c uses of _requests.c. */
#ifndef CLUSTERFS_REQUESTS_H
#define CLUSTERFS_REQUESTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

struct fuse_lowlevel_ops;

extern bool locks_were_asked_for; /* if not, closing a file unlocks nothing, and need not be told */

void complete_operations(struct fuse_lowlevel_ops *operations); /* adds what pyfuse3 lacks, if a dispatcher is set */
PyObject *set_dispatcher(PyObject *module, PyObject *callable);
int add_request_type(PyObject *module);

#endif
