/* What the other sources of this module use of _at_once.c, and it of them. */
#ifndef CLUSTERFS_AT_ONCE_H
#define CLUSTERFS_AT_ONCE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

struct fuse_lowlevel_ops;
struct fuse_file_info;

void hasten_operations(struct fuse_lowlevel_ops *operations); /* if Python has left functions */
void note_reply(void);                                        /* the kernel gets an answer */
void note_answered(void);                                     /* the request being processed is answered */
bool was_answered(void);
bool comes_next(int fd);

bool is_page_read(const struct fuse_file_info *file); /* _native.c */
bool is_append(const struct fuse_file_info *file);

PyObject *answer_at_once(PyObject *module, PyObject *by_name);
PyObject *wait_beside(PyObject *module, PyObject *descriptor);
PyObject *request_comes_next(PyObject *module, PyObject *descriptor);
PyObject *task_scheduled(PyObject *module, PyObject *task);
PyObject *task_steps(PyObject *module, PyObject *task);
PyObject *scheduler_waits(PyObject *module, PyObject *seconds);
PyObject *scheduler_waited(PyObject *module, PyObject *seconds);

#endif
