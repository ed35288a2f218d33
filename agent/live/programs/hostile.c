/* Names that want to be printed raw: the thread's name is set here, the
 * executable's and the function's by the test (file name, objcopy).
 *
 * usage: hostile RATE SIZE SECONDS */
#include "leak.h"
#include <sys/prctl.h>

static void *volatile last;

__attribute__((noinline)) void leak_here(size_t size)
{
    void *block = malloc(size);
    if (!block)
        _exit(4);
    memset(block, 0xA5, size);
    last = block;
}

__attribute__((noinline)) void churn_here(size_t size)
{
    free(malloc(size));
}

int main(int argc, char **argv)
{
    prctl(PR_SET_NAME, "\033[31m\n\"<b>'\x9b\x7f");
    return run_leak(argc, argv, leak_here, churn_here);
}
