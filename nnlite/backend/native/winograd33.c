// Winograd's F(3 x 3, 3 x 3): evaluation at 0, 1, -1, 2 and infinity.
#define OUT 3
#define TAPS 3
#define NAME(function) winograd33_##function
#include "vector.h"

// One axis of each transform, in place: x[0], x[step], ...

INLINE void input_axis(vec* x, int step) // B'd
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step], e = x[4 * step], g = d - b, h = 2 * b - c;
    x[0] = 2 * (a - c) + g, x[step] = d - c - 2 * b, x[2 * step] = h - 2 * c + d;
    x[3 * step] = g, x[4 * step] = h - 2 * d + e;
}

INLINE void output_axis(vec* x, int step) // A'm, 5 -> 3
{
    const vec s = x[step] + x[2 * step], d = x[step] - x[2 * step], e = x[3 * step];
    x[0] = x[0] + s + e, x[step] = d + 2 * e, x[2 * step] = s + 4 * e + x[4 * step];
}

INLINE void delta_axis(vec* x, int step) // A y, 3 -> 5
{
    const vec a = x[0], b = x[step], c = x[2 * step], e = a + c;
    x[step] = e + b, x[2 * step] = e - b, x[3 * step] = a + 2 * b + 4 * c, x[4 * step] = c;
}

INLINE void input_delta_axis(vec* x, int step) // B v
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step], e = x[4 * step], f = c - b + e;
    x[0] = 2 * a, x[step] = 2 * f - a - d, x[2 * step] = -(2 * a + b + 3 * c + e), x[3 * step] = a + b + c + d - 2 * e, x[4 * step] = e;
}

INLINE void filter_axis(vec* x, int step) { delta_axis(x, step); } // G w, without the factors SCALE: at the same places

INLINE void filter_delta_axis(vec* x, int step) { output_axis(x, step); } // G'u, likewise

#define SCALE(i) ((REAL)((i) == 0 ? 1 / 2. : (i) == 1 ? -1 / 2. : (i) == 2 ? -1 / 6. : (i) == 3 ? 1 / 6. : 1.))

#include "winograd.h"
