/* Allocates seldom, and commits the fault it was asked for when it gets
 * SIGUSR1. After the seconds it ends well.
 *
 * usage: faults SECONDS KIND
 * null, ud2, int3, abort, bus: the fault; reraise: a null pointer's, caught by
 * a handler that sends the signal again; caught: a thousand of them a second,
 * caught, from the start on, and a good end at SIGUSR1; grow: takes ever more memory, from the start on. */
#include "hazard.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static volatile sig_atomic_t told;
static sigjmp_buf back;

static void on_told(int signal)
{
    (void)signal;
    told = 1;
}

static void go_back(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

static void send_again(int number)
{
    static const char text[] = "a stack would stand here\n";
    (void)!write(2, text, sizeof text - 1);
    signal(number, SIG_DFL);
    raise(number);
}

static void write_to_nothing(void)
{
    *(volatile int *)8 = 1;
}

static void read_past_the_end(void)
{
    FILE *file = tmpfile();
    if (!file || ftruncate(fileno(file), 4096))
        _exit(4);
    volatile char *page = (char *)mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(file), 0);
    if (ftruncate(fileno(file), 0))
        _exit(4);
    (void)page[0];
}

static void fault(const char *kind)
{
    if (!strcmp(kind, "ud2"))
        __asm__ volatile("ud2");
    if (!strcmp(kind, "int3"))
        __asm__ volatile("int3");
    if (!strcmp(kind, "abort"))
        abort();
    if (!strcmp(kind, "bus"))
        read_past_the_end();
    if (!strcmp(kind, "null") || !strcmp(kind, "reraise"))
        write_to_nothing();
}

int main(int argc, char **argv)
{
    const char *kind = argc > 2 ? argv[2] : "null";
    int caught = !strcmp(kind, "caught"), grows = !strcmp(kind, "grow");
    signal(SIGUSR1, on_told);
    if (!strcmp(kind, "reraise"))
        signal(SIGSEGV, send_again);
    if (caught)
        signal(SIGSEGV, go_back);
    double end = begin(argc, argv);
    for (unsigned turn = 0; now() < end; turn++) {
        if (turn % 20 == 0)
            allocate_a_little();
        if (told && caught)
            break;
        if (told)
            fault(kind);
        if (caught && !sigsetjmp(back, 1))
            write_to_nothing();
        if (grows && turn % 100 == 0) {
            void *block = malloc(2 << 20);
            memset(block, 1, 2 << 20);
        }
        usleep(1000);
    }
    return 0;
}
