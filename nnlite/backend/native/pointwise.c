// Functions of each value.
#include "functions.h"

// y[i] = f(x[i])
#define EACH_VALUE(f)                                                                                                   \
    for (long i = 0; i < n; i += LANES) {                                                                               \
        if (n - i >= LANES)                                                                                             \
            store(y + i, f(load(x + i)));                                                                               \
        else                                                                                                            \
            store_some(y + i, f(load_some(x + i, n - i, 0)), n - i);                                                    \
    }

KERNEL exp_values(const REAL* x, REAL* y, long n) { EACH_VALUE(vexp) }
KERNEL expm1_values(const REAL* x, REAL* y, long n) { EACH_VALUE(vexpm1) }
KERNEL log_values(const REAL* x, REAL* y, long n) { EACH_VALUE(vlog) }
KERNEL log1p_values(const REAL* x, REAL* y, long n) { EACH_VALUE(vlog1p) }
KERNEL tanh_values(const REAL* x, REAL* y, long n) { EACH_VALUE(vtanh) }
KERNEL erf_values(const REAL* x, REAL* y, long n) { EACH_VALUE(verf) }
KERNEL relu_values(const REAL* x, REAL* y, long n) { EACH_VALUE(relu) }

// delta where y > 0, else 0, whatever delta is
KERNEL relu_delta(const REAL* delta, const REAL* y, REAL* da, long n)
{
    for (long i = 0; i < n; i += LANES) {
        const long some = at_most(LANES, n - i);
        const vec d = some == LANES ? load(delta + i) : load_some(delta + i, some, 0);
        const vec v = some == LANES ? load(y + i) : load_some(y + i, some, 0);
        const vec r = choose(v > 0, d, (vec){0});
        if (some == LANES)
            store(da + i, r);
        else
            store_some(da + i, r, some);
    }
}

// z += b, by column, and with `rectify` max(z, 0); z: (m, n)
KERNEL add_bias(REAL* z, const REAL* b, long rectify, long m, long n)
{
    for (long i = 0; i < m; i++, z += n)
        for (long j = 0; j < n; j += LANES) {
            const long some = at_most(LANES, n - j);
            const vec x = some == LANES ? load(z + j) + load(b + j) : load_some(z + j, some, 0) + load_some(b + j, some, 0);
            const vec y = rectify ? relu(x) : x;
            if (some == LANES)
                store(z + j, y);
            else
                store_some(z + j, y, some);
        }
}

// a mask, and 0 where mask is 0, whatever a is
KERNEL drop(const REAL* a, const REAL* mask, REAL* y, long n)
{
    for (long i = 0; i < n; i += LANES) {
        const long some = at_most(LANES, n - i);
        const vec x = some == LANES ? load(a + i) : load_some(a + i, some, 0);
        const vec m = some == LANES ? load(mask + i) : load_some(mask + i, some, 0);
        const vec r = choose(m > 0, x * m, (vec){0});
        if (some == LANES)
            store(y + i, r);
        else
            store_some(y + i, r, some);
    }
}
