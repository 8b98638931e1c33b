// Winograd's F(2 x 2, 3 x 3): evaluation at 0, 1, -1 and infinity.
#define OUT 2
#define TAPS 3
#define NAME(function) winograd23_##function
#include "vector.h"

// One axis of each transform, in place: x[0], x[step], ...

INLINE void input_axis(vec* x, int step) // B'd
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[0] = a - c, x[step] = b + c, x[2 * step] = c - b, x[3 * step] = d - b;
}

INLINE void output_axis(vec* x, int step) // A'm, 4 -> 2
{
    const vec s = x[step] + x[2 * step], d = x[step] - x[2 * step];
    x[0] = x[0] + s, x[step] = d + x[3 * step];
}

INLINE void delta_axis(vec* x, int step) // A y, 2 -> 4
{
    const vec a = x[0], b = x[step];
    x[step] = a + b, x[2 * step] = a - b, x[3 * step] = b;
}

INLINE void input_delta_axis(vec* x, int step) // B v
{
    const vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[step] = b - c - d, x[2 * step] = b + c - a, x[3 * step] = d;
}

INLINE void filter_axis(vec* x, int step) // G w, 3 -> 4, without the factors SCALE
{
    const vec a = x[0], b = x[step], c = x[2 * step], e = a + c;
    x[step] = e + b, x[2 * step] = e - b, x[3 * step] = c;
}

INLINE void filter_delta_axis(vec* x, int step) // G'u, 4 -> 3, without the factors SCALE
{
    const vec s = x[step] + x[2 * step], d = x[step] - x[2 * step];
    x[0] = x[0] + s, x[step] = d, x[2 * step] = s + x[3 * step];
}

#define SCALE(i) ((REAL)((i) == 0 || (i) == 3 ? 1. : 1 / 2.))

#include "winograd.h"
