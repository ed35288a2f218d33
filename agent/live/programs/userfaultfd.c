/* Heap blocks that point into pages nobody will ever fill in: reading one
 * blocks the reader for ever. */
#include "hazard.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { LENGTH = 1 << 20 };

static char **volatile last;

int main(int argc, char **argv)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    char *pages = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = {.range = {(unsigned long)pages, LENGTH},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || pages == MAP_FAILED || ioctl(fd, UFFDIO_REGISTER, &range))
        return 5;
    double end = begin(argc, argv);
    for (size_t i = 0; now() < end; i++) {
        last = malloc(512);
        *last = pages + i * 4096 % LENGTH;
        allocate_a_little();
        usleep(1000);
    }
    return 0;
}
