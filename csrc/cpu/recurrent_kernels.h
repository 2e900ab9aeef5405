// Kernels of the recurrent family for one SIMD level; see recurrent.cpp for panels, slots, tiles and steps.
// Included by for_each_simd_level.h, and with SIMD_BF16_PRODUCTS for machines that multiply pairs of bfloat16.

// In this order: parts have no include guards, and include nothing themselves.
// clang-format off
#include "recurrent_formulas.h"
#include "recurrent_products.h"
#include "recurrent_forward.h"
#include "recurrent_backward.h"
// clang-format on
