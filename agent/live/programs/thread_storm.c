/* Threads that start, allocate and end as fast as they can. */
#include "hazard.h"
#include <pthread.h>

static void *thread(void *argument)
{
    for (int i = 0; i < 10; i++)
        allocate_a_little();
    return argument;
}

int main(int argc, char **argv)
{
    double end = begin(argc, argv);
    while (now() < end) {
        pthread_t threads[8];
        for (int i = 0; i < 8; i++)
            if (pthread_create(&threads[i], NULL, thread, NULL))
                return 5;
        for (int i = 0; i < 8; i++)
            if (pthread_join(threads[i], NULL))
                return 6;
        usleep(1000);
    }
    return 0;
}
