// Winograd's F(3 x 3, 4 x 4), at the points of F(4 x 4, 3 x 3).
#define OUT 3
#define TAPS 4
#define NAME(function) winograd34_##function
#include "points.h"

#define output_axis from_points_3
#define delta_axis to_points_3
#define filter_axis to_points_4
#define filter_delta_axis from_points_4

#include "winograd.h"
