// Softmax cross-entropy with its delta.
#include "functions.h"

#define LANES_OF_A_SUM 16
#define VECTORS ((int)(LANES_OF_A_SUM / LANES))

// 16 lanes to one value, halves added
INLINE REAL fold(REAL* lane)
{
    for (int h = LANES_OF_A_SUM / 2; h; h /= 2)
        for (int i = 0; i < h; i++)
            lane[i] += lane[i + h];
    return lane[0];
}

// J = log(sum of exp z) - z_t and delta = softmax(z) - 1 at the label t, softmax(z) elsewhere, of each row of z (n, k): sums
// over a row have 16 lanes
KERNEL cross_entropy_of_labels(const REAL* z, const int64_t* label, long n, long k, REAL* delta, REAL* losses)
{
    for (long r = 0; r < n; r++, z += k, delta += k) {
        REAL top = z[0], lane[LANES_OF_A_SUM], one[LANES];
        vec total[VECTORS];
        for (long i = 1; i < k; i++)
            top = z[i] > top ? z[i] : top;
        for (int j = 0; j < VECTORS; j++)
            total[j] = (vec){0};
        for (long i = 0; i < k; i += LANES_OF_A_SUM)
            for (int j = 0; j < VECTORS; j++) {
                const long at = i + j * LANES, some = k - at;
                if (some >= LANES) {
                    const vec e = vexp(load(z + at) - top);
                    total[j] += e;
                    store(delta + at, e);
                } else if (some > 0) {
                    const vec e = vexp(load_some(z + at, some, -(REAL)__builtin_inf()) - top);
                    total[j] += e;
                    store_some(delta + at, e, some);
                }
            }
        for (int j = 0; j < VECTORS; j++)
            store(lane + j * LANES, total[j]);
        const REAL sum = fold(lane);
        for (long i = 0; i < k; i++)
            delta[i] /= sum;
        store(one, vlog(splat(sum)));
        if (label[r] < 0 || label[r] >= k) { // refused before; never write outside
            losses[r] = (REAL)__builtin_nan("");
            continue;
        }
        losses[r] = one[0] - (z[label[r]] - top);
        delta[label[r]] -= 1;
    }
}
