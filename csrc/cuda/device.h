// Memory of one stream, kernels over rows, a prefix sum and a sort: what the CUDA stages are written in.
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
// values[i] becomes the sum of values[0..i].
void inclusive_sum(const DeviceArray<int64_t>& values, cudaStream_t stream);

// Sorts the entries of each row, start[i] to start[i + 1], by their indices, which differ.
void sort_rows(const DeviceArray<int64_t>& start, const DeviceArray<int32_t>& index, const DeviceArray<float>& value,
               cudaStream_t stream);

}  // namespace reid_fast::cuda
