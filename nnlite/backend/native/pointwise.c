// Functions of each value, biases and dropout.
#include "functions.h"

#define EACH_VECTOR(n) for (long i = 0, left = n; left > 0; i += LANES, left -= LANES)
#define EACH_VALUE(f, a, y, n) EACH_VECTOR(n) store_up_to(y + i, f(load_up_to(a + i, left)), left)

KERNEL exp_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vexp, a, y, n); }
KERNEL expm1_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vexpm1, a, y, n); }
KERNEL log_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vlog, a, y, n); }
KERNEL log1p_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vlog1p, a, y, n); }
KERNEL tanh_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vtanh, a, y, n); }
KERNEL sigmoid_values(const REAL* a, REAL* y, long n) { EACH_VALUE(vsigmoid, a, y, n); }
KERNEL erf_values(const REAL* a, REAL* y, long n) { EACH_VALUE(verf, a, y, n); }
KERNEL relu_values(const REAL* a, REAL* y, long n) { EACH_VALUE(relu, a, y, n); }

// da = delta where y > 0, else 0
KERNEL relu_delta(const REAL* delta, const REAL* y, REAL* da, long n)
{
    EACH_VECTOR(n) store_up_to(da + i, choose(load_up_to(y + i, left) > 0, load_up_to(delta + i, left), (vec){0}), left);
}

// z += b, by column, and with `rectify` max(z, 0)
KERNEL add_bias(REAL* z, const REAL* b, long m, long C, long rectify)
{
    for (long row = 0; row < m; row++, z += C)
        EACH_VECTOR(C)
        {
            const vec x = load_up_to(z + i, left) + load_up_to(b + i, left);
            store_up_to(z + i, rectify ? relu(x) : x, left);
        }
}

// y = a mask, and 0 where mask is 0, whatever a is
KERNEL drop_values(const REAL* a, const REAL* mask, REAL* y, long n)
{
    EACH_VECTOR(n)
    {
        const vec m = load_up_to(mask + i, left);
        store_up_to(y + i, choose(m > 0, load_up_to(a + i, left) * m, (vec){0}), left);
    }
}

// ---- random bits: Philox 4x64-10 (Salmon et al. 2011), the words that NumPy draws; see backend/random.py

INLINE void philox(uint64_t c[4], uint64_t key0, uint64_t key1)
{
    for (int round = 0; round < 10; round++) {
        const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93 * c[0], b = (unsigned __int128)0xCA5A826395121157 * c[2];
        c[0] = (uint64_t)(b >> 64) ^ c[1] ^ key0, c[1] = (uint64_t)b;
        c[2] = (uint64_t)(a >> 64) ^ c[3] ^ key1, c[3] = (uint64_t)a;
        key0 += 0x9E3779B97F4A7C15, key1 += 0xBB67AE8584CAA73B;
    }
}

// mask (rows, words) is 0 where the bits are below `threshold`, else scale; the counters are (block, 0, stream0, stream1)
KERNEL dropout_mask(long key0, long key1, long stream0, long stream1, long block, long rows, long words, long threshold, REAL scale,
                    REAL* mask)
{
    for (long row = 0; row < rows; row++, mask += words)
        for (long i = 0; i < words; i += 8, block++) {
            uint64_t c[4] = {block, 0, stream0, stream1};
            philox(c, key0, key1);
            for (long j = 0; j < at_most(8, words - i); j++)
                mask[i + j] = (uint32_t)(c[j / 2] >> j % 2 * 32) < (uint64_t)threshold ? 0 : scale;
        }
}
