/* Requests that are answered before their handler returns: no task, no coroutine, no pass of the scheduler.
 *
 * For each of some operations Python may leave a function here that answers from what is cached, or returns None if that needs
 * any waiting; then nothing has happened, and the request goes the usual way, to pyfuse3's handler. What the functions take and
 * return is in _native.pyi and at_once.py.
 *
 * After such an answer the next request is often there already, or soon: the program that asked goes on at once. So it is waited
 * for here, for a moment, instead of by trio, whose pass costs more than the request. That is done only while trio has nothing
 * else to do: no task may run (`runnable`, counted by an instrument), nothing that a task waits for has come (`others` is trio's
 * epoll, which is polled, too), and its last pass was at most MOST_NS ago, for the sake of timers. After other answers trio
 * waits, but awake for the first moment.
 *
 * Invariant: everything here runs on the thread of pyfuse3's main loop, with the GIL held but while it waits.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "_at_once.h"
#include "_session.h"

#define MOST_NS 1000000    /* between two passes of trio */
#define PATIENCE_NS 300000 /* for the next request, asleep */
#define VIGIL_NS 40000     /* before that, awake */
#define NS 1000000000

enum operation { LOOKUP, GETATTR, OPEN, READ, WRITE, RELEASE, FORGET, OPERATIONS };

static const char *const names[OPERATIONS] = {"lookup", "getattr", "open", "read", "write", "release", "forget"};
static PyObject *functions[OPERATIONS];
static struct fuse_lowlevel_ops slow; /* what serves the rest */

static bool answered;     /* the request being processed was */
static int others = -1;   /* trio's epoll; -1: not known, so nothing is waited for here */
static long runnable;     /* tasks that trio will run before it waits again */
static int64_t passed_ns; /* when trio waited last */
static int64_t waits_ns;  /* when it began to */
static bool replied;      /* something was, since then: its program may go on at once */
static int64_t vigil_ns = VIGIL_NS;
static int64_t trios_vigil_ns = VIGIL_NS;

/* ---- calls ---- */

/* Call a function with arguments that are stolen, NULL if they could not be made. Returns NULL for "the usual way". */
static PyObject *ask(enum operation operation, PyObject **arguments, size_t count)
{
    PyObject *answer = NULL;
    bool made = true;
    for (size_t i = 0; i < count; i++)
        made &= arguments[i] != NULL;
    if (made)
        answer = PyObject_Vectorcall(functions[operation], arguments, count, NULL);
    if (!answer)
        PyErr_WriteUnraisable(functions[operation]);
    for (size_t i = 0; i < count; i++)
        Py_XDECREF(arguments[i]);
    if (answer == Py_None)
        Py_CLEAR(answer);
    answered = answer != NULL;
    return answer;
}

static PyObject *number(uint64_t value)
{
    return PyLong_FromUnsignedLongLong(value);
}

static struct timespec time_of(long long ns)
{
    long long seconds = ns / NS - (ns % NS < 0);
    return (struct timespec){.tv_sec = seconds, .tv_nsec = ns - seconds * NS};
}

/* Take what describes an inode: see `Described` in at_once.py. */
static bool take(PyObject *described, struct fuse_entry_param *entry)
{
    unsigned long long inode, device;
    unsigned int mode, links, uid, gid;
    long long size, blocks, accessed, modified, changed;
    memset(entry, 0, sizeof *entry);
    if (!PyArg_ParseTuple(described, "KIIIIKLLLLLdd", &inode, &mode, &links, &uid, &gid, &device, &size, &blocks, &accessed,
                          &modified, &changed, &entry->entry_timeout, &entry->attr_timeout))
        return false;
    entry->ino = inode;
    entry->attr = (struct stat){
        .st_ino = inode, .st_mode = mode, .st_nlink = links, .st_uid = uid, .st_gid = gid, .st_rdev = device, .st_size = size,
        .st_blocks = blocks, .st_blksize = 4096, .st_atim = time_of(accessed), .st_mtim = time_of(modified),
        .st_ctim = time_of(changed)};
    return true;
}

/* What a function returned makes no sense: a bug. */
static void refuse(fuse_req_t request, enum operation operation)
{
    PyErr_WriteUnraisable(functions[operation]);
    fuse_reply_err(request, EIO);
}

/* ---- requests ---- */

static void lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    PyObject *arguments[] = {number(parent), PyBytes_FromString(name)};
    PyObject *answer = ask(LOOKUP, arguments, 2);
    if (!answer) {
        slow.lookup(request, parent, name);
        return;
    }
    struct fuse_entry_param entry = {0};
    if (PyFloat_Check(answer)) { /* there is no such name, for so long */
        entry.entry_timeout = PyFloat_AS_DOUBLE(answer);
        fuse_reply_entry(request, &entry);
    } else if (take(answer, &entry)) {
        fuse_reply_entry(request, &entry);
    } else {
        refuse(request, LOOKUP);
    }
    Py_DECREF(answer);
}

static void getattr_(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    PyObject *arguments[] = {number(inode)};
    PyObject *answer = ask(GETATTR, arguments, 1);
    if (!answer) {
        slow.getattr(request, inode, file);
        return;
    }
    struct fuse_entry_param entry;
    if (take(answer, &entry))
        fuse_reply_attr(request, &entry.attr, entry.attr_timeout);
    else
        refuse(request, GETATTR);
    Py_DECREF(answer);
}

static void open_(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    PyObject *arguments[] = {number(inode), PyLong_FromLong(file->flags)};
    PyObject *answer = ask(OPEN, arguments, 2);
    if (!answer) {
        slow.open(request, inode, file);
        return;
    }
    unsigned long long handle;
    int direct_io, keep_cache;
    if (PyArg_ParseTuple(answer, "Kpp", &handle, &direct_io, &keep_cache)) {
        file->fh = handle;
        file->direct_io = direct_io;
        file->keep_cache = keep_cache;
        fuse_reply_open(request, file);
    } else {
        refuse(request, OPEN);
    }
    Py_DECREF(answer);
}

static void read_(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    PyObject *arguments[] = {number(file->fh), PyLong_FromLongLong(offset), PyLong_FromSize_t(size),
                             PyBool_FromLong(is_page_read(file))};
    PyObject *answer = ask(READ, arguments, 4);
    Py_buffer data;
    if (!answer) {
        slow.read(request, inode, size, offset, file);
        return;
    }
    if (PyObject_GetBuffer(answer, &data, PyBUF_SIMPLE) == 0) {
        fuse_reply_buf(request, data.buf, (size_t)data.len);
        PyBuffer_Release(&data);
    } else {
        refuse(request, READ);
    }
    Py_DECREF(answer);
}

static void write_(fuse_req_t request, fuse_ino_t inode, struct fuse_bufvec *data, off_t offset, struct fuse_file_info *file)
{
    if (data->count != 1 || data->idx || data->off || data->buf[0].flags & FUSE_BUF_IS_FD || file->writepage) {
        slow.write_buf(request, inode, data, offset, file);
        return;
    }
    PyObject *arguments[] = {number(file->fh), PyLong_FromLongLong(offset),
                             PyBytes_FromStringAndSize(data->buf[0].mem, (Py_ssize_t)data->buf[0].size),
                             PyBool_FromLong(is_append(file))};
    PyObject *answer = ask(WRITE, arguments, 4);
    if (!answer) {
        slow.write_buf(request, inode, data, offset, file);
        return;
    }
    size_t written = PyLong_AsSize_t(answer);
    if (written == (size_t)-1 && PyErr_Occurred())
        refuse(request, WRITE);
    else
        fuse_reply_write(request, written);
    Py_DECREF(answer);
}

static void release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    PyObject *arguments[] = {number(file->fh)};
    PyObject *answer = ask(RELEASE, arguments, 1);
    if (!answer) {
        slow.release(request, inode, file);
        return;
    }
    fuse_reply_err(request, 0);
    Py_DECREF(answer);
}

static void forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgotten)
{
    for (size_t i = 0; i < count; i++) {
        PyObject *arguments[] = {number(forgotten[i].ino), number(forgotten[i].nlookup)};
        Py_XDECREF(ask(FORGET, arguments, 2));
    }
    answered = true;
    fuse_reply_none(request);
}

static void forget(fuse_req_t request, fuse_ino_t inode, uint64_t count)
{
    forget_multi(request, 1, &(struct fuse_forget_data){.ino = inode, .nlookup = count});
}

void hasten_operations(struct fuse_lowlevel_ops *operations)
{
    if (!functions[LOOKUP])
        return;
    slow = *operations;
    operations->lookup = lookup;
    operations->getattr = getattr_;
    operations->open = open_;
    operations->read = read_;
    operations->write_buf = write_;
    operations->release = release;
    operations->forget = forget;
    operations->forget_multi = forget_multi;
}

/* ---- the next request ---- */

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS + now.tv_nsec;
}

void note_reply(void)
{
    replied = true;
}

void note_answered(void)
{
    answered = true;
}

bool was_answered(void)
{
    bool was = answered;
    answered = false;
    return was;
}

/* Poll for a moment without sleeping: to be put to sleep and woken costs more than most answers, here and at the program that asks.
 * Others who want this processor get it. It is worth it only if requests come that fast, so it adapts as the kernel's haltpoll
 * governor does. */
static int look_out(struct pollfd *awaited, nfds_t count, int64_t *vigil_ns)
{
    int64_t began_ns = now_ns();
    int ready = poll(awaited, count, 0);
    while (!ready && now_ns() - began_ns < *vigil_ns) {
        sched_yield();
        ready = poll(awaited, count, 0);
    }
    *vigil_ns = ready ? VIGIL_NS : *vigil_ns / 2;
    return ready;
}

/* The same, for all that trio waits for, before it does. */
static void look_out_for_trio(void)
{
    struct pollfd awaited = {.fd = others, .events = POLLIN};
    Py_BEGIN_ALLOW_THREADS
    look_out(&awaited, 1, &trios_vigil_ns);
    Py_END_ALLOW_THREADS
}

/* Tell whether a request can be read now; waits for it for a moment, if there is nothing else to do. */
bool comes_next(int fd)
{
    if (others < 0 || runnable > 0 || now_ns() - passed_ns > MOST_NS)
        return false;
    struct pollfd awaited[] = {{.fd = fd, .events = POLLIN}, {.fd = others, .events = POLLIN}};
    static const struct timespec patience = {.tv_nsec = PATIENCE_NS};
    int64_t began_ns = now_ns();
    int ready;
    Py_BEGIN_ALLOW_THREADS
    ready = look_out(awaited, 2, &vigil_ns);
    if (!ready) {
        ready = ppoll(awaited, 2, &patience, NULL);
        if (ready && now_ns() - began_ns < 2 * VIGIL_NS)
            vigil_ns = VIGIL_NS;
    }
    Py_END_ALLOW_THREADS
    return ready == 1 && awaited[0].revents == POLLIN;
}

/* ---- Python ---- */

PyObject *answer_at_once(PyObject *module, PyObject *by_name)
{
    (void)module;
    if (by_name != Py_None && !PyDict_Check(by_name)) {
        PyErr_SetString(PyExc_TypeError, "functions by their operations' names, or None");
        return NULL;
    }
    for (int i = 0; i < OPERATIONS; i++) {
        PyObject *function = by_name == Py_None ? NULL : PyDict_GetItemString(by_name, names[i]);
        if (by_name != Py_None && !function)
            return PyErr_Format(PyExc_KeyError, "%s", names[i]);
        Py_XSETREF(functions[i], Py_XNewRef(function));
    }
    Py_RETURN_NONE;
}

PyObject *wait_beside(PyObject *module, PyObject *descriptor)
{
    (void)module;
    long fd = PyLong_AsLong(descriptor);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    others = (int)fd;
    passed_ns = 0; /* not before trio has waited once: only then `runnable` is right */
    Py_RETURN_NONE;
}

PyObject *request_comes_next(PyObject *module, PyObject *descriptor)
{
    (void)module;
    long fd = PyLong_AsLong(descriptor);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(!reply_goes_nowhere() && comes_next((int)fd));
}

PyObject *task_scheduled(PyObject *module, PyObject *task)
{
    (void)module, (void)task;
    runnable++;
    Py_RETURN_NONE;
}

PyObject *task_steps(PyObject *module, PyObject *task)
{
    (void)module, (void)task;
    runnable--;
    Py_RETURN_NONE;
}

/* Trio waits for so many seconds; not at all if tasks can run. */
PyObject *scheduler_waits(PyObject *module, PyObject *seconds)
{
    (void)module;
    double patience = PyFloat_AsDouble(seconds);
    if (patience == -1.0 && PyErr_Occurred())
        return NULL;
    if (patience > 0)
        runnable = 0;
    waits_ns = now_ns();
    if (replied && others >= 0 && patience * NS > VIGIL_NS)
        look_out_for_trio();
    Py_RETURN_NONE;
}

PyObject *scheduler_waited(PyObject *module, PyObject *seconds)
{
    (void)module, (void)seconds;
    passed_ns = now_ns();
    if (replied && passed_ns - waits_ns < 2 * VIGIL_NS)
        trios_vigil_ns = VIGIL_NS;
    replied = false;
    Py_RETURN_NONE;
}
