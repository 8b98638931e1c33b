// Pooling, forward and backward: each result gathers from the places that it depends on, which tables list for each axis.
//
// A table has the ends of its lists, where list i begins at table[i] and ends before table[i + 1], and then the lists: pairs of
// an offset in the image that is read, in pixels, and the number of a tap. For results at (i, j) the places are all pairs of list i of the
// rows and list j of the columns. Images have the shape (images, height, width, C).
//
// Channels that do not fill a vector are read and written with what follows them in the array: the results come in the order of
// memory, so that those of the next pixel replace it. At the end of an array a part of a vector is read or written.
#include "vector.h"

#define TERMS 32 // added one after another; more are added in two halves

#define EACH(list, table, i) for (const int64_t *list = table + table[i], *end_of_##list = table + table[i + 1]; list < end_of_##list; list += 2)

// For each result of each image, its image n, its place (i, j) and its first value
#define EACH_RESULT(images, height, width, C)                                                                                      \
    for (long n = 0, value = 0; n < images; n++)                                                                       \
        for (long i = 0; i < height; i++)                                                                                          \
            for (long j = 0; j < width; j++, value += C)

// Q vectors of y = the largest of a window, and the number of its tap: the first of equal values, the first NaN if there is one
INLINE void largest(const int Q, const REAL* a, long C, long left, const int64_t* rows, long i, const int64_t* columns, long j, REAL* y,
                    REAL* winner, long room)
{
    vec best[2];
    ivec number[2];
    UNROLL for (int q = 0; q < Q; q++)
    {
        best[q] = splat(-__builtin_inff());
        number[q] = (ivec){0} + (INT)(rows[rows[i] + 1] + columns[columns[j] + 1]);
    }
    EACH(r, rows, i)
    EACH(s, columns, j)
    {
        const INT tap = r[1] + s[1];
        UNROLL for (int q = 0; q < Q; q++)
        {
            const long place = (r[0] + s[0]) * C + q * LANES;
            const vec x = load_up_to(a + place, left - place);
            const ivec larger = ~(x <= best[q]) & (best[q] == best[q]); // NaN is larger than all numbers
            best[q] = choose(larger, x, best[q]);
            number[q] = (larger & tap) | (~larger & number[q]);
        }
    }
    UNROLL for (int q = 0; q < Q; q++)
    {
        store_up_to(y + q * LANES, best[q], room - q * LANES);
        if (winner)
            store_up_to(winner + q * LANES, (vec)number[q], room - q * LANES);
    }
}

// winner, which may be null: whole numbers as wide as REAL, which are only moved
KERNEL max_pool(const REAL* a, long image, long images, long C, const int64_t* rows, long height, const int64_t* columns, long width,
                REAL* y, REAL* winner)
{
    const long all = images * image, results = images * height * width * C;
    EACH_RESULT(images, height, width, C)
    {
        long from = n * image, to = value, c = C;
        for (; c >= 2 * LANES; c -= 2 * LANES, from += 2 * LANES, to += 2 * LANES)
            largest(2, a + from, C, all - from, rows, i, columns, j, y + to, winner ? winner + to : winner, results - to);
        for (; c > 0; c -= LANES, from += LANES, to += LANES)
            largest(1, a + from, C, all - from, rows, i, columns, j, y + to, winner ? winner + to : winner, results - to);
    }
}

// da = the sum of the deltas of the windows that this pixel won
KERNEL max_pool_delta(const REAL* delta, const REAL* winner, long image, long images, long C, const int64_t* rows, long height,
                      const int64_t* columns, long width, REAL* da)
{
    const long all = images * image, results = images * height * width * C;
    EACH_RESULT(images, height, width, C)
    for (long c = 0; c < C; c += LANES) {
        vec sum = {0};
        EACH(r, rows, i)
        EACH(s, columns, j)
        {
            const long place = n * image + (r[0] + s[0]) * C + c;
            const ivec won = (ivec)load_up_to(winner + place, all - place) == (INT)(r[1] + s[1]);
            sum += choose(won, load_up_to(delta + place, all - place), (vec){0});
        }
        store_up_to(da + value + c, sum, results - value - c);
    }
}

// The sum over the places of m pairs of rows and n of columns, one after another
INLINE vec sum_in_order(const REAL* a, long C, long left, const int64_t* r, long m, const int64_t* s, long n)
{
    vec sum = {0};
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j++) {
            const long place = (r[2 * i] + s[2 * j]) * C;
            sum += load_up_to(a + place, left - place);
        }
    return sum;
}

static vec sum_in_halves(const REAL* a, long C, long left, const int64_t* r, long m, const int64_t* s, long n)
{
    if (m * n <= TERMS)
        return sum_in_order(a, C, left, r, m, s, n);
    if (m > 1)
        return sum_in_halves(a, C, left, r, m / 2, s, n) + sum_in_halves(a, C, left, r + m / 2 * 2, m - m / 2, s, n);
    return sum_in_halves(a, C, left, r, 1, s, n / 2) + sum_in_halves(a, C, left, r, 1, s + n / 2 * 2, n - n / 2);
}

// y = the sum over all places, and unless `counts` is null over counts (height, width): the mean of a window, or, from deltas over
// their counts, the delta of a pixel
KERNEL sum_pool(const REAL* a, long image, long images, long C, const int64_t* rows, long height, const int64_t* columns, long width,
                const double* counts, REAL* y)
{
    const long all = images * image, results = images * height * width * C;
    EACH_RESULT(images, height, width, C)
    for (long c = 0; c < C; c += LANES) {
        const int64_t *r = rows + rows[i], *s = columns + columns[j];
        const long m = (rows[i + 1] - rows[i]) / 2, k = (columns[j + 1] - columns[j]) / 2, from = n * image + c;
        vec sum = m * k <= TERMS ? sum_in_order(a + from, C, all - from, r, m, s, k) : sum_in_halves(a + from, C, all - from, r, m, s, k);
        if (counts)
            sum /= splat(counts[i * width + j]);
        store_up_to(y + value + c, sum, results - value - c);
    }
}
