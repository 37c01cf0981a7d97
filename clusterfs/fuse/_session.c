/* A session that one process mounts and another takes over, without the kernel noticing.
 *
 * The kernel asks for FUSE_INIT once in the life of a mount, and libfuse serves nothing before it has seen one. So the first
 * process remembers the request and its reply; the next one is given both, opens the session on the descriptor that it inherited
 * (libfuse mounts nothing at "/dev/fd/N"), hands libfuse the remembered request, and compares what libfuse would have answered
 * with what the kernel was told. A process that hands its session on abandons it: its replies go nowhere, and what it has not
 * answered the kernel sends again (FUSE_NOTIFY_RESEND) to who comes next.
 *
 * Invariant: at most one process answers: the supervisor starts the next one when the last one is gone.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>

#include "_requests.h"
#include "_session.h"

#define INIT_BYTES 256 /* of the request or the reply: 104 and 80 today */

struct message {
    char data[INIT_BYTES];
    size_t size;
};

static struct message request, reply; /* of INIT, in this process */
static struct message former_reply;   /* of INIT, in the process that mounted */
static char place[32];                /* /dev/fd/N, or "" */
static bool replaying;                /* the INIT that libfuse works on is not the kernel's */
static bool abandoned;

static void keep(struct message *message, const void *data, size_t size)
{
    message->size = size <= INIT_BYTES ? size : 0;
    memcpy(message->data, data, message->size);
}

void start_session(void)
{
    replaying = abandoned = false;
    reply.size = 0;
}

const char *place_to_mount(const char *mountpoint)
{
    return place[0] ? place : mountpoint;
}

void remember_init(const void *data, size_t size)
{
    keep(&request, data, size);
}

/* Note the reply to INIT; tells whether it is for nobody. */
bool init_replied(const struct iovec *parts, int count)
{
    if (count == 2)
        keep(&reply, parts[1].iov_base, parts[1].iov_len);
    return replaying;
}

bool reply_goes_nowhere(void)
{
    return abandoned;
}

ssize_t length_of(const struct iovec *parts, int count)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    return (ssize_t)length;
}

PyObject *replay_init_into(struct fuse_session *session)
{
    if (!session || !place[0] || !request.size) {
        PyErr_SetString(PyExc_RuntimeError, "no session was taken over");
        return NULL;
    }
    char copy[INIT_BYTES];
    memcpy(copy, request.data, request.size);
    struct fuse_buf buffer = {.size = request.size, .mem = copy};
    replaying = true;
    fuse_session_process_buf(session, &buffer);
    replaying = false;
    place[0] = 0;
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(reply.size && reply.size == former_reply.size && !memcmp(reply.data, former_reply.data, reply.size));
}

/* ---- Python ---- */

PyObject *take_over(PyObject *module, PyObject *arguments)
{
    (void)module;
    int descriptor;
    const char *asked, *answered;
    Py_ssize_t asked_size, answered_size;
    if (!PyArg_ParseTuple(arguments, "iy#y#", &descriptor, &asked, &asked_size, &answered, &answered_size))
        return NULL;
    keep(&request, asked, (size_t)asked_size);
    keep(&former_reply, answered, (size_t)answered_size);
    snprintf(place, sizeof place, "/dev/fd/%d", descriptor);
    locks_were_asked_for = true; /* perhaps, of the former process */
    Py_RETURN_NONE;
}

PyObject *exchanged_init(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return Py_BuildValue("y#y#", request.data, (Py_ssize_t)request.size, reply.data, (Py_ssize_t)reply.size);
}

PyObject *abandon(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    abandoned = true;
    Py_RETURN_NONE;
}
