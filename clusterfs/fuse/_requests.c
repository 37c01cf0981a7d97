/* The FUSE requests that pyfuse3 has no handler for, handed to Python.
 *
 * complete_operations() fills in the table of operations; each of these handlers makes a Request and calls the dispatcher that
 * Python set: dispatch(kind, request, *arguments). The dispatcher starts a task and returns at once; the task answers the Request
 * later, exactly once. A Request that is dropped unanswered answers EIO, so that no program waits for ever.
 *
 * Invariants: everything runs on the thread of pyfuse3's main loop, with the GIL held; a Request's fuse_req_t is NULL from the
 * moment it is answered.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sys/file.h>
#include <sys/ioctl.h>

#include "_at_once.h"
#include "_requests.h"

typedef struct {
    PyObject_HEAD
    fuse_req_t request; /* NULL once answered */
} Request;

static PyObject *dispatcher;  /* NULL: nobody serves these requests */
static PyTypeObject RequestType;

/* ---- answers ---- */

static fuse_req_t take(Request *self)
{
    fuse_req_t request = self->request;
    if (!request) {
        PyErr_SetString(PyExc_RuntimeError, "this request was answered already");
        return NULL;
    }
    self->request = NULL;
    return request;
}

static PyObject *request_error(Request *self, PyObject *argument)
{
    int number = (int)PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    fuse_reply_err(request, number);
    Py_RETURN_NONE;
}

static PyObject *request_offset(Request *self, PyObject *argument)
{
    long long offset = PyLong_AsLongLong(argument);
    if (offset == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    fuse_reply_lseek(request, offset);
    Py_RETURN_NONE;
}

static PyObject *request_written(Request *self, PyObject *argument)
{
    size_t size = PyLong_AsSize_t(argument);
    if (size == (size_t)-1 && PyErr_Occurred())
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    fuse_reply_write(request, size);
    Py_RETURN_NONE;
}

static PyObject *request_lock(Request *self, PyObject *arguments)
{
    int kind, pid;
    long long start, length;
    if (!PyArg_ParseTuple(arguments, "iLLi", &kind, &start, &length, &pid))
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    struct flock lock = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length, .l_pid = pid};
    fuse_reply_lock(request, &lock);
    Py_RETURN_NONE;
}

static PyObject *request_ioctl(Request *self, PyObject *arguments)
{
    int result;
    const char *data;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "iy#", &result, &data, &size))
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    fuse_reply_ioctl(request, result, size ? data : NULL, (size_t)size);
    Py_RETURN_NONE;
}

static PyObject *request_data(Request *self, PyObject *argument)
{
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &data, &size) < 0)
        return NULL;
    fuse_req_t request = take(self);
    if (!request)
        return NULL;
    fuse_reply_buf(request, data, (size_t)size);
    Py_RETURN_NONE;
}

static PyObject *request_context(Request *self, PyObject *unused)
{
    (void)unused;
    if (!self->request) {
        PyErr_SetString(PyExc_RuntimeError, "this request was answered already");
        return NULL;
    }
    const struct fuse_ctx *context = fuse_req_ctx(self->request);
    return Py_BuildValue("IIiI", context->uid, context->gid, (int)context->pid, context->umask);
}

static void request_dealloc(Request *self)
{
    if (self->request) {
        fuse_reply_err(self->request, EIO);
    }
    PyObject_Free(self);
}

static PyMethodDef request_methods[] = {
    {"error", (PyCFunction)request_error, METH_O, "Answer with an errno; 0 is success without data."},
    {"written", (PyCFunction)request_written, METH_O, "Answer with how many bytes were taken."},
    {"offset", (PyCFunction)request_offset, METH_O, "Answer LSEEK."},
    {"lock", (PyCFunction)request_lock, METH_VARARGS, "Answer GETLK: kind, start, length, pid."},
    {"ioctl", (PyCFunction)request_ioctl, METH_VARARGS, "Answer IOCTL: result, data."},
    {"data", (PyCFunction)request_data, METH_O, "Answer with these bytes, whatever the kernel expects."},
    {"context", (PyCFunction)request_context, METH_NOARGS, "Return (uid, gid, pid, umask) of who asks."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "clusterfs.fuse._native.Request",
    .tp_basicsize = sizeof(Request),
    .tp_dealloc = (destructor)request_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A request of the kernel that waits for its answer.",
    .tp_methods = request_methods,
};

/* ---- requests ---- */

/* Hand a request over; steals `arguments`, a tuple whose first item is the kind and whose second is None, for the Request. */
static void dispatch(fuse_req_t request, PyObject *arguments)
{
    Request *self = arguments ? PyObject_New(Request, &RequestType) : NULL;
    if (!self || !dispatcher) {
        fuse_reply_err(request, dispatcher ? ENOMEM : ENOSYS);
        PyErr_Clear();
        Py_XDECREF(arguments);
        if (self) {
            self->request = NULL;
                    Py_DECREF(self);
        }
        return;
    }
    self->request = request;
    PyTuple_SetItem(arguments, 1, (PyObject *)self);
    PyObject *result = PyObject_CallObject(dispatcher, arguments);
    if (!result)
        PyErr_WriteUnraisable(dispatcher);
    Py_XDECREF(result);
    Py_DECREF(arguments);
}

#define HAND_OVER(request, format, ...) dispatch(request, Py_BuildValue("(sO" format ")", __VA_ARGS__))

static void on_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length, struct fuse_file_info *file)
{
    (void)inode;
    HAND_OVER(request, "KiLL", "fallocate", Py_None, (unsigned long long)file->fh, mode, (long long)offset, (long long)length);
}

static void on_lseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *file)
{
    (void)inode;
    HAND_OVER(request, "KLi", "lseek", Py_None, (unsigned long long)file->fh, (long long)offset, whence);
}

static void on_ioctl(fuse_req_t request, fuse_ino_t inode, unsigned int command, void *argument, struct fuse_file_info *file,
                     unsigned flags, const void *data, size_t size, size_t room)
{
    if (_IOC_TYPE(command) == 'T') { /* isatty: some programs ask that of each file that they open */
        fuse_reply_err(request, ENOTTY);
        note_answered();
        return;
    }
    HAND_OVER(request, "KKIKIy#n", "ioctl", Py_None, (unsigned long long)inode,
              flags & FUSE_IOCTL_DIR ? 0ULL : (unsigned long long)file->fh, command, (unsigned long long)(uintptr_t)argument, flags,
              data ? (const char *)data : "", (Py_ssize_t)(data ? size : 0), (Py_ssize_t)room);
}

static void on_copy_file_range(fuse_req_t request, fuse_ino_t source_inode, off_t source_offset, struct fuse_file_info *source,
                               fuse_ino_t target_inode, off_t target_offset, struct fuse_file_info *target, size_t length, int flags)
{
    (void)source_inode;
    (void)target_inode;
    (void)flags;
    HAND_OVER(request, "KLKLK", "copy_file_range", Py_None, (unsigned long long)source->fh, (long long)source_offset,
              (unsigned long long)target->fh, (long long)target_offset, (unsigned long long)length);
}

/* STATX, under another number: see plain_read in _native.c. */
static void on_statx(fuse_req_t request, fuse_ino_t inode, size_t size, uint64_t index)
{
    (void)size;
    (void)index;
    HAND_OVER(request, "K", "statx", Py_None, (unsigned long long)inode);
}

static void on_setxattr(fuse_req_t request, fuse_ino_t inode, const char *name, const char *value, size_t size, int flags)
{
    HAND_OVER(request, "Kyy#i", "setxattr", Py_None, (unsigned long long)inode, name, value, (Py_ssize_t)size, flags);
}

/* ---- file locks ---- */

bool locks_were_asked_for;

static void (*inner_flush)(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
static void (*inner_release)(fuse_req_t, fuse_ino_t, struct fuse_file_info *);

static void hand_over_lock(fuse_req_t request, const char *kind, const struct fuse_file_info *file, const struct flock *lock)
{
    locks_were_asked_for = true;
    HAND_OVER(request, "KKiLLi", kind, Py_None, (unsigned long long)file->fh, (unsigned long long)file->lock_owner,
              (int)lock->l_type, (long long)lock->l_start, (long long)lock->l_len, (int)lock->l_pid);
}

static void on_getlk(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file, struct flock *lock)
{
    (void)inode;
    hand_over_lock(request, "getlk", file, lock);
}

static void on_setlk(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file, struct flock *lock, int wait)
{
    (void)inode;
    hand_over_lock(request, wait ? "setlkw" : "setlk", file, lock);
}

static void on_flock(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file, int operation)
{
    (void)inode;
    locks_were_asked_for = true;
    HAND_OVER(request, "KKi", operation & LOCK_NB ? "flock" : "flockw", Py_None, (unsigned long long)file->fh,
              (unsigned long long)file->lock_owner, operation);
}

/* Say at once, before anything else is received, that a file is being closed: whoever closed it may already ask for a lock. */
static void tell(PyObject *arguments)
{
    PyObject *result = arguments && dispatcher ? PyObject_CallObject(dispatcher, arguments) : NULL;
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(dispatcher);
    Py_XDECREF(result);
    Py_XDECREF(arguments);
}

static void told_flush(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    if (!locks_were_asked_for) {
        fuse_reply_err(request, 0);
        note_answered();
        return;
    }
    tell(Py_BuildValue("(sOKK)", "flush", Py_None, (unsigned long long)file->fh, (unsigned long long)file->lock_owner));
    inner_flush(request, inode, file);
}

static void told_release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    tell(Py_BuildValue("(sOK)", "release", Py_None, (unsigned long long)file->fh));
    inner_release(request, inode, file);
}

void complete_operations(struct fuse_lowlevel_ops *operations)
{
    if (!dispatcher)
        return;
    operations->fallocate = on_fallocate;
    operations->lseek = on_lseek;
    operations->ioctl = on_ioctl;
    operations->setxattr = on_setxattr;
    operations->bmap = on_statx;
    operations->getlk = on_getlk;
    operations->setlk = on_setlk;
    operations->flock = on_flock;
    inner_flush = operations->flush;
    operations->flush = told_flush;
    inner_release = operations->release;
    operations->release = told_release;
    operations->copy_file_range = on_copy_file_range;
}

/* ---- Python ---- */

PyObject *set_dispatcher(PyObject *module, PyObject *callable)
{
    (void)module;
    if (callable == Py_None) {
        Py_CLEAR(dispatcher);
    } else {
        Py_INCREF(callable);
        Py_XSETREF(dispatcher, callable);
    }
    Py_RETURN_NONE;
}

int add_request_type(PyObject *module)
{
    return PyModule_AddType(module, &RequestType);
}
