/* Forks all the time; every child allocates and must come back with 0. */
#include "hazard.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    while (now() < end) {
        allocate_a_little();
        pid_t child = fork();
        if (child < 0)
            return 5;
        if (!child) {
            for (int i = 0; i < 20; i++)
                allocate_a_little();
            exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status)
            return 6;
        usleep(2000);
    }
    return 0;
}
