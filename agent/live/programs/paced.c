/* Allocates and frees at a given rate, with work in between, and writes down
 * how many pairs it made in every 10 ms.
 *
 * usage: paced SECONDS RATE FILE: FILE gets CLOCK_MONOTONIC at the first
 * interval, in nanoseconds, as 8 bytes, then 4 bytes for each interval. */
#include "hazard.h"
#include "aligned.h"
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

#define SLOTS 30000

static uint64_t ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void pairs(long count, long work)
{
    for (long i = 0; i < count; i++) {
        void *volatile block = malloc(64);
        free(block);
        for (volatile long j = 0; j < work; j++)
            ;
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    double rate = atof(argv[2]);
    /* The shortest of some rounds, so that a busy machine does not count. */
    double best = 1e9;
    for (int i = 0; i < 20; i++) {
        double t = now();
        pairs(1000, 1000);
        t = now() - t;
        if (t < best)
            best = t;
    }
    long work = 1e9 / rate / (best * 1e9 / 1e6);
    int file = open(argv[3], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    size_t length = 8 + SLOTS * 4;
    if (file < 0 || ftruncate(file, length))
        return 2;
    char *shared = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        return 2;
    uint32_t *made = (uint32_t *)(shared + 8);
    double end = begin(argc, argv);
    uint64_t start = ns();
    memcpy(shared, &start, 8);
    while (now() < end) {
        pairs(10, work);
        uint64_t slot = (ns() - start) / 10000000;
        if (slot < SLOTS)
            made[slot] += 10;
    }
    return 0;
}
