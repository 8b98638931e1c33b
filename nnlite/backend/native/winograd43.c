// Winograd's F(4 x 4, 3 x 3)
#define OUT 4
#define TAPS 3
#define PAIRS {5 / 8., 3 / 2.}
#define NAME(function) winograd43_##function
#include "winograd.h"
