/* An allocator that a signal handler may enter while it runs, as a lawful
 * re-entrant one; the handler has a stack of its own that lies higher. */
#include "hazard.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#define ARENA (1UL << 24)

static char *arena;
static unsigned long used;
static volatile long handled;

__attribute__((noinline)) void *malloc(size_t size)
{
    unsigned long at = __sync_fetch_and_add(&used, (size + 31) & ~15UL);
    if (!arena)
        arena = mmap(NULL, 2 * ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (volatile int i = 0; i < 30; i = i + 1) {
    }
    return arena + at % ARENA;
}

__attribute__((noinline)) void free(void *block)
{
    __asm__ volatile("" ::"r"(block) : "memory");
}

void *calloc(size_t count, size_t size)
{
    return memset(malloc(count * size), 0, count * size);
}

void *realloc(void *block, size_t size)
{
    (void)block;
    return malloc(size);
}

static void alarmed(int number)
{
    (void)number;
    char *volatile block = malloc(200);
    block[0] = 7;
    free(block);
    handled++;
}

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    stack_t higher = {.ss_size = 1 << 17};
    higher.ss_sp = mmap((void *)0x7fffe0000000, higher.ss_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_handler = alarmed, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct itimerval every = {{0, 500}, {0, 500}};
    if (sigaltstack(&higher, NULL) || sigaction(SIGALRM, &action, NULL))
        return 5;
    setitimer(ITIMER_REAL, &every, NULL);
    while (now() < end) {
        for (int i = 0; i < 2000; i++) {
            char *volatile block = malloc(300);
            block[9] = 1;
            free(block);
        }
    }
    return handled > 100 ? 0 : 7;
}
