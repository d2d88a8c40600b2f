// Stands in for the CUDA runtime where the .cu files are compiled as C++, so that a machine without a GPU executes
// them.
//
// A stream holds its work until somebody waits for it. A launch runs its blocks one after another; the threads of a
// block are fibres that change places, in a sequence drawn from a seed, wherever threads of a GPU meet or may race:
// barriers, shuffles, votes and atomics. Threads that do not all meet in the same place are an error, thrown by whoever
// waits for the stream. ThreadSanitizer, where it is built in, sees what orders two threads on a GPU and nothing else:
// __syncthreads, __syncwarp, the start and the end of a launch; so it finds every access that lacks a barrier.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
// Blocks do not overlap, so they can share one copy; each finds it spoilt (`kShared`).
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;  // of the fibre that runs

enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
struct CUstream_st {
  std::deque<std::function<void()>> work;
};
using cudaStream_t = CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream = nullptr;
};

namespace emulated {

constexpr int kWarp = 32;

// The sequence of everything that follows: odd ones are fair, under even ones some warps run far ahead of others.
void seed(uint64_t value);

void run(dim3 grid, dim3 block, const std::function<void()>& thread);

// How many calls of the runtime succeed before one fails; negative: all.
inline int64_t calls_before_failure = -1;

inline cudaError_t next_status() {
  return calls_before_failure >= 0 && calls_before_failure-- == 0 ? cudaErrorLaunchFailure : cudaSuccess;
}

// Does it when somebody waits for the stream.
template <class Work>
cudaError_t enqueue(cudaStream_t stream, Work work) {
  const cudaError_t status = next_status();
  if (status == cudaSuccess) stream->work.push_back(std::move(work));
  return status;
}

// Where the code of a kernel calls in from.
struct Place {
  const char* name;
  const char* file;
  int line;
};

// Gives `bits` to the other lanes of the warp and takes theirs.
const uint64_t* exchange(const Place& place, unsigned mask, uint64_t bits);
void meet_warp(const Place& place, unsigned mask);
void meet_block(const Place& place);
// Perhaps lets others go first.
void pause();

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

}  // namespace emulated

inline const char* cudaGetErrorString(cudaError_t) { return "a launch failed"; }

inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  return emulated::enqueue(stream, [=] { std::memset(to, byte, bytes); });
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return emulated::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t status = emulated::next_status();
  while (status == cudaSuccess && !stream->work.empty()) {
    const std::function<void()> next = std::move(stream->work.front());
    stream->work.pop_front();
    next();
  }
  return status;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return emulated::enqueue(config->stream, [grid = config->gridDim, block = config->blockDim, kernel,
                                            values = std::tuple<Parameters...>(arguments...)] {
    emulated::run(grid, block, [&] { std::apply(kernel, values); });
  });
}

#define EMULATED_PLACE(name) {name, file, line}

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated::meet_block(EMULATED_PLACE("__syncthreads"));
}

inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated::meet_warp(EMULATED_PLACE("__syncwarp"), mask);
}

inline unsigned __ballot_sync(unsigned mask, bool vote, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  const uint64_t* votes = emulated::exchange(EMULATED_PLACE("__ballot_sync"), mask, vote);
  unsigned all = 0;
  for (int lane = 0; lane < emulated::kWarp; ++lane) all |= static_cast<unsigned>(votes[lane]) << lane;
  return all;
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const uint64_t* values = emulated::exchange(EMULATED_PLACE("__shfl_up_sync"), mask, emulated::to_bits(value));
  return emulated::from_bits<T>(values[emulated::lane() < step ? emulated::lane() : emulated::lane() - step]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const uint64_t* values = emulated::exchange(EMULATED_PLACE("__shfl_xor_sync"), mask, emulated::to_bits(value));
  return emulated::from_bits<T>(values[emulated::lane() ^ other]);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class T>
T atomicAdd(T* at, T term) {
  emulated::pause();
  return __atomic_fetch_add(at, term, __ATOMIC_RELAXED);
}

template <class T>
T atomicCAS(T* at, T expected, T desired) {
  emulated::pause();
  __atomic_compare_exchange_n(at, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

template <class T>
T atomicMin(T* at, T bound) {
  emulated::pause();
  T value = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (bound < value && !__atomic_compare_exchange_n(at, &value, bound, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return value;
}
