/* What pyfuse3 and libfuse 3.14 cannot say to the kernel, completed from inside the process.
 *
 * This module defines functions of libfuse's names. It is imported with RTLD_GLOBAL before pyfuse3, so the dynamic linker binds
 * pyfuse3's calls to them; each does its part and calls libfuse's own.
 *
 *   fuse_session_new     copies the table of operations, wraps init, read, write and write_buf, and adds what _requests.c serves
 *   fuse_session_mount   puts our writev on the session's descriptor, which sees every reply, and our read, which sees every request;
 *                        or takes over a session that is mounted already (_session.c)
 *   fuse_session_process_buf   goes on with the next request if this one was answered at once (_at_once.c)
 *   fuse_reply_open,
 *   fuse_reply_create    say to that writev that the next reply opens a direct_io handle
 *   fuse_add_direntry_plus   lists a name without a lookup if its generation is UNLOOKED
 *
 * Invariants: everything here runs on the thread that runs pyfuse3's main loop, with the GIL held, and there is one session per
 * process (pyfuse3's own limit), so the static state needs no lock. A request is flagged before pyfuse3's handler is called, and
 * the handler's Python code starts to run before the next request is received: current_is_page_io() is right until its first await.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 314
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "_at_once.h"
#include "_requests.h"
#include "_session.h"

#define EXPORTED __attribute__((visibility("default")))

#define KNOWN_LIBFUSE 314                       /* struct layouts and the order of calls were checked with this one */
#define MAX_BACKGROUND 256                      /* kernel default: 12 asynchronous requests for the whole mount */
#define MAX_READAHEAD (1u << 20)
#define MINOR_DIRECT_IO_ALLOW_MMAP 39           /* kernel 6.6 */
#define OPCODE_TMPFILE 51                       /* kernel 6.1; not in libfuse 3.14 */
#define OPCODE_STATX 52                         /* kernel 6.6; not in libfuse 3.14 */
#define FLAGS2_DIRECT_IO_ALLOW_MMAP (1u << 4)   /* bit 36 of the 64 flags; not in libfuse 3.14's headers */

typedef struct fuse_session *session_new_function(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef int session_mount_function(struct fuse_session *, const char *);
typedef void process_function(struct fuse_session *, const struct fuse_buf *);
typedef int reply_open_function(fuse_req_t, const struct fuse_file_info *);
typedef size_t add_direntry_function(fuse_req_t, char *, size_t, const char *, const struct fuse_entry_param *, off_t);
typedef int reply_create_function(fuse_req_t, const struct fuse_entry_param *, const struct fuse_file_info *);

static struct {
    session_new_function *session_new;
    session_mount_function *session_mount;
    process_function *process;
    reply_open_function *reply_open;
    reply_create_function *reply_create;
    add_direntry_function *add_direntry_plus;
} libfuse;

static struct fuse_lowlevel_ops inner; /* pyfuse3's handlers */
static struct fuse_session *session;
static bool mounted;            /* our fuse_session_mount ran and our writev is in place */
static bool init_completed;     /* the INIT reply went through our writev */
static bool allow_mmap;         /* ... and asked for DIRECT_IO_ALLOW_MMAP */
static unsigned protocol_minor; /* the kernel's */
static bool page_io;            /* the request being handled is the page cache's own */
static bool appends;            /* the WRITE being handled is to the end: fcntl may change O_APPEND */
static uint64_t unique;         /* the kernel's number of the request that was received last */
static pid_t pid;               /* whose request it is */
static uint32_t uid, gid;
static uint64_t inode;          /* what it is about */
static PyObject *at_end;        /* called when the session is over: there will be no more requests */
static PyObject *on_interrupt;  /* called with the number of a request whose program got a signal */
static bool opening_direct;     /* the next reply opens a direct_io handle */

/* ---- replies ---- */

static void complete_init(struct fuse_init_out *reply)
{
    if (protocol_minor >= MINOR_DIRECT_IO_ALLOW_MMAP) {
        reply->flags |= FUSE_INIT_EXT;
        reply->flags2 |= FLAGS2_DIRECT_IO_ALLOW_MMAP;
        allow_mmap = true;
    }
    init_completed = true;
}

static ssize_t complete_and_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    const struct fuse_out_header *header = parts[0].iov_base;
    if (reply_goes_nowhere())
        return length_of(parts, count);
    note_reply();
    if (!init_completed) {
        if (count == 2 && header->error == 0 && parts[1].iov_len == sizeof(struct fuse_init_out))
            complete_init(parts[1].iov_base);
        if (init_replied(parts, count))
            return length_of(parts, count); /* the kernel has had its answer, from the process before this one */
    } else if (opening_direct && count == 2 && header->error == 0 && parts[1].iov_len >= sizeof(struct fuse_open_out)) {
        /* OPEN answers with a fuse_open_out, CREATE with a fuse_entry_out before it. */
        char *end = (char *)parts[1].iov_base + parts[1].iov_len;
        ((struct fuse_open_out *)(end - sizeof(struct fuse_open_out)))->open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
    }
    return writev(fd, parts, count);
}

static void tell_interrupt(uint64_t number)
{
    if (!on_interrupt)
        return;
    PyObject *answer = PyObject_CallFunction(on_interrupt, "K", (unsigned long long)number);
    if (!answer)
        PyErr_WriteUnraisable(on_interrupt);
    Py_XDECREF(answer);
}

static void tell_end(void)
{
    PyObject *answer = at_end ? PyObject_CallNoArgs(at_end) : NULL;
    if (at_end && !answer)
        PyErr_WriteUnraisable(at_end);
    Py_XDECREF(answer);
}

/* The descriptor does not block (see fuse_session_mount). That there is nothing to read after all is told as EINTR, upon which
 * pyfuse3 waits again; EAGAIN would end its loop.
 *
 * O_TMPFILE looks like CREATE of the name "/", which no file can have; libfuse 3.14 knows only the latter.
 *
 * STATX takes the place of BMAP, which the kernel asks of block devices only; _requests.c answers it.
 *
 * The kernel sends FUSE_INTERRUPT after the request that it names, and expects no answer. libfuse gets it too, and only takes a
 * note. */
static ssize_t plain_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    ssize_t length = read(fd, buffer, size);
    if (length < 0 && errno == EAGAIN)
        errno = EINTR;
    if (length == 0 || (length < 0 && errno != EINTR && errno != ENOENT)) {
        int reason = errno;
        tell_end();
        errno = reason;
    }
    if (length < (ssize_t)sizeof(struct fuse_in_header))
        return length;
    struct fuse_in_header *header = buffer;
    if (header->opcode == FUSE_INIT)
        remember_init(buffer, (size_t)length);
    if (header->opcode == OPCODE_TMPFILE)
        header->opcode = FUSE_CREATE;
    if (header->opcode == OPCODE_STATX)
        header->opcode = FUSE_BMAP;
    if (header->opcode != FUSE_INTERRUPT) {
        unique = header->unique;
        pid = header->pid;
        uid = header->uid;
        gid = header->gid;
        inode = header->nodeid;
    } else if (length >= (ssize_t)(sizeof *header + sizeof(struct fuse_interrupt_in))) {
        tell_interrupt(((const struct fuse_interrupt_in *)(header + 1))->unique);
    }
    return length;
}

EXPORTED int fuse_reply_open(fuse_req_t request, const struct fuse_file_info *opened)
{
    opening_direct = opened->direct_io;
    int result = libfuse.reply_open(request, opened);
    opening_direct = false;
    return result;
}

EXPORTED int fuse_reply_create(fuse_req_t request, const struct fuse_entry_param *entry, const struct fuse_file_info *opened)
{
    opening_direct = opened->direct_io;
    int result = libfuse.reply_create(request, entry, opened);
    opening_direct = false;
    return result;
}

/* A directory entry that the kernel shall list but not look up: node id 0, yet with an inode number for d_ino. pyfuse3's
 * EntryAttributes ties the two together, so the generation says it. */
#define UNLOOKED UINT64_MAX

EXPORTED size_t fuse_add_direntry_plus(fuse_req_t request, char *buffer, size_t room, const char *name,
                                       const struct fuse_entry_param *entry, off_t cookie)
{
    struct fuse_entry_param listed = *entry;
    if (listed.generation == UNLOOKED) {
        listed.ino = 0;
        listed.generation = 0;
    }
    return libfuse.add_direntry_plus(request, buffer, room, name, &listed, cookie);
}

/* ---- requests ---- */

static void tuned_init(void *userdata, struct fuse_conn_info *connection)
{
    protocol_minor = connection->proto_minor;
    inner.init(userdata, connection);
    connection->max_background = MAX_BACKGROUND;
    connection->congestion_threshold = MAX_BACKGROUND * 3 / 4;
    connection->max_readahead = MAX_READAHEAD;
    connection->want &= ~FUSE_CAP_WRITEBACK_CACHE;
    if (connection->capable & FUSE_CAP_POSIX_ACL) /* a default ACL takes the place of the umask, so we apply that */
        connection->want |= FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK;
    if (connection->capable & FUSE_CAP_IOCTL_DIR) /* lsattr asks for directories, too */
        connection->want |= FUSE_CAP_IOCTL_DIR;
    if (connection->capable & FUSE_CAP_AUTO_INVAL_DATA)
        connection->want |= FUSE_CAP_AUTO_INVAL_DATA;
}

/* The kernel names an owner for every read(2) that goes past the page cache. */
bool is_page_read(const struct fuse_file_info *file)
{
    return file->lock_owner == 0;
}

bool is_append(const struct fuse_file_info *file)
{
    return file->flags & O_APPEND;
}

static void flagged_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    page_io = is_page_read(file);
    inner.read(request, inode, size, offset, file);
}

static void flagged_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size, off_t offset,
                          struct fuse_file_info *file)
{
    page_io = file->writepage;
    appends = is_append(file);
    inner.write(request, inode, data, size, offset, file);
}

static void flagged_write_buf(fuse_req_t request, fuse_ino_t inode, struct fuse_bufvec *data, off_t offset,
                              struct fuse_file_info *file)
{
    page_io = file->writepage;
    appends = is_append(file);
    inner.write_buf(request, inode, data, offset, file);
}

EXPORTED struct fuse_session *fuse_session_new(struct fuse_args *arguments, const struct fuse_lowlevel_ops *operations,
                                               size_t size, void *userdata)
{
    struct fuse_lowlevel_ops wrapped;
    memset(&inner, 0, sizeof inner);
    memcpy(&inner, operations, size < sizeof inner ? size : sizeof inner);
    wrapped = inner;
    wrapped.init = tuned_init;
    wrapped.read = flagged_read;
    wrapped.write = flagged_write;
    wrapped.write_buf = flagged_write_buf;
    complete_operations(&wrapped);
    hasten_operations(&wrapped);
    start_session();
    mounted = init_completed = allow_mmap = page_io = opening_direct = false;
    unique = 0;
    pid = 0;
    session = libfuse.session_new(arguments, &wrapped, sizeof wrapped, userdata);
    return session;
}

/* A request that made the descriptor readable can be gone before it is read: the kernel takes it back when its program is killed.
 * A read that blocked then would stop the whole daemon until the next request. */
static bool never_block(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

EXPORTED int fuse_session_mount(struct fuse_session *mounting, const char *mountpoint)
{
    /* No splice functions: libfuse then reads each request with one read(2). For 4 KiB that is faster than splice + read, and
     * pyfuse3 copies a large write out of either. */
    static const struct fuse_custom_io io = {.writev = complete_and_writev, .read = plain_read};
    int result = libfuse.session_mount(mounting, place_to_mount(mountpoint));
    if (result == 0 && mounting == session && !never_block(fuse_session_fd(mounting))) {
        fuse_session_unmount(mounting);
        result = -1;
    }
    if (result == 0 && mounting == session)
        mounted = fuse_session_custom_io(mounting, &io, fuse_session_fd(mounting)) == 0;
    return result;
}

/* pyfuse3 processes a request and then awaits what its handler has left. There is nothing to await if it was answered already: so
 * the next one is received into the same buffer, which is pyfuse3's. Whatever is wrong pyfuse3 finds, when it receives. */
EXPORTED void fuse_session_process_buf(struct fuse_session *processing, const struct fuse_buf *buffer)
{
    do {
        was_answered();
        libfuse.process(processing, buffer);
    } while (processing == session && was_answered() && !reply_goes_nowhere() && !fuse_session_exited(processing) &&
             comes_next(fuse_session_fd(processing)) && fuse_session_receive_buf(processing, (struct fuse_buf *)buffer) > 0);
}

/* ---- Python ---- */

static PyObject *current_is_page_io(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyBool_FromLong(page_io);
}

static PyObject *current_appends(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyBool_FromLong(appends);
}

static PyObject *current_request(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(unique);
}

static PyObject *call_on_interrupt(PyObject *module, PyObject *callback)
{
    (void)module;
    Py_XSETREF(on_interrupt, Py_NewRef(callback));
    Py_RETURN_NONE;
}

static PyObject *call_at_end(PyObject *module, PyObject *callback)
{
    (void)module;
    Py_XSETREF(at_end, Py_NewRef(callback));
    Py_RETURN_NONE;
}

static PyObject *current_pid(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromLong(pid);
}

static PyObject *current_uid(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLong(uid);
}

static PyObject *current_inode(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(inode);
}

static PyObject *current_gid(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLong(gid);
}

static PyObject *session_fd(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromLong(session ? fuse_session_fd(session) : -1);
}

static PyObject *replay_init(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return replay_init_into(session);
}

static PyObject *hooked(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyBool_FromLong(mounted && fuse_version() == KNOWN_LIBFUSE);
}

static PyObject *negotiated(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return Py_BuildValue("{s:I,s:O,s:O}", "protocol_minor", protocol_minor, "init_completed",
                         init_completed ? Py_True : Py_False, "allow_mmap", allow_mmap ? Py_True : Py_False);
}

static PyMethodDef functions[] = {
    {"current_is_page_io", current_is_page_io, METH_NOARGS,
     "Tell whether the READ or WRITE being handled is the page cache's own; ask before the first await."},
    {"current_appends", current_appends, METH_NOARGS, "Tell whether the WRITE is O_APPEND's; ask before the first await."},
    {"current_pid", current_pid, METH_NOARGS,
     "Return the thread whose request is being handled, 0: not known; ask before the first await."},
    {"current_request", current_request, METH_NOARGS,
     "Return the kernel's number of the request being handled; ask before the first await."},
    {"current_uid", current_uid, METH_NOARGS, "Return the user whose request is being handled; ask before the first await."},
    {"current_inode", current_inode, METH_NOARGS, "Return the inode that the request is about; ask before the first await."},
    {"current_gid", current_gid, METH_NOARGS, "Return the group whose request is being handled; ask before the first await."},
    {"call_on_interrupt", call_on_interrupt, METH_O, "Call this with the number of each request that the kernel interrupts."},
    {"call_at_end", call_at_end, METH_O, "Call this when the session is over."},
    {"take_over", take_over, METH_VARARGS,
     "Let the next mount be a session that is mounted already: its descriptor, its INIT request, the INIT reply."},
    {"replay_init", replay_init, METH_NOARGS, "Give a session that was taken over its INIT request; after pyfuse3.init."},
    {"exchanged_init", exchanged_init, METH_NOARGS, "Return the INIT request and reply of this session, as bytes."},
    {"abandon", abandon, METH_NOARGS, "Let no reply reach the kernel any more: another process will answer."},
    {"session_fd", session_fd, METH_NOARGS, "Return the session's /dev/fuse descriptor, or -1."},
    {"hooked", hooked, METH_NOARGS, "Tell whether pyfuse3 mounted through this module, over a libfuse it knows."},
    {"negotiated", negotiated, METH_NOARGS, "Return what the INIT reply settled."},
    {"set_dispatcher", set_dispatcher, METH_O,
     "Serve more requests than pyfuse3: dispatch(kind, request, *arguments); before pyfuse3.init. None: no more."},
    {"answer_at_once", answer_at_once, METH_O,
     "Ask these functions, by operation, before pyfuse3's handlers; before pyfuse3.init. None: ask nobody."},
    {"wait_beside", wait_beside, METH_O, "Wait for requests here while this descriptor, trio's epoll, has nothing. -1: do not."},
    {"request_comes_next", request_comes_next, METH_O, "Tell whether a request can be read; waits for a moment if trio is idle."},
    {"task_scheduled", task_scheduled, METH_O, "Count a task that trio will run."},
    {"task_steps", task_steps, METH_O, "Count it no more: it runs now."},
    {"scheduler_waits", scheduler_waits, METH_O, "Note that trio is going to wait for so long."},
    {"scheduler_waited", scheduler_waited, METH_O, "Note that trio has waited."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "What pyfuse3 and libfuse cannot say to the kernel.", -1, functions,
    NULL, NULL, NULL, NULL};

static void *libfuse_function(void *library, const char *name)
{
    void *function = dlvsym(library, name, "FUSE_3.0");
    if (!function)
        PyErr_Format(PyExc_ImportError, "libfuse3.so.3 has no %s of version FUSE_3.0", name);
    return function;
}

PyMODINIT_FUNC PyInit__native(void)
{
    void *library = dlopen("libfuse3.so.3", RTLD_NOW);
    if (!library)
        return PyErr_Format(PyExc_ImportError, "%s", dlerror());
    if (!(libfuse.session_new = libfuse_function(library, "fuse_session_new")) ||
        !(libfuse.session_mount = libfuse_function(library, "fuse_session_mount")) ||
        !(libfuse.process = libfuse_function(library, "fuse_session_process_buf")) ||
        !(libfuse.reply_open = libfuse_function(library, "fuse_reply_open")) ||
        !(libfuse.reply_create = libfuse_function(library, "fuse_reply_create")) ||
        !(libfuse.add_direntry_plus = libfuse_function(library, "fuse_add_direntry_plus")))
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    PyObject *unlooked = PyLong_FromUnsignedLongLong(UNLOOKED);
    if (module && (!unlooked || PyModule_AddObjectRef(module, "UNLOOKED", unlooked) < 0 ||
                   PyModule_AddIntConstant(module, "LIBFUSE_VERSION", fuse_version()) < 0 ||
                   PyModule_AddIntConstant(module, "KNOWN_LIBFUSE", KNOWN_LIBFUSE) < 0 || add_request_type(module) < 0))
        Py_CLEAR(module);
    Py_XDECREF(unlooked);
    return module;
}
