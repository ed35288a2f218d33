/* What the programs that are easily harmed share.
 *
 * usage: PROGRAM SECONDS: READY on standard output, exit status 0 when all
 * went well for that long. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* The end of the run, and READY. */
static double begin(int argc, char **argv)
{
    double end = now() + (argc > 1 ? atof(argv[1]) : 1);
    dprintf(1, "PID %d\nREADY\n", (int)getpid());
    return end;
}

/* A few allocations with the family's every member. */
__attribute__((noinline, unused)) static void allocate_a_little(void)
{
    void *aligned = NULL;
    char *volatile a = (char *)malloc(100);
    char *volatile b = (char *)calloc(3, 50);
    a = (char *)realloc(a, 4000);
    if (posix_memalign(&aligned, 64, 256) || !a || !b)
        _exit(4);
    memset(aligned, 1, 256);
    free(a);
    free(b);
    free(aligned);
}
