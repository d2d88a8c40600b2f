// What the programs that drive the C++ stages share.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "stages.h"

namespace reid_fast {

const Run kThree{3, [](int64_t, int64_t) { return false; }};

// Rows of which only `distinct` differ.
inline std::vector<float> normalised_rows(int64_t n, int64_t width, int64_t distinct) {
  std::vector<float> rows(n * width);
  for (int64_t i = 0; i < n; ++i) {
    double norm = 0;
    for (int64_t d = 0; d < width; ++d) {
      rows[i * width + d] = static_cast<float>(std::sin(1.7 * (i % distinct) + 0.9 * d + 0.31 * (i % distinct) * d));
      norm += rows[i * width + d] * rows[i * width + d];
    }
    for (int64_t d = 0; d < width; ++d) rows[i * width + d] /= static_cast<float>(std::sqrt(norm) + 1e-12);
  }
  return rows;
}

// Structure and bits of the values.
inline bool equal(const Csr& a, const Csr& b) {
  return a.start.size == b.start.size && a.index.size == b.index.size &&
         !std::memcmp(a.start.begin(), b.start.begin(), a.start.size * sizeof(int64_t)) &&
         !std::memcmp(a.index.begin(), b.index.begin(), a.index.size * sizeof(int32_t)) &&
         !std::memcmp(a.value.begin(), b.value.begin(), a.value.size * sizeof(float));
}

}  // namespace reid_fast
