/* Does something to the code of its own allocator, and checks that it works
 * all the same.
 *
 * usage: rewrites SECONDS WHAT DELAY [NUMBER [FILE]]: from DELAY seconds after
 * its start on, once or, where that is said, every 20 ms:
 *
 *   nothing
 *   writable   makes the page of malloc writable, and not writable again; again
 *              and again
 *   drop       throws the process's own copy of that page away; again and again
 *   hook       puts a jump to a function of its own into memalign
 *   trap       handles breakpoints itself, and sets one beside malloc
 *   code       maps the page of malloc NUMBER times more
 *   file       maps a page of FILE so often
 *
 * With a DELAY of 0, that is done before READY. Exit status 0 when no block
 * was damaged. */
#include "hazard.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

#define PAGE 4096ul

static volatile long hooked;

static unsigned char *page_of(unsigned char *code)
{
    return (unsigned char *)((uintptr_t)code & ~(PAGE - 1));
}

/* Nobody but this program asks for such blocks, and gives none back. */
static void *instead(size_t alignment, size_t size)
{
    static char memory[4096] __attribute__((aligned(64)));
    hooked++;
    return alignment <= 64 && size <= sizeof memory ? memory : NULL;
}

static void overwrite(unsigned char *code, const unsigned char *by, int length)
{
    mprotect(page_of(code), 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int i = 0; i < length; i++)
        ((volatile unsigned char *)code)[i] = by[i];
    mprotect(page_of(code), 2 * PAGE, PROT_READ | PROT_EXEC);
}

static void hook(void)
{
    unsigned char *code = dlsym(RTLD_DEFAULT, "memalign");
    /* jmp *0(%rip), and the address. */
    unsigned char jump[14] = {0xff, 0x25};
    uintptr_t here = (uintptr_t)instead;
    memcpy(jump + 6, &here, 8);
    overwrite(code, jump, sizeof jump);
}

static void trapped(int number)
{
    (void)number;
}

/* In the padding between two functions, where nobody comes. */
static void trap(unsigned char *code)
{
    static const unsigned char breakpoint[1] = {0xcc};
    signal(SIGTRAP, trapped);
    overwrite(code - 1, breakpoint, 1);
}

static int map_file(const char *path, unsigned long offset, int protection, long times)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 2;
    for (long i = 0; i < times; i++)
        if (mmap(0, PAGE, protection, MAP_PRIVATE, file, offset) == MAP_FAILED)
            return 2;
    close(file);
    return 0;
}

/* The part of its file that the page of malloc is. */
static int map_code(unsigned char *code, long times)
{
    char line[4096], path[4096] = "";
    unsigned long offset = 0;
    FILE *list = fopen("/proc/self/maps", "r");
    while (list && fgets(line, sizeof line, list)) {
        unsigned long start, end, from;
        char name[4096];
        if (sscanf(line, "%lx-%lx %*s %lx %*s %*s %4095s", &start, &end, &from, name) == 4 &&
            start <= (uintptr_t)code && (uintptr_t)code < end) {
            strcpy(path, name);
            offset = from + (uintptr_t)page_of(code) - start;
        }
    }
    if (list)
        fclose(list);
    return map_file(path, offset, PROT_READ | PROT_EXEC, times);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    unsigned char *code = dlsym(RTLD_DEFAULT, "malloc");
    const char *what = argv[2];
    double from = now() + atof(argv[3]), end = 0;
    long number = argc > 4 ? atol(argv[4]) : 0, damaged = 0;
    int wrong = 0, done = 0;
    for (;;) {
        if (now() >= from) {
            if (!strcmp(what, "writable"))
                overwrite(code, code, 0);
            else if (!strcmp(what, "drop"))
                madvise(page_of(code), 2 * PAGE, MADV_DONTNEED);
            else if (!done && !strcmp(what, "hook"))
                hook();
            else if (!done && !strcmp(what, "trap"))
                trap(code);
            else if (!done && !strcmp(what, "code"))
                wrong |= map_code(code, number);
            else if (!done && !strcmp(what, "file"))
                wrong |= map_file(argv[5], 0, PROT_READ, number);
            done = 1;
        }
        if (!end)
            end = begin(argc, argv);
        if (now() >= end)
            break;
        for (int i = 0; i < 20; i++) {
            char *volatile block = malloc(100);
            memset(block, i, 100);
            damaged += block[99] != i;
            free(block);
        }
        void *volatile aligned = memalign(64, 100);
        damaged += !aligned;
        if (!hooked)
            free(aligned);
        usleep(20000);
    }
    wrong |= damaged || !done || (!strcmp(what, "hook") && !hooked);
    dprintf(1, "damaged %ld wrong %d\n", damaged, wrong);
    return wrong;
}
