// The CUDA side of the contract in stages.h: the same stages on device pointers, ordered by a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "stages.h"

namespace reid_fast::cuda {

// A sparse matrix on the device, freed with this object.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  virtual const int64_t* start() const = 0;  // [N + 1]
  virtual const int32_t* index() const = 0;
  virtual const float* value() const = 0;
  virtual int64_t entries() const = 0;
  virtual Csr to_host() const = 0;
};

// Steps 2 to 7: the graph of `threshold_graph`, from a sound ranking; all pointers on the device.
std::unique_ptr<DeviceGraph> jaccard_graph(const Features& features, const Ranking& ranking, int k2, float max_distance,
                                           void* stream);

// `dbscan` of stages.h with graph and labels on the device.
void dbscan(const Graph<int64_t, int32_t, float>& graph, float eps, int64_t min_samples, int64_t* labels, void* stream);

// A copy of device memory on the host, for the checks that name a bad row.
void copy_to_host(void* to, const void* from, int64_t bytes, void* stream);

}  // namespace reid_fast::cuda
