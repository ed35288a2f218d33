// Leaks through operator new by count from argv; see leak.h.
#include "leak.h"

#include <memory>
#include <vector>

static void *volatile last;

__attribute__((noinline)) void leak_here(size_t size)
{
    char *block = new char[size];
    memset(block, 0xA5, size);
    last = block;
}

__attribute__((noinline)) void churn_here(size_t size)
{
    std::vector<char> items(size);
    auto one = std::make_unique<long>(size);
    last = items.data();
    last = one.get();
}

int main(int argc, char **argv)
{
    return run_leak(argc, argv, leak_here, churn_here);
}
