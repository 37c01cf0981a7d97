/* Stops a program before each step of its atomic writes, until it is told to go on.
 *
 * Loaded by LD_PRELOAD. Before each step the program writes its name, a line, to the descriptor
 * PHASES_OUT, and goes on when it has read a byte from PHASES_IN. The steps: "features", "start",
 * "write" (to a file between its start and its commit), "commit", "abort", "sync" (of a file that
 * was ever started), and "journal" (a name that ends so is opened).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define START 0xf501
#define COMMIT 0xf502
#define ABORT 0xf505
#define FEATURES 0x8004f50cu

static int atomic_file = -1, inside;
static ssize_t (*real_write)(int, const void *, size_t);

static void phase(const char *name) {
    char go;
    real_write = dlsym(RTLD_NEXT, "write");
    int out = atoi(getenv("PHASES_OUT")), in = atoi(getenv("PHASES_IN"));
    if (real_write(out, name, strlen(name)) < 0 || real_write(out, "\n", 1) != 1 || read(in, &go, 1) != 1)
        _exit(9);
}

int ioctl(int file, unsigned long request, ...) {
    int (*real)(int, unsigned long, void *) = dlsym(RTLD_NEXT, "ioctl");
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if ((unsigned)request == FEATURES)
        phase("features");
    if (request == START)
        phase("start");
    if (request == COMMIT)
        phase("commit");
    if (request == ABORT)
        phase("abort");
    int result = real(file, request, argument);
    if (request == START && result == 0)
        atomic_file = file, inside = 1;
    if (request == COMMIT || request == ABORT)
        inside = 0;
    return result;
}

static void writing(int file) {
    if (inside && file == atomic_file)
        phase("write");
}

ssize_t write(int file, const void *data, size_t size) {
    writing(file);
    real_write = dlsym(RTLD_NEXT, "write");
    return real_write(file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    writing(file);
    return real(file, data, size, offset);
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset) {
    return pwrite(file, data, size, offset);
}

static int syncing(const char *call, int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, call);
    if (file == atomic_file)
        phase("sync");
    return real(file);
}

int fsync(int file) { return syncing("fsync", file); }

int fdatasync(int file) { return syncing("fdatasync", file); }

static int opening(const char *call, const char *path, int flags, int mode) {
    int (*real)(const char *, int, int) = dlsym(RTLD_NEXT, call);
    size_t length = strlen(path);
    if (length > 8 && strcmp(path + length - 8, "-journal") == 0)
        phase("journal");
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return opening("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return opening("open64", path, flags, mode);
}
