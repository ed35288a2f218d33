// operator new fails all the time and throws through its own frame.
#include "hazard.h"
#include <new>

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    // Not a constant, so that the compiler cannot refuse the size itself.
    size_t volatile far_too_much = ~(size_t)0 / 4;
    long thrown = 0, rounds = 0;
    while (now() < end) {
        rounds++;
        try {
            char *volatile block = static_cast<char *>(operator new(far_too_much));
            operator delete(block);
        } catch (const std::bad_alloc &) {
            thrown++;
        }
        if (operator new(far_too_much, std::nothrow))
            return 6;
        operator delete(operator new(64));
        allocate_a_little();
        usleep(200);
    }
    return thrown == rounds ? 0 : 7;
}
