/* Lives under strict seccomp: any syscall but read, write, exit and sigreturn
 * kills it, and so does reading the clock (the TSC is disabled too). */
#include "hazard.h"
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void spin(long rounds)
{
    for (volatile long i = 0; i < rounds; i++) {
    }
}

int main(int argc, char **argv)
{
    /* The heap must not need to grow later. */
    free(malloc(100000));
    allocate_a_little();
    double start = now();
    spin(10000000);
    long per_millisecond = 1e4 / (now() - start);
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    begin(argc, argv);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
        return 5;
    for (int i = 0; i < seconds * 500; i++) {
        allocate_a_little();
        spin(2 * per_millisecond);
    }
    syscall(SYS_exit, 0);
}
