// Winograd's F(2 x 2, 3 x 3)
#define OUT 2
#define TAPS 3
#define PAIRS {1}
#define NAME(function) winograd23_##function
#include "winograd.h"
