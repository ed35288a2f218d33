/* Allocates, and dies of its own mistake after the seconds asked for. */
#include "hazard.h"

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    while (now() < end) {
        allocate_a_little();
        usleep(1000);
    }
    *(volatile int *)8 = 1;
    return 0;
}
