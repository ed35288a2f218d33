/* Leaks its blocks before anyone could attach from outside, forks a child that
 * leaks as well, and ends with the status asked for.
 *
 * usage: first_allocation SECONDS STATUS */
#include "hazard.h"
#include <sys/wait.h>

static void *volatile last;

__attribute__((noinline)) void leak_at_start(void)
{
    for (int i = 0; i < 500; i++)
        memset(last = malloc(1000), 1, 1000);
}

__attribute__((noinline)) void leak_in_child(double end)
{
    while (now() < end) {
        memset(last = malloc(2000), 1, 2000);
        usleep(1000);
    }
}

int main(int argc, char **argv)
{
    leak_at_start();
    double end = begin(argc, argv);
    pid_t child = fork();
    if (!child) {
        leak_in_child(end);
        _exit(0);
    }
    while (now() < end)
        usleep(10000);
    int status;
    if (waitpid(child, &status, 0) != child || status)
        return 1;
    return argc > 2 ? atoi(argv[2]) : 0;
}
