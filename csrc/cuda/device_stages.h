// The CUDA side of the contract in stages.h: the same stages on device pointers, ordered by a stream.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "stages.h"

namespace reid_fast::cuda {

// A block of device memory, free again in the order of the stream once nobody owns it.
struct Memory {
  void* data = nullptr;
  std::shared_ptr<void> owner;
};

// Where a stage runs: a stream, the allocator of its memory, and the bytes that rows in flight may take together; more
// of them only make it faster.
struct Context {
  void* stream;
  std::function<Memory(int64_t bytes)> allocate;
  int64_t scratch_bytes;
};

// A sparse matrix on the device: [N + 1] offsets int64, indices int32, values float32.
struct DeviceGraph {
  Memory start, index, value;
};

// Steps 2 to 7: the graph of `threshold_graph`, from a sound ranking; all pointers on the device. It is there when the
// stream is; nothing waits for it here.
DeviceGraph jaccard_graph(const Features& features, const Ranking& ranking, int k2, float max_distance,
                          const Context& context);

// `dbscan` of stages.h with graph and labels on the device, there when the stream is.
void dbscan(const Graph<int64_t, int32_t, float>& graph, float eps, int64_t min_samples, int64_t* labels,
            const Context& context);

}  // namespace reid_fast::cuda
