/* Transactions by the system calls of SQLite with SQLITE_ENABLE_BATCH_ATOMIC_WRITE, in its order.
 *
 * What os_unix.c and pager.c of SQLite 3.40 do in rollback mode on a file whose device says that it
 * writes atomically: ask for F2FS's features at open; SHARED by PENDING_BYTE and the shared range;
 * RESERVED; PENDING; EXCLUSIVE; start; the pages by pwrite; commit; fdatasync; back to SHARED; none.
 * Each page holds the number of the transaction that wrote it last: all must always be equal.
 *
 * usage: batch_atomic FILE PAGES TRANSACTIONS; prints the number of each transaction once it is done.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define F2FS_IOC_START_ATOMIC_WRITE 0xf501
#define F2FS_IOC_COMMIT_ATOMIC_WRITE 0xf502
#define F2FS_IOC_ABORT_VOLATILE_WRITE 0xf505
#define F2FS_IOC_GET_FEATURES 0x8004f50cu
#define F2FS_FEATURE_ATOMIC_WRITE 0x0004

enum { PAGE = 4096, PENDING = 0x40000000, RESERVED = PENDING + 1, SHARED = PENDING + 2, SIZE = 510 };

static int file;

static void fail(const char *what) {
    perror(what);
    exit(2);
}

/* As unixFileLock: F_SETLK, never waiting. Returns 0 if somebody else has it. */
static int set(short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    if (fcntl(file, F_SETLK, &lock) == 0)
        return 1;
    if (errno != EAGAIN && errno != EACCES)
        fail("F_SETLK");
    return 0;
}

static int take_shared(void) {
    if (!set(F_RDLCK, PENDING, 1))
        return 0;
    int taken = set(F_RDLCK, SHARED, SIZE);
    set(F_UNLCK, PENDING, 1);
    return taken;
}

static void begin(void) {
    for (;; usleep(1000 + rand() % 4000)) {
        if (!take_shared())
            continue;
        if (set(F_WRLCK, RESERVED, 1))
            break;
        set(F_UNLCK, 0, 0);
    }
    while (!set(F_WRLCK, PENDING, 1) || !set(F_WRLCK, SHARED, SIZE))
        usleep(1000); /* readers go first */
}

static void end(void) {
    set(F_RDLCK, SHARED, SIZE);
    set(F_UNLCK, PENDING, 2);
    set(F_UNLCK, 0, 0);
}

static uint64_t last(int pages) {
    uint64_t first = 0, page[PAGE / 8];
    for (int number = 0; number < pages; number++) {
        if (pread(file, page, PAGE, (off_t)number * PAGE) != PAGE)
            fail("pread");
        if (number == 0)
            first = page[0];
        for (int word = 0; word < PAGE / 8; word++)
            if (page[word] != first) {
                fprintf(stderr, "torn: page %d has %lu, page 0 %lu\n", number, (unsigned long)page[word],
                        (unsigned long)first);
                exit(3);
            }
    }
    return first;
}

static void change(int pages, uint64_t value) {
    uint64_t page[PAGE / 8];
    for (int word = 0; word < PAGE / 8; word++)
        page[word] = value;
    if (ioctl(file, F2FS_IOC_START_ATOMIC_WRITE))
        fail("start");
    for (int number = 0; number < pages; number++)
        if (pwrite(file, page, PAGE, (off_t)number * PAGE) != PAGE)
            fail("pwrite");
    if (ioctl(file, F2FS_IOC_COMMIT_ATOMIC_WRITE)) {
        ioctl(file, F2FS_IOC_ABORT_VOLATILE_WRITE);
        fail("commit");
    }
    if (fdatasync(file))
        fail("fdatasync");
}

int main(int count, char **words) {
    uint32_t features = 0;
    if (count != 4)
        return 1;
    file = open(words[1], O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (file < 0 || ioctl(file, F2FS_IOC_GET_FEATURES, &features) || !(features & F2FS_FEATURE_ATOMIC_WRITE))
        fail("no atomic writes");
    srand(getpid());
    for (int left = atoi(words[3]), pages = atoi(words[2]); left > 0; left--) {
        begin();
        uint64_t value = last(pages) + 1;
        change(pages, value);
        end();
        printf("%lu\n", (unsigned long)value);
        fflush(stdout);
    }
    return 0;
}
