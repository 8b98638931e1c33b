// Winograd's F(7 x 7, 3 x 3)
#define OUT 7
#define TAPS 3
#define PAIRS {1 / 4., 11 / 16., 9 / 8., 9 / 4.}
#define NAME(function) winograd73_##function
#include "winograd.h"
