#include "cpu/dot.h"

namespace reid_fast {

REID_VECTOR_VARIANTS float dot(const float* a, const float* b, int64_t width) {
  constexpr int kLanes = 64;
  float sum[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] += a[d + lane] * b[d + lane];
  }
  for (int lane = 0; d < width; ++d, ++lane) sum[lane] += a[d] * b[d];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
  }
  return sum[0];
}

}  // namespace reid_fast
