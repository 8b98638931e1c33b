// Pictures cut out of images: moved, mirrored and partly hidden in one sweep. Pixels have P bytes, of any dtype, and are only copied.
#include "vector.h"

#define LINE 64 // bytes of a cache line

// FRAME of backend/frames.py
typedef struct {
    int64_t image, top, left, mirrored, first_row, end_row, first_column, end_column;
} frame;

// y[k] = a[n - 1 - k] for n pixels. R bytes, at most 2 P, are copied for P: the next pixel overwrites those too many. Where no pixel
// may follow, at the end of `a` and of y, P are.
INLINE void reverse_by(const uint8_t* a, uint8_t* y, long n, long P, const long R)
{
    if (n > 0)
        memcpy(y, a + (n - 1) * P, P);
    for (long k = 1; k < n - 1; k++)
        memcpy(y + k * P, a + (n - 1 - k) * P, R);
    if (n > 1)
        memcpy(y + (n - 1) * P, a, P);
}

// y[k] = a[k], or reversed a[n - 1 - k]
INLINE void copy(const uint8_t* a, uint8_t* y, long n, long reversed, long P)
{
    if (!reversed)
        memcpy(y, a, n * P);
    else if (P == 1)
        reverse_by(a, y, n, P, 1);
    else if (P == 3)
        reverse_by(a, y, n, 3, 4); // of colours
    else if (P <= 4)
        reverse_by(a, y, n, P, 4);
    else if (P <= 8)
        reverse_by(a, y, n, P, 8);
    else if (P <= 16)
        reverse_by(a, y, n, P, 16);
    else
        reverse_by(a, y, n, P, P);
}

// y[j] = a[left + j], mirrored y[W - 1 - j]; what is not in the row is zero, or the row reflected at its first and last pixel
INLINE void cut_row(const uint8_t* a, uint8_t* y, long left, long mirrored, long reflect, long W, long P)
{
    const long first = at_least(0, -left), inside = W - first - at_least(0, left), end = first + inside, behind = W - end;
    uint8_t *before = y + (mirrored ? W - first : 0) * P, *after = y + (mirrored ? 0 : end) * P;
    copy(a + (left + first) * P, y + (mirrored ? behind : first) * P, inside, mirrored, P);
    if (reflect) {
        copy(a + P, before, first, !mirrored, P);
        copy(a + (W - 1 - behind) * P, after, behind, !mirrored, P);
    } else {
        memset(before, 0, first * P);
        memset(after, 0, behind * P);
    }
}

// y (n, H, W, P) of images of that size and n frames
KERNEL cut_frames(const uint8_t* images, const int64_t* frames, long n, long H, long W, long P, long reflect, uint8_t* y)
{
    const frame* f = (const frame*)frames;
    for (const frame* end = f + n; f < end; f++) {
        const uint8_t *a = images + f->image * H * W * P, *next = images + f[f + 1 < end].image * H * W * P;
        const long left = at_most(W, at_least(-W, f->left));
        for (long i = 0; i < H; i++, y += W * P) {
            const long at = f->top + i, row = !reflect ? at : at < 0 ? -at : at < H ? at : 2 * (H - 1) - at;
            for (long b = 0; b < W * P; b += LINE)
                __builtin_prefetch(next + i * W * P + b); // images are drawn from all over the memory
            if (row < 0 || row >= H)
                memset(y, 0, W * P);
            else
                cut_row(a + row * W * P, y, left, f->mirrored, reflect, W, P);
            if (i >= f->first_row && i < f->end_row)
                memset(y + f->first_column * P, 0, at_least(0, f->end_column - f->first_column) * P);
        }
    }
}
