// Normalisation of channels:  y = (a - mean) scale + shift, and with ReLU max(y, 0)
#pragma once
#include "vector.h"

typedef struct {
    const REAL *mean, *scale, *shift; // of each channel; all NULL: y = a
} Norm;

INLINE Norm from_channel(Norm by, long c) { return by.scale ? (Norm){by.mean + c, by.scale + c, by.shift + c} : (Norm){by.mean + c, 0, 0}; }

// Up to LANES channels from c on, of which `left` are left
INLINE vec normalized(vec a, Norm by, long c, long left)
{
    return fused(a - load_up_to(by.mean + c, left), load_up_to(by.scale + c, left), load_up_to(by.shift + c, left));
}

// max( , 0) of the normalised `pixels` pixels, with zeros behind, `width` values in all
INLINE void rectify_pixels(const REAL* from, long C, REAL* to, long width, long pixels, Norm by)
{
    for (long i = 0; i < pixels; i++, from += C, to += width)
        for (long c = 0; c < width; c += LANES)
            store_up_to(to + c, relu(normalized(load_up_to(from + c, C - c), by, c, C - c)), width - c);
}
