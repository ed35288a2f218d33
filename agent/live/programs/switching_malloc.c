/* Two user-level stacks, and a malloc that goes on with the other one before it
 * returns, as one does whose lock knows of fibers. */
#include "hazard.h"
#include <ucontext.h>

#define STACK (256 << 10)

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

static ucontext_t outside, fibers[2];
static int switching, running;
static double end;
static long done[2];

static void other(void)
{
    int from = running;
    running = !running;
    swapcontext(&fibers[from], &fibers[running]);
}

__attribute__((noinline)) void *malloc(size_t size)
{
    void *block = __libc_malloc(size);
    if (switching)
        other();
    return block;
}

void free(void *block)
{
    __libc_free(block);
}

__attribute__((noinline)) static char *small(void)
{
    return memset(malloc(32), 1, 32);
}

__attribute__((noinline)) static char *large(void)
{
    return memset(malloc(96), 2, 96);
}

static void work(int me)
{
    while (now() < end) {
        for (int i = 0; i < 10; i++) {
            char *block = me ? large() : small();
            if (block[31] != me + 1)
                _exit(6);
            free(block);
            done[me]++;
        }
        if (!me)
            usleep(2000);
    }
    setcontext(&outside);
}

int main(int argc, char **argv)
{
    static char stacks[2][STACK];
    end = begin(argc, argv);
    for (int i = 0; i < 2; i++) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks[i];
        fibers[i].uc_stack.ss_size = STACK;
        makecontext(&fibers[i], (void (*)(void))work, 1, i);
    }
    switching = 1;
    swapcontext(&outside, &fibers[0]);
    switching = 0;
    return done[0] > 100 && done[1] > 100 ? 0 : 7;
}
