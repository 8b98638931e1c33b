// Winograd's F(3 x 3, 3 x 3)
#define OUT 3
#define TAPS 3
#define PAIRS {3 / 8., 5 / 4.}
#define NAME(function) winograd33_##function
#include "winograd.h"
