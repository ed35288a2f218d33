/* With -DALIGNED, malloc by posix_memalign, whose result the kernel must
 * single-step to. */
#include <stdlib.h>
#ifdef ALIGNED
static inline void *aligned(size_t size)
{
    void *block;
    return posix_memalign(&block, 64, size) ? NULL : block;
}
#define malloc aligned
#endif
