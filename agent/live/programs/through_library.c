/* Leaks through a library, which it may shorten and restore meanwhile.
 *
 * usage: PROGRAM LIBRARY SECONDS [shorten] */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char image[64 << 20];

typedef size_t leak_function(void *(*)(size_t), size_t);

__attribute__((noinline)) size_t leak_through(leak_function *leak, int times)
{
    size_t sum = 0;
    for (int i = 0; i < times; i++)
        sum += leak(malloc, 600);
    return sum + 1;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 3;
    }
    leak_function *leak = (leak_function *)dlsym(library, "leak_in_library");
    int shortens = argc > 3, file = shortens ? open(argv[1], O_RDWR) : -1;
    ssize_t size = shortens ? pread(file, image, sizeof image, 0) : 0;
    if (!leak || (shortens && size <= 0))
        return 4;
    dprintf(1, "PID %d\nREADY\n", (int)getpid());
    for (int i = 0; i < atoi(argv[2]) * 50; i++) {
        if (!leak_through(leak, 20))
            return 5;
        /* Nobody runs its code while it has none. */
        if (shortens) {
            if (ftruncate(file, 0))
                return 6;
            usleep(5000);
            if (pwrite(file, image, size, 0) != size)
                return 7;
            usleep(15000);
        } else {
            usleep(20000);
        }
    }
    /* The library's own end would use what the linker had written. */
    _exit(0);
}
