// Memory of one stream, kernels over rows, prefix sums: what the CUDA stages are written in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace reid_fast::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// An uninitialised array on the device, allocated and freed in the order of its stream.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(int64_t size, cudaStream_t stream) : size_(size), stream_(stream) {
    check(cudaMallocAsync(reinterpret_cast<void**>(&data_), sizeof(T) * (size > 0 ? size : 1), stream));
  }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~DeviceArray() {
    if (data_) cudaFreeAsync(data_, stream_);
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }

  void clear() { check(cudaMemsetAsync(data_, 0, sizeof(T) * size_, stream_)); }

  T at(int64_t i) const {
    T value;
    check(cudaMemcpyAsync(&value, data_ + i, sizeof(T), cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return value;
  }

  void copy_to_host(T* out) const {
    check(cudaMemcpyAsync(out, data_, sizeof(T) * size_, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
  cudaStream_t stream_ = nullptr;
};

template <class Body>
__global__ void rows_kernel(int64_t n, Body body) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) body(i);
}

// body(i) for every i in [0, n), a thread each.
template <class Body>
void for_each_row(int64_t n, cudaStream_t stream, Body body) {
  constexpr int kThreads = 128;
  if (n == 0) return;
  rows_kernel<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(n, body);
  check(cudaGetLastError());
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kScanThreads = kWarp * kWarp;

__device__ inline int64_t warp_running_sum(int64_t value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t below = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// One block walks the array: a few microseconds for every thousand rows, and nothing to allocate.
static __global__ void running_sum(int64_t* values, int64_t n) {
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

// start[i + 1] holds the length of row i; afterwards where it ends. start[0] must be 0.
inline void lengths_to_offsets(const DeviceArray<int64_t>& start, cudaStream_t stream) {
  running_sum<<<1, kScanThreads, 0, stream>>>(start.data(), start.size());
  check(cudaGetLastError());
}

}  // namespace reid_fast::cuda
