// The thresholded graph on the device. Every sum runs in the order of the CPU stages and there are no float atomics, so
// two runs give the same bits.
#include <algorithm>

#include "cuda/device_rows.h"
#include "rows.h"

namespace reid_fast::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

// Column g: the rows that hold g, in whatever order they come; nothing below depends on it.
Rows inverted(const Rows& rows, int64_t n, const Context& context) {
  const View from(rows);
  DeviceArray<int64_t> lengths = zero_lengths(n, context);
  auto* length = reinterpret_cast<unsigned long long*>(lengths.data());
  for_each_row(rows.index.size(), context, [=] __device__(int64_t e) { atomicAdd(length + from.index[e] + 1, 1ull); });
  Rows columns = allocate(std::move(lengths), context);
  DeviceArray<int64_t> slots = zero_lengths(n, context);
  auto* slot = reinterpret_cast<unsigned long long*>(slots.data());
  const int64_t* start = columns.start.data();
  int32_t* index = columns.index.data();
  float* value = columns.value.data();
  for_each_row(n, context, [=] __device__(int64_t i) {
    for (int64_t e = from.start[i]; e < from.start[i + 1]; ++e) {
      const int32_t g = from.index[e];
      const int64_t to = start[g] + static_cast<int64_t>(atomicAdd(slot + g, 1ull));
      index[to] = static_cast<int32_t>(i);
      value[to] = from.value[e];
    }
  });
  return columns;
}

// A warp per row in flight, each with a dense row of sums that is all zero between rows. A column names a row once, so
// its entries are added side by side; columns follow one another, so each sum runs in ascending g. With `index` null
// the near rows are counted into length[i + 1], otherwise written from start[i] on.
__global__ void near_rows(View rows, View columns, int64_t n, float max_distance, float* all_sums, int32_t* all_touched,
                          int64_t* length, const int64_t* start, int32_t* index, float* value) {
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const unsigned lower_lanes = (1u << lane) - 1;
  float* sums = all_sums + warp * n;
  int32_t* touched = all_touched + warp * n;

  for (int64_t i = warp; i < n; i += warps) {
    int64_t count = 0;
    for (int64_t e = rows.start[i]; e < rows.start[i + 1]; ++e) {
      const int32_t g = rows.index[e];
      const float weight = rows.value[e];
      const int64_t end = columns.start[g + 1];
      for (int64_t c = columns.start[g]; c < end; c += kWarp) {
        const int32_t j = c + lane < end ? columns.index[c + lane] : static_cast<int32_t>(i);
        bool fresh = false;
        if (j != i) {
          const float sum = sums[j];
          fresh = sum == 0;
          sums[j] = sum + fminf(weight, columns.value[c + lane]);
        }
        const unsigned vote = __ballot_sync(kAllLanes, fresh);
        if (fresh) touched[count + __popc(vote & lower_lanes)] = j;
        count += __popc(vote);
      }
      __syncwarp();
    }
    int64_t found = 1;
    if (index && lane == 0) {
      index[start[i]] = static_cast<int32_t>(i);
      value[start[i]] = 0;
    }
    for (int64_t t = 0; t < count; t += kWarp) {
      const int32_t j = t + lane < count ? touched[t + lane] : -1;
      const float distance = j >= 0 ? jaccard_of(sums[j]) : 2;
      const bool near = distance <= max_distance;
      if (j >= 0) sums[j] = 0;
      const unsigned vote = __ballot_sync(kAllLanes, near);
      if (index && near) {
        const int64_t to = start[i] + found + __popc(vote & lower_lanes);
        index[to] = j;
        value[to] = distance;
      }
      found += __popc(vote);
    }
    if (!index && lane == 0) length[i + 1] = found;
    __syncwarp();
  }
}

// Rows in flight: as many as their dense sums may take memory, as there are, and as a large device holds.
int64_t blocks_in_flight(int64_t n, int64_t scratch_bytes) {
  constexpr int64_t kMost = 1024;
  const int64_t per_block = kWarpsPerBlock * n * static_cast<int64_t>(sizeof(float) + sizeof(int32_t));
  const int64_t needed = (n + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return std::max<int64_t>(1, std::min({scratch_bytes / per_block, needed, kMost}));
}

Rows threshold_graph(const Rows& weights, int64_t n, float max_distance, const Context& context) {
  const Rows columns = inverted(weights, n, context);
  const int64_t blocks = blocks_in_flight(n, context.scratch_bytes);
  DeviceArray<float> sums(blocks * kWarpsPerBlock * n, context);
  const DeviceArray<int32_t> touched(blocks * kWarpsPerBlock * n, context);
  sums.clear();
  auto run = [&](int64_t* length, const int64_t* start, int32_t* index, float* value) {
    launch(near_rows, blocks, kWarpsPerBlock * kWarp, context, View(weights), View(columns), n, max_distance,
           sums.data(), touched.data(), length, start, index, value);
  };
  DeviceArray<int64_t> lengths = zero_lengths(n, context);
  run(lengths.data(), nullptr, nullptr, nullptr);
  Rows graph = allocate(std::move(lengths), context);
  run(nullptr, graph.start.data(), graph.index.data(), graph.value.data());
  sort_rows(graph.start, graph.index, graph.value, context);
  return graph;
}

}  // namespace

DeviceGraph jaccard_graph(const Features& features, const Ranking& ranking, int k2, float max_distance,
                          const Context& context) {
  Rows weights = expansion_weights(features, ranking, context);
  if (k2 > 1) weights = query_expansion(weights, ranking, k2, context);
  const Rows graph = threshold_graph(weights, features.n, max_distance, context);
  return {graph.start.memory(), graph.index.memory(), graph.value.memory()};
}

}  // namespace reid_fast::cuda
