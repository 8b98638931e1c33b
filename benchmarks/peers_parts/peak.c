// What a core can do: chains of fused multiply-adds that stay in registers and wait for nothing but themselves.
#include "vector.h"

#define CHAINS 12

// `count` fused multiply-adds, rounded down to CHAINS vectors; sum: LANES values, so that all are computed
KERNEL multiply_add(REAL a, REAL b, long count, REAL* sum)
{
    const vec x = splat(a), y = splat(b);
    vec chain[CHAINS], total = {0};
    UNROLL for (int i = 0; i < CHAINS; i++) chain[i] = splat(i);
    for (long n = 0; n < count / (CHAINS * LANES); n++)
        UNROLL for (int i = 0; i < CHAINS; i++) chain[i] = fused(chain[i], x, y);
    UNROLL for (int i = 0; i < CHAINS; i++) total += chain[i];
    store(sum, total);
}
