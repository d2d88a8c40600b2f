// Reciprocal sets, expansion, weights and query expansion on the device; sums run in the sequence of the CPU stages.
#include <algorithm>

#include "cuda/device_rows.h"
#include "rows.h"

namespace reid_fast::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

struct OwnedSets {
  DeviceArray<int32_t> member, size;
  int stride;

  OwnedSets(int64_t n, int stride, const Context& context)
      : member(n * stride, context), size(n, context), stride(stride) {}
  Sets view() const { return {member.data(), size.data(), stride}; }
};

// Shell sort, ascending: short and in place.
__device__ void sort_set(int32_t* set, int size) {
  const int gaps[] = {301, 132, 57, 23, 10, 4, 1};
  for (int gap : gaps) {
    for (int t = gap; t < size; ++t) {
      const int32_t member = set[t];
      int slot = t;
      for (; slot >= gap && set[slot - gap] > member; slot -= gap) set[slot] = set[slot - gap];
      set[slot] = member;
    }
  }
}

// take(i, members, size) for the expansion of every row; called on the device.
template <class Take>
void for_each_expansion(const Sets& full, const Sets& half, int64_t n, const Context& context, Take take) {
  const int64_t bound = expansion_bound(full, half);
  const int64_t fit = context.scratch_bytes / (bound * static_cast<int64_t>(sizeof(int32_t)));
  const int64_t chunk = std::max<int64_t>(1, std::min(fit, n));
  const DeviceArray<int32_t> scratch(chunk * bound, context);
  int32_t* members = scratch.data();
  for (int64_t first = 0; first < n; first += chunk) {
    for_each_row(std::min(chunk, n - first), context, [=] __device__(int64_t t) {
      Scan scan;
      int32_t* out = members + t * bound;
      const int size = expand(full, half, first + t, scan, out);
      sort_set(out, size);
      take(first + t, out, size);
    });
  }
}

// `dot` of the CPU: the same sixty-four partial sums, two a lane, added in the same sequence.
__device__ float warp_dot(const float* a, const float* b, int64_t width, int lane) {
  float sum = 0, upper = 0;
  for (int64_t d = lane; d < width; d += 2 * kWarp) {
    sum += a[d] * b[d];
    if (d + kWarp < width) upper += a[d + kWarp] * b[d + kWarp];
  }
  sum += upper;
  for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
  return sum;
}

// A warp per row: the cosines of its members become softmax weights.
__global__ void weigh(Features features, Ranking ranking, const int64_t* start, const int32_t* index, float* value) {
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= features.n) return;
  for (int64_t e = start[i]; e < start[i + 1]; ++e) {
    const int32_t j = index[e];
    const int there = column_of(ranking.index, ranking.k, i, j);
    const int back = there < 0 ? column_of(ranking.index, ranking.k, j, static_cast<int32_t>(i)) : -1;
    float cosine;
    if (there >= 0) {
      cosine = ranking.similarity[i * ranking.k + there];
    } else if (back >= 0) {
      cosine = ranking.similarity[int64_t{j} * ranking.k + back];
    } else {
      cosine = warp_dot(features.data + i * features.width, features.data + j * features.width, features.width, lane);
    }
    if (lane == 0) value[e] = affinity(cosine);
  }
  __syncwarp();
  float total = 0;
  for (int64_t e = start[i]; e < start[i + 1]; ++e) total += value[e];
  __syncwarp();
  for (int64_t e = start[i] + lane; e < start[i + 1]; e += kWarp) value[e] /= total;
}

// The mean of k2 sparse rows with ascending indices, merged; `cursor` is scratch [k2]. Returns the length; with
// `index` null nothing is written. Sums run in ranking order, then divide: the published code's rounding.
__device__ int mean_of_rows(const int64_t* start, const int32_t* row_index, const float* row_value, const int32_t* rows,
                            int k2, int64_t* cursor, int32_t* index, float* value) {
  constexpr int32_t kEnd = INT32_MAX;
  for (int t = 0; t < k2; ++t) cursor[t] = start[rows[t]];
  for (int length = 0;; ++length) {
    int32_t next = kEnd;
    for (int t = 0; t < k2; ++t) {
      if (cursor[t] < start[rows[t] + 1] && row_index[cursor[t]] < next) next = row_index[cursor[t]];
    }
    if (next == kEnd) return length;
    float sum = 0;
    for (int t = 0; t < k2; ++t) {
      if (cursor[t] < start[rows[t] + 1] && row_index[cursor[t]] == next) sum += row_value[cursor[t]++];
    }
    if (index) {
      index[length] = next;
      value[length] = sum / static_cast<float>(k2);
    }
  }
}

}  // namespace

Rows expansion_weights(const Features& features, const Ranking& ranking, const Context& context) {
  const OwnedSets full_sets(ranking.n, ranking.k, context);
  const OwnedSets half_sets(ranking.n, set_size(half_of(ranking.k), ranking.k), context);
  const Sets full = full_sets.view(), half = half_sets.view();
  for_each_row(ranking.n, context,
               [=] __device__(int64_t i) { reciprocal_sets(ranking.index, ranking.k, i, full, half); });
  DeviceArray<int64_t> lengths = zero_lengths(ranking.n, context);
  int64_t* length = lengths.data();
  for_each_expansion(full, half, ranking.n, context,
                     [=] __device__(int64_t i, const int32_t*, int size) { length[i + 1] = size; });
  Rows rows = allocate(std::move(lengths), context);
  const int64_t* start = rows.start.data();
  int32_t* index = rows.index.data();
  for_each_expansion(full, half, ranking.n, context, [=] __device__(int64_t i, const int32_t* members, int size) {
    for (int t = 0; t < size; ++t) index[start[i] + t] = members[t];
  });
  const int64_t blocks = (ranking.n + kWarpsPerBlock - 1) / kWarpsPerBlock;
  launch(weigh, blocks, kWarpsPerBlock * kWarp, context, features, ranking, start, index, rows.value.data());
  return rows;
}

Rows query_expansion(const Rows& weights, const Ranking& ranking, int k2, const Context& context) {
  const View from(weights);
  const DeviceArray<int64_t> cursors(ranking.n * k2, context);
  int64_t* cursor = cursors.data();
  DeviceArray<int64_t> lengths = zero_lengths(ranking.n, context);
  int64_t* length = lengths.data();
  for_each_row(ranking.n, context, [=] __device__(int64_t i) {
    length[i + 1] = mean_of_rows(from.start, from.index, from.value, ranking.index + i * ranking.k, k2, cursor + i * k2,
                                 nullptr, nullptr);
  });
  Rows rows = allocate(std::move(lengths), context);
  const int64_t* start = rows.start.data();
  int32_t* index = rows.index.data();
  float* value = rows.value.data();
  for_each_row(ranking.n, context, [=] __device__(int64_t i) {
    mean_of_rows(from.start, from.index, from.value, ranking.index + i * ranking.k, k2, cursor + i * k2,
                 index + start[i], value + start[i]);
  });
  return rows;
}

}  // namespace reid_fast::cuda
