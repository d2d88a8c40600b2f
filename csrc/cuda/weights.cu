// Reciprocal sets, expansion, weights and query expansion on the device; sums run in the order of the CPU stages.
#include "cuda/device_rows.h"
#include "rows.h"

namespace reid_fast::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int64_t kChunk = 1 << 16;  // rows whose expansions are drawn up at once

struct OwnedSets {
  DeviceArray<int32_t> member, size;
  int stride;

  Sets view() const { return {member.data(), size.data(), stride}; }
};

OwnedSets reciprocal_sets(const Ranking& ranking, int k, cudaStream_t stream) {
  const int stride = set_size(k, ranking.k);
  OwnedSets sets{DeviceArray<int32_t>(ranking.n * stride, stream), DeviceArray<int32_t>(ranking.n, stream), stride};
  int32_t* member = sets.member.data();
  int32_t* size = sets.size.data();
  for_each_row(ranking.n, stream, [=] __device__(int64_t i) {
    size[i] = reciprocal_set(ranking.index, ranking.k, stride, i, member + i * stride);
  });
  return sets;
}

// take(i, members, size) for the expansion of every row; called on the device.
template <class Take>
void for_each_expansion(const Sets& full, const Sets& half, int64_t n, cudaStream_t stream, Take take) {
  const int bound = expansion_bound(full, half);
  const DeviceArray<int32_t> scratch((n < kChunk ? n : kChunk) * bound, stream);
  int32_t* members = scratch.data();
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t count = n - first < kChunk ? n - first : kChunk;
    for_each_row(count, stream, [=] __device__(int64_t place) {
      Scan scan;
      int32_t* out = members + place * bound;
      take(first + place, out, expand(full, half, first + place, scan, out));
    });
  }
}

__device__ float warp_dot(const float* a, const float* b, int64_t width, int lane) {
  float sum = 0;
  for (int64_t d = lane; d < width; d += kWarp) sum += a[d] * b[d];
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

}  // namespace

Rows expansion_weights(const Features& features, const Ranking& ranking, cudaStream_t stream) {
  const OwnedSets full_sets = reciprocal_sets(ranking, ranking.k, stream);
  const OwnedSets half_sets = reciprocal_sets(ranking, half_of(ranking.k), stream);
  const Sets full = full_sets.view(), half = half_sets.view();
  DeviceArray<int64_t> lengths = zero_lengths(ranking.n, stream);
  int64_t* length = lengths.data();
  for_each_expansion(full, half, ranking.n, stream,
                     [=] __device__(int64_t i, const int32_t*, int size) { length[i + 1] = size; });
  Rows rows = allocate(std::move(lengths), stream);
  const int64_t* start = rows.start.data();
  int32_t* index = rows.index.data();
  for_each_expansion(full, half, ranking.n, stream, [=] __device__(int64_t i, const int32_t* members, int size) {
    for (int t = 0; t < size; ++t) index[start[i] + t] = members[t];
  });
  const unsigned blocks = static_cast<unsigned>((ranking.n + kWarpsPerBlock - 1) / kWarpsPerBlock);
  weigh<<<blocks, kWarpsPerBlock * kWarp, 0, stream>>>(features, ranking, start, index, rows.value.data());
  check(cudaGetLastError());
  return rows;
}

Rows query_expansion(const Rows& weights, const Ranking& ranking, int k2, cudaStream_t stream) {
  const View from(weights);
  const DeviceArray<int64_t> cursors(ranking.n * k2, stream);
  int64_t* cursor = cursors.data();
  DeviceArray<int64_t> lengths = zero_lengths(ranking.n, stream);
  int64_t* length = lengths.data();
  for_each_row(ranking.n, stream, [=] __device__(int64_t i) {
    length[i + 1] = mean_of_rows(from.start, from.index, from.value, ranking.index + i * ranking.k, k2,
                                 cursor + i * k2, nullptr, nullptr);
  });
  Rows rows = allocate(std::move(lengths), stream);
  const int64_t* start = rows.start.data();
  int32_t* index = rows.index.data();
  float* value = rows.value.data();
  for_each_row(ranking.n, stream, [=] __device__(int64_t i) {
    mean_of_rows(from.start, from.index, from.value, ranking.index + i * ranking.k, k2, cursor + i * k2,
                 index + start[i], value + start[i]);
  });
  return rows;
}

}  // namespace reid_fast::cuda
