// Sparse rows on the device, and the stages that make and take them.
#pragma once

#include "cuda/device.h"
#include "stages.h"

namespace reid_fast::cuda {

struct Rows {
  DeviceArray<int64_t> start;  // [N + 1]
  DeviceArray<int32_t> index;
  DeviceArray<float> value;
};

// What a kernel sees of `Rows`.
struct View {
  const int64_t* start;
  const int32_t* index;
  const float* value;

  explicit View(const Rows& rows) : start(rows.start.data()), index(rows.index.data()), value(rows.value.data()) {}
};

inline DeviceArray<int64_t> zero_lengths(int64_t n, const Context& context) {
  DeviceArray<int64_t> start(n + 1, context);
  start.clear();
  return start;
}

// Turns the lengths of rows i, at start[i + 1] behind a zero, into offsets and makes room for the entries.
inline Rows allocate(DeviceArray<int64_t> start, const Context& context) {
  inclusive_sum(start, context);
  const int64_t entries = start.at(start.size() - 1);
  return {std::move(start), DeviceArray<int32_t>(entries, context), DeviceArray<float>(entries, context)};
}

// Steps 2 to 5. V: reciprocal sets, expanded, with softmax weights.
Rows expansion_weights(const Features& features, const Ranking& ranking, const Context& context);

// Step 6. W_i: the mean of the rows V_j over the first k2 of ranking i.
Rows query_expansion(const Rows& weights, const Ranking& ranking, int k2, const Context& context);

}  // namespace reid_fast::cuda
