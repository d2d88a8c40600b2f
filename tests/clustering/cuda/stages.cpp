// Drives every CUDA stage without a GPU and compares it with the CPU's, bit for bit; built with sanitisers by
// engine_build.py. "thorough" is everything; without it, what the thread sanitiser has the time for.
#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "../cases.h"
#include "cuda/dbscan.cu"  // so that its union-find can be called

using namespace reid_fast;

namespace {

// Memory of the stand-in: found spoilt, freed in the order of its stream, counted.
struct Device {
  CUstream_st stream;
  int64_t live = 0, allocations = 0, fails_at = -1;
  int spoilt_with;

  explicit Device(uint64_t seed) : spoilt_with(static_cast<int>(seed * 0x53 + 0x7F)) { emulated::seed(seed); }
  ~Device() {
    cudaStreamSynchronize(&stream);
    assert(live == 0);
  }

  cuda::Memory allocate(int64_t bytes) {
    if (allocations++ == fails_at) throw std::bad_alloc();
    void* data = std::malloc(bytes);
    std::memset(data, spoilt_with, bytes);
    ++live;
    auto free = [this](void* data) {
      stream.work.push_back([this, data] {
        std::free(data);
        --live;
      });
    };
    return {data, std::shared_ptr<void>(data, free)};
  }

  cuda::Context context(int64_t scratch_bytes) {
    return {&stream, [this](int64_t bytes) { return allocate(bytes); }, scratch_bytes};
  }

  template <class T>
  cuda::Memory copy(const T* from, int64_t size) {
    cuda::Memory memory = allocate(size * sizeof(T));
    std::memcpy(memory.data, from, size * sizeof(T));
    return memory;
  }
};

template <class T>
const T* data_of(const cuda::Memory& memory) {
  return static_cast<const T*>(memory.data);
}

// Inputs on the device in memory of their own, so that nobody reads past their ends.
struct Inputs {
  cuda::Memory rows, index, similarity;
  Features features;
  Ranking ranking;

  Inputs(Device& device, const Features& from, const Ranking& ranks)
      : rows(device.copy(from.data, from.n * from.width)),
        index(device.copy(ranks.index, ranks.n * ranks.k)),
        similarity(device.copy(ranks.similarity, ranks.n * ranks.k)),
        features{data_of<float>(rows), from.n, from.width},
        ranking{data_of<int32_t>(index), data_of<float>(similarity), ranks.n, ranks.k} {}
};

std::vector<int64_t> labels_of(Device& device, const Csr& graph, float eps, int64_t min_samples) {
  const int64_t n = graph.start.size - 1;
  const cuda::Memory start = device.copy(graph.start.begin(), n + 1);
  const cuda::Memory index = device.copy(graph.index.begin(), graph.index.size);
  const cuda::Memory value = device.copy(graph.value.begin(), graph.value.size);
  const cuda::Memory found = device.allocate(n * sizeof(int64_t));
  cuda::dbscan({data_of<int64_t>(start), data_of<int32_t>(index), data_of<float>(value), n}, eps, min_samples,
               static_cast<int64_t*>(found.data), device.context(0));
  cuda::check(cudaStreamSynchronize(&device.stream));
  return {data_of<int64_t>(found), data_of<int64_t>(found) + n};
}

void check_labels(const Csr& graph, float eps, int64_t min_samples, uint64_t seed) {
  const int64_t n = graph.start.size - 1;
  std::vector<int64_t> expected(n);
  dbscan(Graph<int64_t, int32_t, float>{graph.start.begin(), graph.index.begin(), graph.value.begin(), n}, eps,
         min_samples, expected.data(), Run{1, [](int64_t, int64_t) { return false; }});
  Device device(seed);
  assert(labels_of(device, graph, eps, min_samples) == expected);
}

Csr graph_of(Device& device, const Inputs& inputs, int k2, float max_distance, int64_t scratch_bytes) {
  const cuda::DeviceGraph found =
      cuda::jaccard_graph(inputs.features, inputs.ranking, k2, max_distance, device.context(scratch_bytes));
  cuda::check(cudaStreamSynchronize(&device.stream));
  const int64_t n = inputs.features.n, entries = data_of<int64_t>(found.start)[n];
  Csr graph{Array<int64_t>(n + 1), Array<int32_t>(entries), Array<float>(entries)};
  std::memcpy(graph.start.begin(), found.start.data, (n + 1) * sizeof(int64_t));
  std::memcpy(graph.index.begin(), found.index.data, entries * sizeof(int32_t));
  std::memcpy(graph.value.begin(), found.value.data, entries * sizeof(float));
  return graph;
}

// Scratch for all rows at once; for a few blocks of rows in flight, a few rows expanded at a time; for less than one of
// either.
constexpr int64_t kAmple = int64_t{1} << 30, kScarce = 10000, kNone = 0;

void check_stages(int64_t n, int64_t width, int64_t distinct, int k, int k2, float max_distance, bool thorough) {
  std::printf("n %ld width %ld distinct %ld k %d k2 %d max_distance %g\n", n, width, distinct, k, k2, max_distance);
  const std::vector<float> rows = normalised_rows(n, width, distinct);
  const Features features{rows.data(), n, width};
  const Neighbours found = knn(features, k, 0, n, "portable", kThree);
  const Ranking ranking{found.index.begin(), found.similarity.begin(), n, k};
  const Csr expected = jaccard_graph(features, ranking, k2, max_distance, kThree);
  uint64_t seed = 2;
  for (int64_t scratch_bytes : {kNone, kAmple, kScarce}) {
    Device device(seed++);
    const Inputs inputs(device, features, ranking);
    assert(equal(expected, graph_of(device, inputs, k2, max_distance, scratch_bytes)));
    if (!thorough || (n >= 400 && scratch_bytes == kAmple)) break;  // in time
  }
  check_labels(expected, max_distance, 4, 3);
  if (!thorough) return;
  for (float eps : {0.0f, 0.3f, 0.5f, max_distance}) {
    for (int64_t min_samples : {1, 4}) check_labels(expected, eps, min_samples, 4);
  }
}

// The symmetric graph of these pairs with distance 0.5, and a zero diagonal.
Csr graph_of_pairs(int64_t n, const std::vector<std::pair<int32_t, int32_t>>& pairs) {
  std::vector<std::vector<int32_t>> rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i].push_back(static_cast<int32_t>(i));
  for (const auto& [i, j] : pairs) {
    rows[i].push_back(j);
    rows[j].push_back(i);
  }
  Csr graph{Array<int64_t>(n + 1), Array<int32_t>(n + 2 * pairs.size()), Array<float>(n + 2 * pairs.size())};
  int64_t e = graph.start[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    std::sort(rows[i].begin(), rows[i].end());
    for (int32_t j : rows[i]) {
      graph.index[e] = j;
      graph.value[e++] = j == i ? 0.0f : 0.5f;
    }
    graph.start[i + 1] = e;
  }
  return graph;
}

// A chain and a few trees, their members numbered along them, against them and at random.
void check_hooking(int64_t n, bool thorough) {
  std::mt19937 draw(7);
  std::vector<int32_t> number(n);
  std::iota(number.begin(), number.end(), 0);
  for (int order = 0; order < 4; ++order) {
    if (order == 1) std::reverse(number.begin(), number.end());
    if (order > 1) std::shuffle(number.begin(), number.end(), draw);
    std::vector<std::pair<int32_t, int32_t>> chain, trees;
    for (int64_t i = 1; i < n; ++i) {
      chain.push_back({number[i - 1], number[i]});
      if (i % 97) trees.push_back({number[draw() % i], number[i]});
    }
    for (uint64_t seed : {1, 2}) {
      check_labels(graph_of_pairs(n, chain), 0.5f, 1, seed);
      check_labels(graph_of_pairs(n, trees), 0.5f, 3, seed);
      if (!thorough) break;
      check_labels(graph_of_pairs(n, chain), 0.5f, 3, seed);  // both ends are border points
      check_labels(graph_of_pairs(n, trees), 0.5f, 1, seed);
      check_labels(graph_of_pairs(n, trees), 0.4f, 2, seed);  // nothing but outliers
    }
  }
}

void check_sums(int64_t n) {
  for (uint64_t seed : {1, 2}) {
    Device device(seed);
    const cuda::DeviceArray<int64_t> sums(n, device.context(0));
    std::iota(sums.data(), sums.data() + n, int64_t{1} << 40);
    std::vector<int64_t> expected(n);
    std::partial_sum(sums.data(), sums.data() + n, expected.begin());
    cuda::inclusive_sum(sums, device.context(0));
    cudaStreamSynchronize(&device.stream);
    assert(std::equal(expected.begin(), expected.end(), sums.data()));
  }
}

__global__ void find_root(int32_t* parent, int32_t i, int32_t* root) {
  if (threadIdx.x == 0) *root = cuda::root_of(parent, i);
}

// A path that was walked is half as long afterwards.
void check_halving() {
  constexpr int32_t kLength = 1000;
  Device device(1);
  std::vector<int32_t> parent(kLength);
  for (int32_t i = 0; i < kLength; ++i) parent[i] = std::max(0, i - 1);
  int32_t root = -1;
  cuda::launch(find_root, 1, cuda::kWarp, device.context(0), parent.data(), kLength - 1, &root);
  cudaStreamSynchronize(&device.stream);
  int steps = 0;
  for (int32_t i = kLength - 1; parent[i] != i; i = parent[i]) ++steps;
  assert(root == 0 && steps == kLength / 2);
}

// Whether the n-th allocation, or the n-th call of the runtime, was there to fail. The error arrives, and all memory is
// free again.
bool fails(int64_t allocation, int64_t call) {
  const std::vector<float> rows = normalised_rows(50, 4, 50);
  const Features features{rows.data(), 50, 4};
  const Neighbours found = knn(features, 5, 0, 50, "portable", kThree);
  Device device(1);
  const Inputs inputs(device, features, {found.index.begin(), found.similarity.begin(), 50, 5});
  if (allocation >= 0) device.fails_at = device.allocations + allocation;
  emulated::calls_before_failure = call;
  try {
    labels_of(device, graph_of(device, inputs, 2, 0.6f, kAmple), 0.5f, 4);
  } catch (const std::bad_alloc&) {
    assert(allocation >= 0);
    return true;
  } catch (const std::runtime_error& error) {
    assert(call >= 0 && std::string(error.what()) == "CUDA: a launch failed");
    return true;
  }
  emulated::calls_before_failure = -1;
  return false;
}

void check_failures() {
  int64_t allocations = 0, calls = 0;
  while (fails(allocations, -1)) ++allocations;
  while (fails(-1, calls)) ++calls;
  assert(allocations > 20 && calls > 30);
}

__global__ void half_a_barrier() {
  if (threadIdx.x < 16) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void a_warp_stays_away() {
  if (threadIdx.x >= 32) __syncthreads();
}
__global__ void mixed() {
  if (threadIdx.x % 2) __syncwarp();
  __ballot_sync(cuda::kAllLanes, true);
}
__global__ void half_a_mask() { __shfl_xor_sync(0xFFFFu, 1.0f, 1); }

// The stand-in says what is wrong with kernels that would hang or race.
void check_complaints() {
  const std::vector<std::pair<void (*)(), std::string>> cases{
      {half_a_barrier, "which 48 of 64 threads never reach"},
      {a_warp_stays_away, "which 32 of 64 threads never reach"},
      {two_barriers, "is in another place than those who wait: __syncthreads"},
      {mixed, "is in another place than those who wait"},
      {half_a_mask, "does not name all lanes of its warp: __shfl_xor_sync"},
  };
  for (const auto& [kernel, text] : cases) {
    Device device(1);
    std::string said;
    try {
      cuda::launch(kernel, 1, 64, device.context(0));
      cudaStreamSynchronize(&device.stream);
    } catch (const std::logic_error& error) {
      said = error.what();
    }
    if (said.find(text) == std::string::npos) std::fprintf(stderr, "said: %s\n", said.c_str());
    assert(said.find(text) != std::string::npos);
  }
}

}  // namespace

int main(int count, char**) {
  const bool thorough = count > 1;
  check_complaints();
  for (int64_t n : {1, 1024, 2049}) check_sums(n);
  check_halving();
  check_hooking(thorough ? 400 : 140, thorough);
  check_stages(1, 1, 1, 1, 1, 0.75f, thorough);
  check_stages(2, 3, 2, 2, 2, 0.75f, thorough);
  check_stages(50, 5, 50, 9, 3, 0.6f, thorough);
  check_stages(129, 7, 1, 40, 6, 0.6f, thorough);
  if (!thorough) return 0;
  check_failures();
  check_stages(50, 70, 50, 9, 1, 0.6f, true);
  check_stages(129, 16, 7, 15, 4, 0.0f, true);
  check_stages(400, 100, 400, 12, 3, 0.75f, true);
  check_stages(1500, 33, 1500, 8, 2, 0.6f, true);
}
