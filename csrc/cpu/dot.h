// The fp32 dot product that defines a similarity, in vector variants chosen at run time.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(REID_NO_VARIANTS)
#define REID_VECTOR_VARIANTS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REID_VECTOR_VARIANTS
#endif

namespace reid_fast {

// Σ_d a_d b_d in sixty-four partial sums, then pairwise: rounding error at most (width / 64 + 7) · 2^-24 · |a||b|.
float dot(const float* a, const float* b, int64_t width);

}  // namespace reid_fast
