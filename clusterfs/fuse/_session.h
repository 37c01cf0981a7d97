/* A session that another process mounted: see _session.c. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

void start_session(void);
const char *place_to_mount(const char *mountpoint);
void remember_init(const void *request, size_t size);
bool init_replied(const struct iovec *parts, int count);
bool reply_goes_nowhere(void);
ssize_t length_of(const struct iovec *parts, int count);
PyObject *replay_init_into(struct fuse_session *session);

PyObject *take_over(PyObject *module, PyObject *arguments);
PyObject *exchanged_init(PyObject *module, PyObject *unused);
PyObject *abandon(PyObject *module, PyObject *unused);
