/* Leaks by count from argv; see leak.h. */
#include "leak.h"
#include "aligned.h"

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
    void *volatile block = calloc(1, size / 2 + 1);
    block = realloc(block, size);
    free(block);
}

int main(int argc, char **argv)
{
    return run_leak(argc, argv, leak_here, churn_here);
}
