/* A heap of 96 MiB, shared copy-on-write with two forked workers. Prints the
 * workers' pids before READY. */
#include "hazard.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { BLOCKS = 1536, SIZE = 65536 - 64 };

static void work(double seconds)
{
    for (double end = now() + seconds; now() < end;) {
        allocate_a_little();
        usleep(1000);
    }
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    char **blocks = malloc(BLOCKS * sizeof *blocks);
    for (int i = 0; i < BLOCKS; i++)
        memset(blocks[i] = malloc(SIZE), 7, SIZE);
    pid_t workers[2];
    for (int i = 0; i < 2; i++) {
        if (!(workers[i] = fork())) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            work(seconds);
            exit(0);
        }
        dprintf(1, "WORKER %d\n", (int)workers[i]);
    }
    begin(argc, argv);
    work(seconds);
    for (int i = 0, status; i < 2; i++)
        if (waitpid(workers[i], &status, 0) != workers[i] || status)
            return 6;
    return 0;
}
