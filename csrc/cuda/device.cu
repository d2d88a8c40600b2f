// The prefix sum and the sort of rows, by hand. For our six architectures CUB's take about five times as long to
// compile as all CUDA sources here, its segmented sort more than doubles the size of the extension (the radix sort
// counts entries in 32 bits), and each spills registers.
#include "cuda/device.h"

namespace reid_fast::cuda {
namespace {

constexpr int kScanThreads = kWarp * kWarp;

__device__ int64_t warp_running_sum(int64_t value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t below = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// One block walks the array: a few microseconds for every thousand values, and nothing to allocate.
__global__ void running_sum(int64_t* values, int64_t n) {
  __shared__ int64_t warp_end[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t carry = 0;
  for (int64_t first = 0; first < n; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    const int64_t sum = warp_running_sum(i < n ? values[i] : 0, lane);
    if (lane == kWarp - 1) warp_end[warp] = sum;
    __syncthreads();
    if (warp == 0) warp_end[lane] = warp_running_sum(warp_end[lane], lane);
    __syncthreads();
    if (i < n) values[i] = carry + sum + (warp > 0 ? warp_end[warp - 1] : 0);
    carry += warp_end[kWarp - 1];
    __syncthreads();
  }
}

// Shell sort.
__device__ void sort_row(int32_t* index, float* value, int64_t size) {
  int64_t gap = 1;
  while (gap < size / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (int64_t t = gap; t < size; ++t) {
      const int32_t key = index[t];
      const float carried = value[t];
      int64_t slot = t;
      for (; slot >= gap && index[slot - gap] > key; slot -= gap) {
        index[slot] = index[slot - gap];
        value[slot] = value[slot - gap];
      }
      index[slot] = key;
      value[slot] = carried;
    }
  }
}

}  // namespace

void inclusive_sum(const DeviceArray<int64_t>& values, const Context& context) {
  launch(running_sum, 1, kScanThreads, context, values.data(), values.size());
}

void sort_rows(const DeviceArray<int64_t>& starts, const DeviceArray<int32_t>& indices,
               const DeviceArray<float>& values, const Context& context) {
  const int64_t* start = starts.data();
  int32_t* index = indices.data();
  float* value = values.data();
  for_each_row(starts.size() - 1, context,
               [=] __device__(int64_t i) { sort_row(index + start[i], value + start[i], start[i + 1] - start[i]); });
}

}  // namespace reid_fast::cuda
