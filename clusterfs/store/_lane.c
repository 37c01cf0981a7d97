/* One write and its syncs at a time, done by a thread that never needs Python.
 *
 * A thread of Python's has to get the interpreter's lock to take a job, and once more to tell that it is done; while the thread
 * that serves requests is busy it waits for it. The thread here takes a job (a write, then fdatasync of some files), does it, and
 * tells so through an eventfd, which the event loop waits for as for a socket. Nothing is decided here: lane.py says what for.
 *
 * Invariants: the job's fields and its memory are the thread's while `state` is GIVEN, and Python's else; `state` changes under
 * `mutex`. A lane whose thread runs refers to itself, so it outlives its last user unless that closed it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_SYNCED 16   /* files that one job may sync */
#define SLICE_NS 100000u /* the shortest that Linux gives */

enum state { IDLE, GIVEN, DONE };

typedef struct {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool running; /* there is a thread */
    bool closing; /* it shall end when it has nothing to do */
    enum state state;
    int event; /* eventfd: readable when a job is done */
    /* the job */
    Py_buffer content;
    bool holds_content;
    int target;
    off_t offset;
    int synced[MOST_SYNCED];
    Py_ssize_t to_sync;
    int failure; /* errno, once it is done */
} Lane;

/* ---- on the thread ---- */

/* A thread that asks for a short slice of the processor may run as soon as it wakes, before those with the usual one (EEVDF, Linux
 * 6.12). This one only starts I/O and waits for it. Older kernels ignore it: glibc 2.36 has no name for any of this. */
static void ask_for_short_slices(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t slice_ns, deadline_ns, period_ns;
    } attributes;
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0 && attributes.policy == SCHED_OTHER) {
        attributes.slice_ns = SLICE_NS;
        (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
    }
}

static int write_whole(int fd, const char *data, size_t size, off_t offset)
{
    ssize_t written;
    do
        written = pwrite(fd, data, size, offset);
    while (written < 0 && errno == EINTR);
    if (written < 0)
        return errno;
    return (size_t)written == size ? 0 : EIO;
}

static int sync_data(int fd)
{
    int result;
    do
        result = fdatasync(fd);
    while (result < 0 && errno == EINTR);
    return result < 0 ? errno : 0;
}

static int do_job(const Lane *lane)
{
    int failure = write_whole(lane->target, lane->content.buf, (size_t)lane->content.len, lane->offset);
    for (Py_ssize_t i = 0; i < lane->to_sync && !failure; i++)
        failure = sync_data(lane->synced[i]);
    return failure;
}

static void tell(int event)
{
    const uint64_t one = 1;
    while (write(event, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void *serve(void *argument)
{
    Lane *lane = argument;
    ask_for_short_slices();
    pthread_mutex_lock(&lane->mutex);
    while (true) {
        while (lane->state != GIVEN && !lane->closing)
            pthread_cond_wait(&lane->changed, &lane->mutex);
        if (lane->state != GIVEN)
            break;
        pthread_mutex_unlock(&lane->mutex);
        lane->failure = do_job(lane);
        pthread_mutex_lock(&lane->mutex);
        lane->state = DONE;
        tell(lane->event);
    }
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* ---- Python ---- */

static int start(Lane *lane)
{
    lane->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (lane->event < 0)
        return errno;
    sigset_t all, before; /* signals are for the threads that Python knows */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&lane->thread, NULL, serve, lane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lane->running = !failure;
    if (!failure)
        Py_INCREF(lane);
    return failure;
}

static PyObject *Lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    if (!PyArg_ParseTuple(arguments, "") || (keywords && PyDict_Size(keywords)))
        return NULL;
    Lane *lane = (Lane *)type->tp_alloc(type, 0);
    if (!lane)
        return NULL;
    lane->event = -1;
    pthread_mutex_init(&lane->mutex, NULL);
    pthread_cond_init(&lane->changed, NULL);
    int failure = start(lane);
    if (failure) {
        Py_DECREF(lane);
        errno = failure;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)lane;
}

static void Lane_dealloc(PyObject *self)
{
    Lane *lane = (Lane *)self;
    if (lane->event >= 0)
        close(lane->event);
    pthread_cond_destroy(&lane->changed);
    pthread_mutex_destroy(&lane->mutex);
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Lane_fileno(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(((Lane *)self)->event);
}

static enum state state_of(Lane *lane)
{
    pthread_mutex_lock(&lane->mutex);
    enum state state = lane->state;
    pthread_mutex_unlock(&lane->mutex);
    return state;
}

static bool take_synced(Lane *lane, PyObject *files)
{
    lane->to_sync = 0;
    Py_ssize_t count = PyTuple_GET_SIZE(files);
    if (count > MOST_SYNCED) {
        PyErr_SetString(PyExc_ValueError, "too many files to sync");
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        lane->synced[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(files, i));
        if (lane->synced[i] == -1 && PyErr_Occurred())
            return false;
    }
    lane->to_sync = count;
    return true;
}

static PyObject *Lane_begin(PyObject *self, PyObject *arguments)
{
    Lane *lane = (Lane *)self;
    int target;
    long long offset;
    PyObject *content, *files;
    if (!PyArg_ParseTuple(arguments, "iLOO!", &target, &offset, &content, &PyTuple_Type, &files))
        return NULL;
    if (!lane->running || state_of(lane) != IDLE) {
        PyErr_SetString(PyExc_RuntimeError, "the lane is closed, or has a job");
        return NULL;
    }
    if (!take_synced(lane, files) || PyObject_GetBuffer(content, &lane->content, PyBUF_SIMPLE) < 0)
        return NULL;
    lane->holds_content = true;
    lane->target = target;
    lane->offset = (off_t)offset;
    pthread_mutex_lock(&lane->mutex);
    lane->state = GIVEN;
    pthread_cond_signal(&lane->changed);
    pthread_mutex_unlock(&lane->mutex);
    Py_RETURN_NONE;
}

static void let_go(Lane *lane)
{
    if (lane->holds_content)
        PyBuffer_Release(&lane->content);
    lane->holds_content = false;
}

static PyObject *Lane_finish(PyObject *self, PyObject *unused)
{
    (void)unused;
    Lane *lane = (Lane *)self;
    if (state_of(lane) != DONE)
        Py_RETURN_NONE;
    uint64_t count;
    while (read(lane->event, &count, sizeof count) < 0 && errno == EINTR)
        ;
    let_go(lane);
    lane->state = IDLE; /* the thread waits: nothing changes until `begin` */
    return PyLong_FromLong(lane->failure);
}

static PyObject *Lane_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    Lane *lane = (Lane *)self;
    if (!lane->running)
        Py_RETURN_NONE;
    lane->running = false;
    Py_BEGIN_ALLOW_THREADS;
    pthread_mutex_lock(&lane->mutex);
    lane->closing = true;
    pthread_cond_signal(&lane->changed);
    pthread_mutex_unlock(&lane->mutex);
    pthread_join(lane->thread, NULL);
    Py_END_ALLOW_THREADS;
    let_go(lane);
    close(lane->event);
    lane->event = -1;
    Py_DECREF(lane); /* the thread's */
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fileno", Lane_fileno, METH_NOARGS, "Return the descriptor that is readable when a job is done; -1: closed."},
    {"begin", Lane_begin, METH_VARARGS,
     "begin(file, offset, content, files): write all of it there, then fdatasync the files. Raises RuntimeError."},
    {"finish", Lane_finish, METH_NOARGS, "Return the errno of the job that is done, 0 if it is well; None: none is done."},
    {"close", Lane_close, METH_NOARGS, "End the thread after its job; idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "One write and its syncs at a time, beside Python."},
    {Py_tp_new, Lane_new},
    {Py_tp_dealloc, Lane_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec specification = {
    .name = "clusterfs.store._lane.Lane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_lane", .m_doc = "A thread that writes and syncs without Python.", .m_size = -1};

PyMODINIT_FUNC PyInit__lane(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module ? PyType_FromSpec(&specification) : NULL;
    if (!type || PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(module);
        return NULL;
    }
    Py_DECREF(type);
    if (PyModule_AddIntConstant(module, "MOST_SYNCED", MOST_SYNCED) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
