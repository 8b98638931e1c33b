// Winograd's F(3 x 3, 4 x 4)
#define OUT 3
#define TAPS 4
#define PAIRS {5 / 8., 3 / 2.}
#define NAME(function) winograd34_##function
#include "winograd.h"
