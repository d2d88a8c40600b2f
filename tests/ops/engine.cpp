// Drives every CPU stage on awkward inputs; built with sanitisers by test_engine.py. Prints nothing when all is well.
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "rows.h"
#include "stages.h"

using namespace reid_fast;

namespace {

const Run kThree{3, [] { return false; }};

std::vector<float> unit_rows(int64_t n, int64_t width, int64_t distinct) {
  std::vector<float> rows(n * width);
  for (int64_t i = 0; i < n; ++i) {
    double norm = 0;
    for (int64_t d = 0; d < width; ++d) {
      rows[i * width + d] = static_cast<float>(std::sin(1.7 * (i % distinct) + 0.9 * d + 0.31 * (i % distinct) * d));
      norm += rows[i * width + d] * rows[i * width + d];
    }
    for (int64_t d = 0; d < width; ++d) rows[i * width + d] /= static_cast<float>(std::sqrt(norm) + 1e-12);
  }
  return rows;
}

bool equal(const SparseRows& a, const SparseRows& b) {
  return a.start.size == b.start.size && a.index.size == b.index.size &&
         !std::memcmp(a.start.begin(), b.start.begin(), a.start.size * sizeof(int64_t)) &&
         !std::memcmp(a.index.begin(), b.index.begin(), a.index.size * sizeof(int32_t)) &&
         !std::memcmp(a.value.begin(), b.value.begin(), a.value.size * sizeof(float));
}

SparseRows graph_of(const Features& features, const Ranking& ranking, int k2, const Run& run) {
  const Order order = locality_order(ranking);
  SparseRows weights = expansion_weights(features, ranking, order, run);
  if (k2 > 1) weights = query_expansion(weights, ranking, k2, order, run);
  return threshold_graph(weights, 0.75f, order, run);
}

// The graph against the row algorithms a GPU runs: the merge of two rows instead of the inverted index.
void check_against_merges(const SparseRows& weights, const SparseRows& graph, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = graph.start[i]; e < graph.start[i + 1]; ++e) {
      const int64_t j = graph.index[e];
      const float shared =
          shared_weight(weights.start.begin(), weights.index.begin(), weights.value.begin(), i, j);
      assert(i == j ? graph.value[e] == 0.0f : graph.value[e] == jaccard_of(shared));
    }
  }
}

void run_all(int64_t n, int64_t width, int64_t distinct, int k, int k2) {
  const std::vector<float> rows = unit_rows(n, width, distinct);
  const Features features{rows.data(), n, width};
  const Neighbours first = knn(features, k, 0, n, "portable", kThree);
  for (const std::string& kernel : similarity_kernels()) {
    const Neighbours found = knn(features, k, 0, n, kernel, kThree);
    assert(!std::memcmp(found.index.begin(), first.index.begin(), n * k * sizeof(int32_t)));
    const Neighbours part = knn(features, k, n / 3, n, kernel, kThree);
    assert(!std::memcmp(part.index.begin(), first.index.begin() + n / 3 * k, (n - n / 3) * k * sizeof(int32_t)));
  }
  const Ranking ranking{first.index.begin(), first.similarity.begin(), n, k};
  assert(fault_of(ranking, kThree).empty());
  const SparseRows graph = graph_of(features, ranking, k2, kThree);
  assert(equal(graph, graph_of(features, ranking, k2, Run{1, kThree.interrupted})));
  if (k2 > 1) {
    const Order order = locality_order(ranking);
    const SparseRows own = expansion_weights(features, ranking, order, kThree);
    const SparseRows weights = query_expansion(own, ranking, k2, order, kThree);
    check_against_merges(weights, graph, n);
  }
  std::vector<int64_t> labels(n);
  dbscan(Graph<int64_t, int32_t, float>{graph.start.begin(), graph.index.begin(), graph.value.begin(), n}, 0.6f, 4,
         labels.data());
}

void stop_when_asked() {
  const std::vector<float> rows = unit_rows(20000, 64, 20000);
  bool stopped = false;
  try {
    knn({rows.data(), 20000, 64}, 30, 0, 20000, "portable", Run{2, [] { return true; }});
  } catch (const Interrupted&) {
    stopped = true;
  }
  assert(stopped);
}

}  // namespace

int main() {
  run_all(1, 1, 1, 1, 1);
  run_all(2, 3, 2, 2, 2);
  run_all(47, 5, 47, 9, 3);
  run_all(400, 33, 400, 30, 6);
  run_all(400, 16, 7, 15, 1);
  run_all(700, 64, 1, 20, 6);
  stop_when_asked();
}
