// Images laid out anew: pixels that lie `step` apart side by side, in samples and channels of their own. Tables say where: for each
// of `phases` samples, `size` places along an axis and `groups` of channels the row (column) of the image, or -1 for zeros.
#include "vector.h"

typedef struct {
    const int64_t* at;
    long phases, size, groups;
} Axis;

// Copy to `folded` (images, phases, phases, size, size, groups, groups, C), or add it to the image where `back`
INLINE void move(REAL* image, REAL* folded, long images, long H, long W, long C, const Axis rows, const Axis columns, int back)
{
    for (long n = 0; n < images; n++, image += H * W * C)
        for (long p = 0; p < rows.phases; p++)
            for (long q = 0; q < columns.phases; q++)
                for (long y = 0; y < rows.size; y++)
                    for (long x = 0; x < columns.size; x++)
                        for (long i = 0; i < rows.groups; i++)
                            for (long j = 0; j < columns.groups; j++, folded += C) {
                                const long row = rows.at[(p * rows.size + y) * rows.groups + i];
                                const long column = columns.at[(q * columns.size + x) * columns.groups + j];
                                REAL* pixel = image + (row * W + column) * C;
                                if (row < 0 || column < 0) {
                                    if (!back)
                                        memset(folded, 0, C * sizeof(REAL));
                                    continue;
                                }
                                for (long c = 0; c < C; c += LANES) {
                                    const vec values = load_up_to((back ? folded : pixel) + c, C - c);
                                    if (back)
                                        store_up_to(pixel + c, load_up_to(pixel + c, C - c) + values, C - c);
                                    else
                                        store_up_to(folded + c, values, C - c);
                                }
                            }
}

KERNEL fold(const REAL* image, REAL* folded, long images, long H, long W, long C, const int64_t* at_row, long row_phases, long height,
            long row_groups, const int64_t* at_column, long column_phases, long width, long column_groups)
{
    const Axis rows = {at_row, row_phases, height, row_groups}, columns = {at_column, column_phases, width, column_groups};
    move((REAL*)image, folded, images, H, W, C, rows, columns, 0);
}

// The adjoint: each pixel is the sum of its copies, in their order
KERNEL unfold(const REAL* folded, REAL* image, long images, long H, long W, long C, const int64_t* at_row, long row_phases, long height,
              long row_groups, const int64_t* at_column, long column_phases, long width, long column_groups)
{
    const Axis rows = {at_row, row_phases, height, row_groups}, columns = {at_column, column_phases, width, column_groups};
    memset(image, 0, images * H * W * C * sizeof(REAL));
    move(image, (REAL*)folded, images, H, W, C, rows, columns, 1);
}
