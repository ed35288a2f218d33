/* Memory that no allocator knows: maps pieces, touches them, and keeps them
 * (argument "keep") or unmaps them. Arguments: keep|give KIB_PER_SECOND. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE (256 << 10)

__attribute__((noinline)) static char *grow_arena(void)
{
    char *piece = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (piece == MAP_FAILED)
        exit(1);
    for (size_t at = 0; at < PIECE; at += 4096)
        piece[at] = 1;
    return piece;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    int keep = !strcmp(argv[1], "keep");
    useconds_t pause = 1000000ull * (PIECE >> 10) / strtoul(argv[2], NULL, 10);
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("READY");
    for (;;) {
        char *piece = grow_arena();
        free(malloc(100));
        if (!keep)
            munmap(piece, PIECE);
        usleep(pause);
    }
}
