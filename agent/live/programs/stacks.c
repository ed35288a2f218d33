/* Leaks at the end of a call path that is hard to unwind.
 *
 * usage: stacks RATE SIZE SECONDS; the environment's PATHWAY says which:
 * deep, signal, callback, or the name of a library to load after a while. */
#include "leak.h"
#include <dlfcn.h>
#include <signal.h>

static void *volatile last;
static volatile size_t wanted;
static void (*in_library)(size_t);
static const char *pathway;

__attribute__((noipa)) void leak_here(size_t size)
{
    void *block = malloc(size);
    if (!block)
        _exit(4);
    memset(block, 0xA5, size);
    last = block;
}

/* Frames of varying size, as a compiler makes them without frame pointers. */
__attribute__((noipa)) static int deep(int depth, size_t size)
{
    volatile char room[24 + depth % 5 * 16];
    room[depth % 24] = 1;
    if (depth)
        return deep(depth - 1, size) + room[depth % 24];
    leak_here(size);
    return room[0];
}

__attribute__((noipa)) static void on_signal(int number)
{
    leak_here(wanted);
    /* Not a tail call. */
    wanted += number - SIGUSR2;
}

__attribute__((noipa)) static int compare(const void *a, const void *b)
{
    leak_here(wanted);
    return *(const char *)a - *(const char *)b;
}

__attribute__((noipa)) void leak_by_pathway(size_t size)
{
    char two[2] = {2, 1};
    wanted = size;
    if (!strcmp(pathway, "deep")) {
        deep(60, size);
    } else if (!strcmp(pathway, "signal")) {
        raise(SIGUSR2);
    } else if (!strcmp(pathway, "callback")) {
        qsort(two, 2, 1, compare);
    } else {
        static unsigned long long begin;
        if (!begin)
            begin = now_ns();
        if (!in_library && now_ns() - begin > 3000000000ULL) {
            void *library = dlopen(pathway, RTLD_NOW);
            in_library = library ? (void (*)(size_t))dlsym(library, "leak_in_library") : NULL;
            if (!in_library)
                _exit(5);
        }
        if (in_library)
            in_library(size);
    }
}

static void nothing(size_t size)
{
    (void)size;
}

int main(int argc, char **argv)
{
    pathway = getenv("PATHWAY");
    signal(SIGUSR2, on_signal);
    return pathway ? run_leak(argc, argv, leak_by_pathway, nothing) : 2;
}
