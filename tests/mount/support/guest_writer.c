/* The only program of a guest: writes numbered blocks to its disk for ever, and checks them.
 *
 * Number n goes to block place(n). A block holds its number, and words that follow from number and
 * position, so a block that is torn, old or another's is found. After each BATCH of writes the disk
 * is flushed and the number is printed, and after each ROUND all blocks are read and compared with
 * what was written last. Blocks of the first start are taken as empty.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, BLOCKS = 256, BATCH = 16, ROUND = 128 };
static const uint64_t STEP = 768 * 1024; /* between blocks: they lie in three stripes */

static uint64_t last[BLOCKS];

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static void fill(uint64_t *block, uint64_t number)
{
    block[0] = number;
    for (int i = 1; i < WORDS; i++)
        block[i] = mix(number * WORDS + i);
}

static void die(const char *what)
{
    printf("FAILED %s: %m\n", what);
    for (;;)
        pause();
}

static void verify(int disk, uint64_t *found, uint64_t *wanted, uint64_t number)
{
    for (int i = 0; i < BLOCKS; i++) {
        if (pread(disk, found, BLOCK, i * STEP) != BLOCK)
            die("read");
        memset(wanted, 0, BLOCK);
        if (last[i])
            fill(wanted, last[i]);
        if (memcmp(found, wanted, BLOCK)) {
            printf("BAD block %d: %llu instead of %llu\n", i, (unsigned long long)found[0],
                   (unsigned long long)last[i]);
            die("verify");
        }
    }
    printf("verified %llu\n", (unsigned long long)number);
}

int main(void)
{
    uint64_t *found, *wanted;
    int disk = open("/dev/vda", O_RDWR | O_DIRECT);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (disk < 0 || posix_memalign((void **)&found, BLOCK, BLOCK) ||
        posix_memalign((void **)&wanted, BLOCK, BLOCK))
        die("open");
    printf("begins\n");
    for (uint64_t number = 1;; number++) {
        int place = mix(number) % BLOCKS;
        fill(wanted, number);
        if (pwrite(disk, wanted, BLOCK, place * STEP) != BLOCK)
            die("write");
        last[place] = number;
        if (number % BATCH == 0) {
            if (fdatasync(disk))
                die("flush");
            printf("durable %llu\n", (unsigned long long)number);
        }
        if (number % ROUND == 0)
            verify(disk, found, wanted, number);
    }
}
