/* Unwinds itself from a timer's signal, as profilers do, also in the middle of
 * malloc: every stack must be the program's own and reach main. */
#include "hazard.h"
#include <execinfo.h>
#include <signal.h>
#include <sys/time.h>

#define FRAMES 64

extern char __executable_start, etext;

static volatile long stacks, strange, cut;
static char *volatile kept[16];

static void sample(int number)
{
    void *frames[FRAMES];
    int count = backtrace(frames, FRAMES), own = 0;
    (void)number;
    for (int i = 0; i < count; i++) {
        /* The kernel maps its page for replaced return addresses here. */
        if ((unsigned long)frames[i] >> 12 == 0x7fffffffe)
            strange++;
        own += (char *)frames[i] >= &__executable_start && (char *)frames[i] < &etext;
    }
    /* This function, allocate and main. */
    cut += own < 3;
    stacks++;
}

__attribute__((noinline)) static void allocate(void)
{
    for (int i = 0; i < 5000; i++) {
        free(kept[i % 16]);
        kept[i % 16] = malloc(64 + i % 16 * 64);
        __asm__ volatile("" ::: "memory");
    }
    __asm__ volatile("" ::: "memory");
}

int main(int argc, char **argv)
{
    void *first[4];
    double end = begin(argc, argv);
    struct sigaction action = {.sa_handler = sample, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, 997}, {0, 997}};
    backtrace(first, 4);
    allocate();
    sigaction(SIGPROF, &action, NULL);
    setitimer(ITIMER_PROF, &every, NULL);
    while (now() < end)
        allocate();
    setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
    dprintf(2, "%ld stacks, %ld strange, %ld cut\n", stacks, strange, cut);
    if (strange)
        return 6;
    /* In the clock and in the timer's own calls allocate is not there. */
    return stacks > 100 && cut * 10 < stacks ? 0 : 7;
}
