// Normalisation: maps of each column. Arrays are (m, C).
#include "norm.h"

#define WIDE 1024

// For each vector of each row: its place in the array, its first column j, and how many columns are left
#define EACH_VECTOR(m, C)                                                                                                          \
    for (long row = 0; row < m * C; row += C)                                                                                      \
        for (long j = 0, place = row, left = C; left > 0; j += LANES, place += LANES, left -= LANES)

// y = a + c, by column
KERNEL add_columns(const REAL* a, const REAL* c, REAL* y, long m, long C)
{
    EACH_VECTOR(m, C) store_up_to(y + place, load_up_to(a + place, left) + load_up_to(c + j, left), left);
}

// y = a c, by column
KERNEL multiply_columns(const REAL* a, const REAL* c, REAL* y, long m, long C)
{
    EACH_VECTOR(m, C) store_up_to(y + place, load_up_to(a + place, left) * load_up_to(c + j, left), left);
}

// y = (a - center) scale + shift, and with `rectify` max(y, 0); center may be null, for 0
KERNEL affine(const REAL* a, const REAL* center, const REAL* scale, const REAL* shift, REAL* y, long m, long C, long rectify)
{
    EACH_VECTOR(m, C)
    {
        vec x = load_up_to(a + place, left);
        x = center ? x - load_up_to(center + j, left) : x;
        x = fused(x, load_up_to(scale + j, left), load_up_to(shift + j, left));
        store_up_to(y + place, rectify ? relu(x) : x, left);
    }
}

// y = (a + minus_mean) inv_std of bytes, each rounded twice; minus_mean may be null, for 0. Narrow rows are many side by side, so that
// the loop is long and compilers make vectors of it.
KERNEL standardize_bytes(const uint8_t* restrict a, const REAL* minus_mean, const REAL* inv_std, REAL* restrict y, long m, long C)
{
    REAL shift[WIDE], scale[WIDE];
    for (long c = 0; c < C; c += WIDE) {
        const long part = at_most(WIDE, C - c), width = part == C ? WIDE / C * C : part;
        for (long j = 0; j < width; j++) {
            shift[j] = j >= C ? shift[j - C] : minus_mean ? minus_mean[c + j] : 0;
            scale[j] = j >= C ? scale[j - C] : inv_std[c + j];
        }
        for (long row = c; row < m * C; row += at_least(C, width)) {
            const long n = at_most(width, m * C - row);
            for (long j = 0; j < n; j++)
                y[row + j] = (a[row + j] + shift[j]) * scale[j];
        }
    }
}

// da = scale (delta + slope (a - mean) + offset), and with `rectified` delta is 0 where max( , 0) of the normalised a is 0
KERNEL normalize_delta(const REAL* delta, const REAL* a, const REAL* mean, const REAL* scale, const REAL* shift, long rectified,
                       const REAL* slope, const REAL* offset, REAL* da, long m, long C)
{
    EACH_VECTOR(m, C)
    {
        const vec deviation = load_up_to(a + place, left) - load_up_to(mean + j, left), factor = load_up_to(scale + j, left);
        vec d = load_up_to(delta + place, left);
        d = rectified ? choose(fused(deviation, factor, load_up_to(shift + j, left)) > 0, d, (vec){0}) : d;
        store_up_to(da + place, fused(load_up_to(slope + j, left), deviation, d + load_up_to(offset + j, left)) * factor, left);
    }
}
