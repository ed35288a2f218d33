/* Blocks of many sizes and contents, some of which are freed and reused.
 *
 * usage: PROGRAM TABLE [thread]: all from a second thread, so not from glibc's main arena
 *
 * Writes a line per block to TABLE, says READY and is quiet. At the first
 * SIGUSR1 it frees what the table calls freed, and makes TABLE.freed. At the
 * second one it allocates and frees such blocks 200 000 times a second, the
 * last freed first, in waves, writes into the blocks that the table calls written,
 * and keeps the number of its calls in TABLE.calls. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum kind { RANDOM, NAMED, SMALL, ZERO, EQUAL, COUNTED, LEFTOVER, PARTLY, POOL, KINDS };
static const char *const names[] = {"random",  "named",    "small",  "zero", "equal",
                                    "counted", "leftover", "partly", "pool"};
/* Small sizes are nearly a class of their own for each kind of contents, so
 * that a block is given out again for the same purpose. */
static const size_t large[] = {1100, 2000, 4096, 10000, 16384, 40000, 65536, 200000};
enum { SMALL_SIZES = 7, SIZES = SMALL_SIZES + sizeof large / sizeof *large };
enum { SLOTS = 64, MOST = 8192, HEAD = 8 };

static size_t size_of(int s, int kind)
{
    if (s < SMALL_SIZES)
        return 16 * ((kind + s) % KINDS + KINDS * s) + 8 - s % 3 * (s > 0);
    return large[s - SMALL_SIZES] + large[s - SMALL_SIZES] / 16 * kind;
}

enum fate { KEPT, FREED, WRITTEN };
struct block {
    uint64_t *place;
    size_t size;
    enum kind kind;
    enum fate fate;
    /* Asked for with an alignment; resized; what was in it. */
    int aligned, resized;
    uint64_t head[HEAD];
};
static struct block blocks[MOST], later[MOST];
static int count, later_count;
static void *slots[SIZES][KINDS][SLOTS];

static uint64_t state = 88172645463325252ULL;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void text(char *place, size_t size, uint64_t id)
{
    char line[48];
    int length = snprintf(line, sizeof line, "user-%011llu;", (unsigned long long)id % 100000000000);
    for (size_t i = 0; i < size; i++)
        place[i] = line[i % length];
}

static void fill(uint64_t *place, size_t size, enum kind kind)
{
    size_t words = size / 8;
    switch (kind) {
    case RANDOM:
        for (size_t i = 0; i < words; i++)
            place[i] = draw();
        break;
    case NAMED:
        text((char *)place, size, draw());
        break;
    case SMALL:
        for (size_t i = 0; i < words; i++)
            place[i] = draw() % 1000;
        break;
    case ZERO:
        memset(place, 0, size);
        break;
    case EQUAL:
        text((char *)place, size, 4711);
        break;
    case COUNTED: /* like a shared pointer's target */
        for (size_t i = 0; i < words; i++)
            place[i] = i < 2 ? 1 : i == 2 ? (uint64_t)names : draw();
        break;
    case LEFTOVER: /* a buffer that has taken the same short answer */
        text((char *)place, size < 32 ? size : 32, 4711);
        break;
    case PARTLY: /* the same head, something of its own, and the rest of a buffer */
        for (size_t i = 0; i < words / 2; i++)
            place[i] = i < 2 ? (uint64_t)names : draw();
        break;
    case POOL: /* one of a few texts */
        text((char *)place, size, draw() % 16);
        break;
    default:
        break;
    }
}

/* In all the ways there are to get one. */
static struct block block(int s, enum kind kind, enum fate fate)
{
    struct block new = {.size = size_of(s, kind), .kind = kind, .fate = fate};
    void *place = NULL;
    int way = draw() % 12;
    if (kind == ZERO) {
        place = calloc(1, new.size);
    } else if (way == 0) {
        if (posix_memalign(&place, 64, new.size))
            _exit(4);
        new.aligned = 1;
    } else if (way == 1) {
        place = realloc(malloc(new.size / 2 + 1), new.size);
        new.resized = 1;
    } else {
        place = malloc(new.size);
    }
    new.place = place;
    memcpy(new.head, place, new.size < sizeof new.head ? new.size : sizeof new.head);
    if (kind != ZERO)
        fill(place, new.size, kind);
    return new;
}

/* What the heap looks like after a while: freed blocks full of old contents. */
static void warm_up(void)
{
    static void *old[SIZES * 24];
    int n = 0;
    for (int round = 0; round < 24; round++)
        for (int s = 0; s < SIZES; s++)
            fill(old[n++] = malloc(size_of(s, round % KINDS)), size_of(s, round % KINDS), RANDOM);
    for (int i = 0; i < n; i++) {
        int j = i + draw() % (n - i);
        void *other = old[i];
        old[i] = old[j];
        old[j] = other;
        free(old[i]);
    }
}

static long calls;

static void churn(void)
{
    int all = draw() % 20 == 0;
    int s = draw() % (all ? SIZES - 1 : SMALL_SIZES);
    int k = draw() % KINDS;
    void **slot = &slots[s][k][draw() % SLOTS];
    /* More and more blocks, then fewer and fewer. */
    int more = calls++ / 50000 % 2 ? draw() % 4 != 0 : draw() % 4 == 0;
    if (*slot && !more) {
        free(*slot);
        *slot = NULL;
    } else if (!*slot && more) {
        *slot = block(s, k, KEPT).place;
    }
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

static void wait_for(int number)
{
    while (signals < number)
        usleep(1000);
}

static void make_blocks(void)
{
    for (int i = 0; i < 24; i++)
        for (int s = 0; s < SIZES; s++)
            for (int k = 0; k < KINDS; k++) {
                if (i >= (s == SIZES - 1 ? 4 : s >= SMALL_SIZES ? 16 : 24))
                    continue;
                uint64_t way = draw() % 16;
                enum fate fate = way < 8 ? FREED : way < 10 && size_of(s, k) > 40 ? WRITTEN : KEPT;
                blocks[count++] = block(s, k, fate);
                /* Free neighbours. */
                if (draw() % 4 == 0)
                    later[later_count++] = block(s, k, FREED);
            }
    for (int i = 0; i < later_count; i++)
        free(later[i].place);
    /* Beside top: nothing after these. */
    for (int i = 0; i < 60; i++)
        blocks[count++] = block(SMALL_SIZES + i % 7, RANDOM, i < 30 ? KEPT : FREED);
}

static void *run(void *table_path)
{
    static char buffer[1 << 20];
    char path[4096];
    FILE *table = fopen(table_path, "w");
    setvbuf(table, buffer, _IOFBF, sizeof buffer);
    warm_up();
    for (int i = 0; i < 200000; i++)
        churn();
    make_blocks();
    for (int i = 0; i < count; i++) {
        const struct block *b = &blocks[i];
        fprintf(table, "%llu %zu %zu %s %d %d %d", (unsigned long long)(uintptr_t)b->place, b->size,
                malloc_usable_size(b->place), names[b->kind], b->fate, b->aligned, b->resized);
        for (int word = 0; word < HEAD; word++)
            fprintf(table, " %llu", (unsigned long long)b->head[word]);
        fputs("\n", table);
    }
    fflush(table);
    dprintf(1, "READY\n");

    wait_for(1);
    for (int i = 0; i < count; i++) {
        int j = i + draw() % (count - i);
        struct block other = blocks[i];
        blocks[i] = blocks[j];
        blocks[j] = other;
        if (blocks[i].fate == FREED)
            free(blocks[i].place);
    }
    snprintf(path, sizeof path, "%s.freed", (char *)table_path);
    close(creat(path, 0600));

    snprintf(path, sizeof path, "%s.calls", (char *)table_path);
    int counter = creat(path, 0600);
    wait_for(2);
    calls = 0;
    for (double next = now();; next += 0.001) {
        for (int i = 0; i < 200; i++)
            churn();
        for (int i = 0; i < count; i++)
            if (blocks[i].fate == WRITTEN)
                blocks[i].place[3]++;
        char text[24];
        int length = snprintf(text, sizeof text, "%20ld", calls);
        if (pwrite(counter, text, length, 0) != length)
            _exit(5);
        while (now() < next)
            usleep(100);
    }
}

int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc < 2)
        return 2;
    signal(SIGUSR1, count_signal);
    if (argc == 2)
        run(argv[1]);
    else if (pthread_create(&thread, NULL, run, argv[1]) == 0)
        pthread_join(thread, NULL);
    return 0;
}
