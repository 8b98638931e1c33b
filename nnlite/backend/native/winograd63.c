// Winograd's F(6 x 6, 3 x 3)
#define OUT 6
#define TAPS 3
#define PAIRS {1 / 2., 1, 2}
#define NAME(function) winograd63_##function
#include "winograd.h"
