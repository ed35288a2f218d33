/* Measures what one malloc/free pair costs.
 *
 * usage: child_cost SECONDS FILE: appends "parent NS" before READY; on SIGUSR1
 * forks a child, which appends "child T NS" ten times a second, T being
 * CLOCK_MONOTONIC in seconds. */
#include "hazard.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static volatile sig_atomic_t wanted;

static void want(int number)
{
    wanted = number;
}

/* The cheapest of some rounds, so that a busy machine does not count. */
static double pair_ns(void)
{
    double best = 1e9;
    for (int round = 0; round < 10; round++) {
        double t = now();
        for (int i = 0; i < 1000; i++) {
            void *volatile block = malloc(64);
            free(block);
        }
        t = (now() - t) * 1e6;
        if (t < best)
            best = t;
    }
    return best;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    int file = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    signal(SIGUSR1, want);
    dprintf(file, "parent %.1f\n", pair_ns());
    double end = begin(argc, argv);
    pid_t child = 0;
    while (now() < end) {
        allocate_a_little();
        usleep(1000);
        if (!wanted)
            continue;
        wanted = 0;
        if (!(child = fork())) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (now() < end - 1) {
                double cost = pair_ns();
                dprintf(file, "child %.3f %.1f\n", now(), cost);
                usleep(100000);
            }
            exit(0);
        }
    }
    int status = 1;
    return child && (waitpid(child, &status, 0) != child || status) ? 6 : 0;
}
