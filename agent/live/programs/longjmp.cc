// Leaves operator new by longjmp out of its new handler, and deep work by
// siglongjmp out of a signal handler.
#include "hazard.h"
#include <csetjmp>
#include <csignal>
#include <new>
#include <sys/time.h>

static jmp_buf from_handler;
static sigjmp_buf from_signal;
static volatile sig_atomic_t spinning;

static void no_memory() { longjmp(from_handler, 1); }

static void alarmed(int)
{
    // Only where no allocator's lock can be held.
    if (spinning)
        siglongjmp(from_signal, 1);
}

__attribute__((noinline)) static void deep(int depth)
{
    void *volatile block = malloc(32 + depth);
    if (depth) {
        deep(depth - 1);
    } else {
        spinning = 1;
        while (spinning) {
        }
    }
    free(block);
}

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    size_t volatile far_too_much = ~(size_t)0 / 4;
    std::set_new_handler(no_memory);
    signal(SIGALRM, alarmed);
    itimerval every = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &every, nullptr);
    volatile long left_new = 0, left_work = 0;
    while (now() < end) {
        for (volatile int i = 0; i < 20; i = i + 1) {
            if (!setjmp(from_handler)) {
                operator delete(operator new(far_too_much));
                return 6;
            }
            left_new = left_new + 1;
            allocate_a_little();
        }
        // The blocks of deep() are lost on purpose: that is what longjmp does.
        if (!sigsetjmp(from_signal, 1))
            deep(5);
        spinning = 0;
        left_work = left_work + 1;
    }
    return left_new > 0 && left_work > 0 ? 0 : 7;
}
