// Winograd's transforms at the points 0, 1, -1, 2, -2 and infinity, which serve F(4 x 4, 3 x 3) and F(3 x 3, 4 x 4): what evaluates
// filters of one, but for the factors SCALE, is the adjoint of what makes outputs of the other.
#pragma once
#include "vector.h"

// One axis of each transform, in place: x[0], x[step], ...

INLINE void input_axis(vec* x, int step) // B'd
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step], e = x[4 * step], f = x[5 * step];
    const vec even = e - 4 * c, odd = d - 4 * b, g = e - c, h = 2 * (d - b);
    x[0] = 4 * (a - c) + g, x[step] = even + odd, x[2 * step] = even - odd;
    x[3 * step] = g + h, x[4 * step] = g - h, x[5 * step] = 4 * (b - d) + (f - d);
}

INLINE void from_points_4(vec* x, int step) // 6 -> 4
{
    const vec s = x[step] + x[2 * step], d = x[step] - x[2 * step], t = x[3 * step] + x[4 * step], e = x[3 * step] - x[4 * step];
    x[0] = x[0] + s + t, x[step] = d + 2 * e, x[2 * step] = s + 4 * t, x[3 * step] = d + 8 * e + x[5 * step];
}

INLINE void to_points_4(vec* x, int step) // 4 -> 6, its adjoint
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    const vec e = a + c, o = b + d, f = a + 4 * c, p = 2 * (b + 4 * d);
    x[step] = e + o, x[2 * step] = e - o, x[3 * step] = f + p, x[4 * step] = f - p, x[5 * step] = d;
}

INLINE void input_delta_axis(vec* x, int step) // B v
{
    const vec a = x[0], p = x[step] + x[2 * step], q = x[step] - x[2 * step], f = x[5 * step];
    const vec r = x[3 * step] + x[4 * step], s = x[3 * step] - x[4 * step];
    x[0] = 4 * a, x[step] = 4 * (f - q) - 2 * s, x[2 * step] = -(4 * (a + p) + (a + r));
    x[3 * step] = 2 * (s - 2 * f) + (q - f), x[4 * step] = a + p + r;
}

INLINE void to_points_3(vec* x, int step) // 3 -> 6
{
    const vec a = x[0], b = x[step], c = x[2 * step], e = a + c, f = a + 4 * c;
    x[step] = e + b, x[2 * step] = e - b, x[3 * step] = f + 2 * b, x[4 * step] = f - 2 * b, x[5 * step] = c;
}

INLINE void from_points_3(vec* x, int step) // 6 -> 3, its adjoint
{
    const vec p = x[step] + x[2 * step], q = x[step] - x[2 * step], r = x[3 * step] + x[4 * step], s = x[3 * step] - x[4 * step];
    x[0] = x[0] + p + r, x[step] = q + 2 * s, x[2 * step] = p + 4 * r + x[5 * step];
}

#define SCALE(i) ((REAL)((i) == 0 ? 1 / 4. : (i) < 3 ? -1 / 6. : (i) < 5 ? 1 / 24. : 1.))
