// Winograd's F(5 x 5, 3 x 3)
#define OUT 5
#define TAPS 3
#define PAIRS {5 / 16., 7 / 8., 7 / 4.}
#define NAME(function) winograd53_##function
#include "winograd.h"
