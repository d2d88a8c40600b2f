// DBSCAN on the device: core test, connected components of the core points by hooking, border points by lowest label.
#include "cuda/device.h"

namespace reid_fast::cuda {
namespace {

// What other threads have stored by now.
__device__ int32_t latest(const int32_t* parent, int32_t i) {
  return *static_cast<const volatile int32_t*>(parent + i);
}

// Path halving: a member that is passed is hooked onto its grandparent. Parents only ever fall, by `min` here and from
// a root in `join`, so whatever others do meanwhile a path ends, at a member of the same component.
__device__ int32_t root_of(int32_t* parent, int32_t i) {
  for (;;) {
    const int32_t up = latest(parent, i), above = latest(parent, up);
    if (up == above) return up;
    atomicMin(parent + i, above);
    i = above;
  }
}

// The higher root hooks onto the lower, so that in the end the root is the component's lowest member.
__device__ void join(int32_t* parent, int32_t i, int32_t j) {
  for (;;) {
    i = root_of(parent, i);
    j = root_of(parent, j);
    if (i == j) return;
    const int32_t low = i < j ? i : j, high = i < j ? j : i;
    if (atomicCAS(parent + high, high, low) == high) return;
  }
}

}  // namespace

void dbscan(const Graph<int64_t, int32_t, float>& graph, float eps, int64_t min_samples, int64_t* labels,
            const Context& context) {
  const DeviceArray<char> cores(graph.n, context);
  const DeviceArray<int32_t> parents(graph.n, context);
  DeviceArray<int64_t> numbers(graph.n + 1, context);
  char* core = cores.data();
  int32_t* parent = parents.data();
  int64_t* number = numbers.data();
  numbers.clear();

  for_each_row(graph.n, context, [=] __device__(int64_t i) {
    int64_t neighbours = 0;
    for (int64_t e = graph.start[i]; e < graph.start[i + 1]; ++e) neighbours += graph.value[e] <= eps;
    core[i] = neighbours >= min_samples;
    parent[i] = static_cast<int32_t>(i);
  });
  for_each_row(graph.n, context, [=] __device__(int64_t i) {
    if (!core[i]) return;
    for (int64_t e = graph.start[i]; e < graph.start[i + 1]; ++e) {
      const int32_t j = graph.index[e];
      if (j < i && graph.value[e] <= eps && core[j]) join(parent, static_cast<int32_t>(i), j);
    }
  });
  for_each_row(graph.n, context, [=] __device__(int64_t i) { number[i + 1] = core[i] && parent[i] == i; });
  inclusive_sum(numbers, context);
  for_each_row(graph.n, context, [=] __device__(int64_t i) {
    labels[i] = core[i] ? number[root_of(parent, static_cast<int32_t>(i))] : -1;
  });
  for_each_row(graph.n, context, [=] __device__(int64_t i) {
    if (core[i]) return;
    int64_t lowest = -1;
    for (int64_t e = graph.start[i]; e < graph.start[i + 1]; ++e) {
      const int32_t j = graph.index[e];
      if (graph.value[e] <= eps && core[j] && (lowest < 0 || labels[j] < lowest)) lowest = labels[j];
    }
    labels[i] = lowest;
  });
}

}  // namespace reid_fast::cuda
