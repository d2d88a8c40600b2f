// Memory of one stream, launches, kernels over rows, a prefix sum and a sort: what the CUDA stages are written in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/device_stages.h"

namespace reid_fast::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

inline cudaStream_t stream_of(const Context& context) { return static_cast<cudaStream_t>(context.stream); }

// An uninitialised array on the device.
template <class T>
class DeviceArray {
 public:
  DeviceArray(int64_t size, const Context& context)
      : memory_(context.allocate(static_cast<int64_t>(sizeof(T)) * size)), size_(size), stream_(stream_of(context)) {}

  T* data() const { return static_cast<T*>(memory_.data); }
  int64_t size() const { return size_; }
  const Memory& memory() const { return memory_; }

  void clear() { check(cudaMemsetAsync(data(), 0, sizeof(T) * size_, stream_)); }

  T at(int64_t i) const {
    T value;
    check(cudaMemcpyAsync(&value, data() + i, sizeof(T), cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return value;
  }

 private:
  Memory memory_;
  int64_t size_;
  cudaStream_t stream_;
};

// The only place that starts kernels.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, const Context& context,
            Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream_of(context);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

template <class Body>
__global__ void rows_kernel(int64_t n, Body body) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) body(i);
}

// body(i) for every i in [0, n), a thread each.
template <class Body>
void for_each_row(int64_t n, const Context& context, Body body) {
  constexpr int kThreads = 128;
  if (n > 0) launch(rows_kernel<Body>, (n + kThreads - 1) / kThreads, kThreads, context, n, body);
}

// values[i] becomes the sum of values[0..i].
void inclusive_sum(const DeviceArray<int64_t>& values, const Context& context);

// Sorts the entries of each row, start[i] to start[i + 1], by their indices, which differ.
void sort_rows(const DeviceArray<int64_t>& start, const DeviceArray<int32_t>& index, const DeviceArray<float>& value,
               const Context& context);

}  // namespace reid_fast::cuda
