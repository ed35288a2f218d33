/* A program without any library, and so without an allocator. */
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

void _start(void)
{
    static const struct {
        long seconds, nanoseconds;
    } pause = {60, 0};
    call(1, 1, (long)"READY\n", 6);
    call(35, (long)&pause, 0, 0);
    call(60, 0, 0, 0);
    __builtin_unreachable();
}
