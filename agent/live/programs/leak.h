/* What the small leaking programs share: pace, count and side file.
 *
 * usage: PROGRAM RATE SIZE SECONDS [TRUTHFILE]
 *
 * leak_here(SIZE) is called RATE times a second for SECONDS. Nothing here
 * allocates but the program's own work. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void publish(int file, unsigned long long bytes, unsigned long long blocks)
{
    char line[256];
    int n = snprintf(line, sizeof line,
                     "{\"t_ns\":%llu,\"leaked_bytes\":%llu,\"leaked_blocks\":%llu,"
                     "\"overhead_bytes\":0,\"exact\":true,\"function\":\"leak_here\",\"tasks\":[]}\n",
                     now_ns(), bytes, blocks);
    if (file >= 0 && write(file, line, n) != n)
        _exit(3);
}

static int run_leak(int argc, char **argv, void (*leak)(size_t), void (*churn)(size_t))
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s RATE SIZE SECONDS [TRUTHFILE]\n", argv[0]);
        return 2;
    }
    unsigned long long rate = strtoull(argv[1], NULL, 10), done = 0, begin = now_ns();
    unsigned long long end = begin + strtoull(argv[3], NULL, 10) * 1000000000ULL, published = 0;
    size_t size = strtoull(argv[2], NULL, 10);
    int file = argc > 4 ? open(argv[4], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    dprintf(1, "PID %d\nREADY\n", (int)getpid());
    for (unsigned long long t; (t = now_ns()) < end;) {
        for (; done < (t - begin) / 1000 * rate / 1000000; done++) {
            leak(size);
            churn(size);
        }
        if (t - published >= 200000000ULL) {
            publish(file, done * size, done);
            published = t;
        }
        usleep(5000);
    }
    return 0;
}
