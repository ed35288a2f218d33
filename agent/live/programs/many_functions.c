/* A library that leaks, with so many functions that reading it takes a while. */
#include <stddef.h>

#define F(n) __attribute__((noinline)) int unused_##n(int value) { return value * 3 + 0x##n; }
#define F16(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) \
    F(n##8) F(n##9) F(n##a) F(n##b) F(n##c) F(n##d) F(n##e) F(n##f)
#define F256(n) F16(n##0) F16(n##1) F16(n##2) F16(n##3) F16(n##4) F16(n##5) F16(n##6) F16(n##7) \
    F16(n##8) F16(n##9) F16(n##a) F16(n##b) F16(n##c) F16(n##d) F16(n##e) F16(n##f)
F256(1) F256(2) F256(3) F256(4) F256(5) F256(6) F256(7) F256(8)
F256(9) F256(a) F256(b) F256(c) F256(d) F256(e) F256(f)

/* Uses nothing that the linker has written: a file that becomes shorter takes
 * that with it. */
__attribute__((noinline)) size_t leak_in_library(void *(*allocate)(size_t), size_t size)
{
    volatile char *block = allocate(size);
    if (!block)
        return 0;
    for (size_t i = 0; i < size; i++)
        block[i] = 1;
    /* Its frame stays: what it returns is not what the allocator did. */
    return size + 1;
}
