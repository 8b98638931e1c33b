// Winograd's F(4 x 4, 3 x 3): evaluation at 0, 1, -1, 2, -2 and infinity.
#define OUT 4
#define TAPS 3
#define NAME(function) winograd43_##function
#include "points.h"

#define output_axis from_points_4
#define delta_axis to_points_4
#define filter_axis to_points_3
#define filter_delta_axis from_points_3

#include "winograd.h"
