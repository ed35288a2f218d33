/* A small allocator whose functions begin with five bytes that do nothing, for
 * which -fpatchable-function-entry leaves room. */
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA (1ul << 28)

struct block {
    size_t kind, size;
    struct block *next;
    long reserved;
};

static struct block *spare[64];
static char *arena;
static size_t used;

void *malloc(size_t size)
{
    size_t kind = 5;
    while ((1ul << kind) < size + sizeof(struct block))
        kind++;
    struct block *block = spare[kind];
    if (block) {
        spare[kind] = block->next;
    } else {
        if (!arena)
            arena = mmap(0, ARENA, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED || used + (1ul << kind) > ARENA)
            return NULL;
        block = (struct block *)(arena + used);
        used += 1ul << kind;
    }
    block->kind = kind;
    block->size = size;
    return block + 1;
}

void free(void *memory)
{
    if (!memory)
        return;
    struct block *block = (struct block *)memory - 1;
    block->next = spare[block->kind];
    spare[block->kind] = block;
}

void *calloc(size_t count, size_t size)
{
    void *memory = malloc(count * size);
    return memory ? memset(memory, 0, count * size) : NULL;
}

void *realloc(void *memory, size_t size)
{
    void *other = malloc(size);
    if (memory && other) {
        size_t before = ((struct block *)memory - 1)->size;
        memcpy(other, memory, before < size ? before : size);
        free(memory);
    }
    return other;
}
