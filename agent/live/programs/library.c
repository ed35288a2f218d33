/* A library that a program loads while it is watched. */
#include <stdlib.h>
#include <string.h>

static void *volatile last;

__attribute__((noinline)) static void *allocate(size_t size)
{
    return memset(malloc(size), 0xA5, size);
}

void leak_in_library(size_t size)
{
    last = allocate(size);
}
