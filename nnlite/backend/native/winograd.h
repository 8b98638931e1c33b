// Convolution r x r of stride 1 by Winograd's F(m x m, r x r), with m = OUT, r = TAPS, IN = m + r - 1 and POINTS = IN IN:
//
//     image -> V = B'd B of each tile -> M_k = V_k U_k, k < POINTS -> z = A'M A        (Lavin and Gray 2015, equations 8 to 12)
//     delta -> D = A delta A' -> dU_k = D_k' V_k, and da = B (D_k U_k') B' with overlapping tiles added
//
// A block of rows of tiles stays in L2. Tails are copies: a row of tiles is read from (written to) a strip in scratch, with zeros
// outside the image and channels rounded up to PAD, wherever the image itself does not have all of that.
#include "norm.h"
#include "points.h"
#define FETCHES
#include "product.h"

#define POINTS (IN * IN)
#define BLOCK 131072 // values of a block of V and M: half of an L2 of 1 MiB

typedef struct {
    long H, W, C, F, top, left, h, w; // images, their padding, outputs
    long tiles_y, tiles_x, channels, filters; // the last two: C and F rounded up
    long rows; // of tiles in a block
    long plane_v, plane, plane_u, plane_t; // values of V of a point, then M; from one point to the next in both, U and its transpose
} Shape;

static Shape shape_of(long H, long W, long C, long F, long top, long left, long h, long w)
{
    Shape s = {H, W, C, F, top, left, h, w, (h + OUT - 1) / OUT, (w + OUT - 1) / OUT, padded(C), padded(F), 0, 0, 0, 0, 0};
    // As many tiles as fit, but enough that reading U, once a block, takes no longer than V and M.
    const long both = s.channels + s.filters, tiles = at_least(BLOCK / (POINTS * both), s.channels * s.filters / (2 * both));
    s.rows = at_least(1, tiles / s.tiles_x);
    // + PAD: planes a multiple of 4 KiB apart meet in one set of L1.
    s.plane_v = s.rows * s.tiles_x * s.channels + PAD, s.plane = s.plane_v + s.rows * s.tiles_x * s.filters + PAD;
    s.plane_u = C * s.filters + PAD, s.plane_t = F * s.channels + PAD;
    return s;
}

// Values of scratch: V, M and a strip.
INLINE long scratch_size(const Shape* s)
{
    return POINTS * s->plane + IN * (OUT * s->tiles_x + TAPS - 1) * at_least(s->channels, s->filters);
}

// ---- both axes of each transform

// From a square of `from` values a side to one of `to`, both in rows of IN; `axis` and what it is given besides. Code of many lines
// would not stay in the cache.
#if IN > 6
#define AXES AS_ONE
#else
#define AXES UNROLL
#endif
#define BOTH(t, from, to, axis, ...)                                                                                    \
    AXES for (int i = 0; i < from; i++) axis(t + IN * i, 1, ##__VA_ARGS__);                                             \
    AXES for (int i = 0; i < to; i++) axis(t + i, IN, ##__VA_ARGS__);
#define EACH(n) UNROLL for (int y = 0; y < n; y++) UNROLL for (int x = 0; x < n; x++)

// A tile of pixels to the points, or back. row, pixel, plane: strides
INLINE void tile_to_points(const REAL* a, long row, long pixel, REAL* V, long plane)
{
    vec t[POINTS];
    EACH(IN) t[IN * y + x] = load(a + y * row + x * pixel);
    BOTH(t, IN, IN, input_axis)
    EACH(IN) store(V + (IN * y + x) * plane, t[IN * y + x]);
}

INLINE void tile_from_points(const REAL* M, long plane, REAL* z, long row, long pixel)
{
    vec t[POINTS];
    EACH(IN) t[IN * y + x] = load(M + (IN * y + x) * plane);
    BOTH(t, IN, OUT, from_points, OUT)
    EACH(OUT) store(z + y * row + x * pixel, t[IN * y + x]);
}

INLINE void delta_to_points(const REAL* delta, long row, long pixel, REAL* M, long plane)
{
    vec t[POINTS];
    EACH(OUT) t[IN * y + x] = load(delta + y * row + x * pixel);
    BOTH(t, OUT, IN, to_points, OUT)
    EACH(IN) store(M + (IN * y + x) * plane, t[IN * y + x]);
}

INLINE void add_delta_from_points(const REAL* V, long plane, REAL* a, long row, long pixel)
{
    vec t[POINTS];
    EACH(IN) t[IN * y + x] = load(V + (IN * y + x) * plane);
    BOTH(t, IN, IN, input_delta_axis)
    EACH(IN) store(a + y * row + x * pixel, load(a + y * row + x * pixel) + t[IN * y + x]);
}

// ---- rows of tiles

// Whether `rows` rows of `columns` pixels from (y, x) are inside an image of whole vectors: then nothing needs a copy.
INLINE int is_inside(long y, long x, long rows, long columns, long H, long W, long C)
{
    return y >= 0 && y + rows <= H && x >= 0 && x + columns <= W && C % PAD == 0;
}

// The pixels of a strip that are inside the image: `skipped` before them, then `width`.
INLINE long inside_of(long x, long columns, long W, long* skipped)
{
    *skipped = at_most(at_least(-x, 0), columns);
    return at_least(0, at_most(W - x, columns) - *skipped);
}

// `pixels` pixels, each rounded up to padded(C) values
INLINE void copy_pixels(const REAL* from, long C, REAL* to, long pixels, Norm by)
{
    const long channels = padded(C);
    if (by.scale)
        rectify_pixels(from, C, to, channels, pixels, by);
    else if (C == channels)
        memcpy(to, from, pixels * C * sizeof(REAL));
    else
        pad_columns(from, C, to, pixels, C);
}

// Those pixels, in the image or copied to `strip`, where they are normalised and rectified `by`; *row: the values of a row.
static const REAL* read_strip(const REAL* image, long H, long W, long C, long y, long x, long rows, long columns, Norm by, REAL* strip,
                              long* row)
{
    if (!by.scale && is_inside(y, x, rows, columns, H, W, C)) {
        *row = W * C;
        return image + (y * W + x) * C;
    }
    const long channels = padded(C);
    long skipped;
    const long width = inside_of(x, columns, W, &skipped);
    *row = columns * channels;
    for (long r = 0; r < rows; r++) {
        REAL* to = strip + r * *row;
        if (y + r < 0 || y + r >= H || width == 0) {
            memset(to, 0, *row * sizeof(REAL));
            continue;
        }
        memset(to, 0, skipped * channels * sizeof(REAL));
        copy_pixels(image + ((y + r) * W + x + skipped) * C, C, to + skipped * channels, width, by);
        memset(to + (skipped + width) * channels, 0, (columns - skipped - width) * channels * sizeof(REAL));
    }
    return strip;
}

// Add a strip to the image where it has such pixels, or write it there.
static void write_strip(const REAL* strip, REAL* image, long H, long W, long C, long y, long x, long rows, long columns, int add)
{
    const long channels = padded(C);
    long skipped;
    const long width = inside_of(x, columns, W, &skipped);
    for (long r = at_least(0, -y); r < at_most(rows, H - y); r++) {
        const REAL* from = strip + (r * columns + skipped) * channels;
        REAL* to = image + ((y + r) * W + x + skipped) * C;
        for (long i = 0; i < width; i++, from += channels, to += C)
            if (add)
                for (long c = 0; c < C; c++)
                    to[c] += from[c];
            else
                memcpy(to, from, C * sizeof(REAL));
    }
}

// V of `count` rows of tiles from row `first` of all images
static void points_of_rows(const REAL* a, Norm by, REAL* V, REAL* strip, const Shape* s, long first, long count)
{
    for (long i = 0; i < count; i++) {
        const long n = (first + i) / s->tiles_y, y = OUT * ((first + i) % s->tiles_y);
        long row;
        const REAL* p = read_strip(a + n * s->H * s->W * s->C, s->H, s->W, s->C, y - s->top, -s->left, IN, OUT * s->tiles_x + TAPS - 1, by, strip, &row);
        for (long x = 0; x < s->tiles_x; x++)
            for (long c = 0; c < s->channels; c += LANES)
                tile_to_points(p + OUT * x * s->channels + c, row, s->channels, V + (i * s->tiles_x + x) * s->channels + c, s->plane);
    }
}

// Bias and ReLU of `rows` rows of `columns` pixels
static void finish(REAL* z, long row, long rows, long columns, long F, const REAL* bias, long rectify)
{
    if (!bias && !rectify)
        return;
    for (long y = 0; y < rows; y++)
        for (long x = 0; x < columns; x++)
            for (long f = 0; f < F; f += LANES) {
                REAL* p = z + y * row + x * F + f;
                const vec v = bias ? load(p) + load(bias + f) : load(p);
                store(p, rectify ? relu(v) : v);
            }
}

// ---- what plans call

// Values of scratch that a call needs, in `size`.
KERNEL NAME(scratch)(long H, long W, long C, long F, long top, long left, long h, long w, int64_t* size)
{
    const Shape s = shape_of(H, W, C, F, top, left, h, w);
    *size = scratch_size(&s);
}

// A vector of filters to the points
INLINE void filter_to_points(vec* t, REAL* to, long plane)
{
    BOTH(t, TAPS, IN, to_points, TAPS)
    EACH(IN) store(to + (IN * y + x) * plane, t[IN * y + x] * (scale(y) * scale(x)));
}

// Filters W (F, TAPS, TAPS, C) to U: POINTS planes (C, padded(F)) for forward, and UT: (F, padded(C)) for backward, PAD values between.
KERNEL NAME(filters)(const REAL* W, REAL* U, REAL* UT, long C, long F)
{
    const long channels = padded(C), filters = padded(F), taps = TAPS * TAPS, plane = C * filters + PAD;
    vec t[POINTS];
    for (long f = 0; f < F; f++)
        for (long c = 0; c < channels; c += LANES) {
            EACH(TAPS) t[IN * y + x] = c < C ? load_some(W + ((f * TAPS + y) * TAPS + x) * C + c, C - c, 0) : (vec){0};
            filter_to_points(t, UT + f * channels + c, F * channels + PAD);
        }
    // U from the transposed filters, which wait in its last planes: fewer planes to transpose than its own
    REAL* last = U + (POINTS - taps) * plane;
    for (long k = 0; k < taps; k++)
        transpose(W + k * C, taps * C, 1, F, C, last + k * plane, filters);
    for (long i = 0; i < C * filters; i += LANES) {
        EACH(TAPS) t[IN * y + x] = load(last + (TAPS * y + x) * plane + i);
        filter_to_points(t, U + i, plane);
    }
}

// z = W * a + bias, and with `rectify` max(z, 0), of `images` images; bias has padded(F) values; with mean, scale and shift, a is
// max( , 0) of its normalisation by these
KERNEL NAME(forward)(const REAL* a, const REAL* mean, const REAL* scale, const REAL* shift, const REAL* U, const REAL* bias, long rectify, REAL* z, REAL* scratch, long images, long H, long W,
                     long C, long F, long top, long left, long h, long w)
{
    const Shape s = shape_of(H, W, C, F, top, left, h, w);
    const Norm by = {mean, scale, shift};
    REAL *V = scratch, *M = V + s.plane_v, *strip = V + POINTS * s.plane;
    for (long first = 0; first < images * s.tiles_y; first += s.rows) {
        const long count = at_most(s.rows, images * s.tiles_y - first), tiles = count * s.tiles_x;
        points_of_rows(a, by, V, strip, &s, first, count);
        for (long k = 0; k < POINTS; k++) {
            Soon next[] = {soon(V + (k + 1) * s.plane, s.plane), soon(U + (k + 1) * s.plane_u, s.plane_u)};
            Factors f = plain(V + k * s.plane, s.channels, 1, U + k * s.plane_u, s.filters, C);
            f.soon = next;
            product(&f, M + k * s.plane, s.filters, tiles, s.filters, 0);
        }
        for (long i = 0; i < count; i++) {
            const long n = (first + i) / s.tiles_y, y = OUT * ((first + i) % s.tiles_y);
            REAL* image = z + n * h * w * F;
            const int whole = is_inside(y, 0, OUT, OUT * s.tiles_x, h, w, F);
            REAL* to = whole ? image + y * w * F : strip;
            const long row = whole ? w * F : OUT * s.tiles_x * s.filters;
            for (long x = 0; x < s.tiles_x; x++)
                for (long c = 0; c < s.filters; c += LANES)
                    tile_from_points(M + (i * s.tiles_x + x) * s.filters + c, s.plane, to + OUT * x * s.filters + c, row, s.filters);
            finish(to, row, OUT, OUT * s.tiles_x, s.filters, bias, rectify);
            if (!whole)
                write_strip(strip, image, h, w, F, y, 0, OUT, OUT * s.tiles_x, 0);
        }
    }
}

// From the delta of the outputs: dU, POINTS planes (F, padded(C)), zeros before, is added to, and da, of a as it is read, is set;
// each may be NULL.
KERNEL NAME(backward)(const REAL* delta, const REAL* a, const REAL* mean, const REAL* scale, const REAL* shift, const REAL* UT, REAL* dU, REAL* da, REAL* scratch, long images, long H, long W,
                      long C, long F, long top, long left, long h, long w)
{
    const Shape s = shape_of(H, W, C, F, top, left, h, w);
    const Norm by = {mean, scale, shift};
    REAL *V = scratch, *M = V + s.plane_v, *strip = V + POINTS * s.plane;
    const long columns = OUT * s.tiles_x + TAPS - 1;
    for (long first = 0; first < images * s.tiles_y; first += s.rows) {
        const long count = at_most(s.rows, images * s.tiles_y - first), tiles = count * s.tiles_x;
        if (dU)
            points_of_rows(a, by, V, strip, &s, first, count);
        for (long i = 0; i < count; i++) {
            const long n = (first + i) / s.tiles_y, y = OUT * ((first + i) % s.tiles_y);
            long row;
            const REAL* d = read_strip(delta + n * h * w * F, h, w, F, y, 0, OUT, OUT * s.tiles_x, (Norm){0}, strip, &row);
            for (long x = 0; x < s.tiles_x; x++)
                for (long f = 0; f < s.filters; f += LANES)
                    delta_to_points(d + OUT * x * s.filters + f, row, s.filters, M + (i * s.tiles_x + x) * s.filters + f, s.plane);
        }
        for (long k = 0; k < POINTS; k++) {
            REAL *v = V + k * s.plane, *m = M + k * s.plane;
            if (dU) {
                Soon next[] = {da ? soon(UT + k * s.plane_t, s.plane_t) : nothing(v), soon(v + s.plane, s.plane)};
                Factors f = plain(m, 1, s.filters, v, s.channels, tiles);
                f.soon = next;
                product(&f, dU + k * s.plane_t, s.channels, F, s.channels, 1);
            }
            if (da) {
                Soon next[] = {soon(v + s.plane, s.plane), dU ? soon(dU + (k + 1) * s.plane_t, s.plane_t) : nothing(v)};
                Factors f = plain(m, s.filters, 1, UT + k * s.plane_t, s.channels, F);
                f.soon = next;
                product(&f, v, s.channels, tiles, s.channels, 0);
            }
        }
        for (long i = 0; da && i < count; i++) {
            const long n = (first + i) / s.tiles_y, y = OUT * ((first + i) % s.tiles_y);
            if (y == 0) // not before, so that it is still in the cache
                memset(da + n * H * W * C, 0, H * W * C * sizeof(REAL));
            memset(strip, 0, IN * columns * s.channels * sizeof(REAL));
            for (long x = 0; x < s.tiles_x; x++)
                for (long c = 0; c < s.channels; c += LANES)
                    add_delta_from_points(V + (i * s.tiles_x + x) * s.channels + c, s.plane, strip + OUT * x * s.channels + c,
                                          columns * s.channels, s.channels);
            write_strip(strip, da + n * H * W * C, H, W, C, y - top, -left, IN, columns, 1);
        }
    }
}

// dU to dW (F, TAPS, TAPS, C)
KERNEL NAME(filter_gradient)(const REAL* dU, REAL* dW, long C, long F)
{
    const long channels = padded(C), plane = F * channels + PAD;
    vec t[POINTS];
    for (long f = 0; f < F; f++)
        for (long c = 0; c < C; c += LANES) {
            EACH(IN) t[IN * y + x] = load(dU + (IN * y + x) * plane + f * channels + c) * (scale(y) * scale(x));
            BOTH(t, IN, TAPS, from_points, TAPS)
            EACH(TAPS) store_some(dW + ((f * TAPS + y) * TAPS + x) * C + c, t[IN * y + x], C - c);
        }
}
