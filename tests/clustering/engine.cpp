// Drives every CPU stage on awkward inputs; built with sanitisers by test_engine.py. Prints nothing when all is well.
#include <algorithm>
#include <cassert>
#include <cmath>

#include "cases.h"
#include "rows.h"

using namespace reid_fast;

namespace {

constexpr float kMaxDistance = 0.75f;

// A permuted ranking.
struct Permuted {
  Permutation permutation;
  Neighbours neighbours;
  Ranking ranking;

  explicit Permuted(const Ranking& from)
      : permutation(locality_permutation(from)),
        neighbours(permute(from, permutation, kThree)),
        ranking{neighbours.index.begin(), neighbours.similarity.begin(), from.n, from.k} {}
};

// The same rows in the caller's sequence.
Csr by_row(const PermutedRows& permuted, const Permutation& permutation) {
  std::vector<int64_t> position_of(permutation.size);
  for (int64_t position = 0; position < permutation.size; ++position) position_of[permutation[position]] = position;
  Csr rows{Array<int64_t>(permutation.size + 1), {}, {}};
  rows.start[0] = 0;
  for (int64_t i = 0; i < permutation.size; ++i) {
    rows.start[i + 1] = rows.start[i] + permuted.row(position_of[i]).size();
  }
  rows.index = Array<int32_t>(rows.start[permutation.size]);
  rows.value = Array<float>(rows.start[permutation.size]);
  for (int64_t i = 0; i < permutation.size; ++i) {
    int64_t e = rows.start[i];
    for (const Entry& entry : permuted.row(position_of[i])) {
      rows.index[e] = permutation[entry.index];
      rows.value[e++] = entry.value;
    }
    assert(std::is_sorted(rows.index.begin() + rows.start[i], rows.index.begin() + e));
  }
  return rows;
}

// Σ_g min(W_ig, W_jg) by merging two rows.
float shared_weight(const Csr& weights, int64_t i, int64_t j) {
  int64_t a = weights.start[i], b = weights.start[j];
  float shared = 0;
  while (a < weights.start[i + 1] && b < weights.start[j + 1]) {
    const int32_t g = weights.index[a], h = weights.index[b];
    if (g == h) shared += std::fmin(weights.value[a], weights.value[b]);
    a += g <= h;
    b += h <= g;
  }
  return shared;
}

// The graph of the inverted index against one of pairs, bit for bit.
void check_pairs(const Csr& weights, const Csr& graph, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    int64_t e = graph.start[i];
    for (int64_t j = 0; j < n; ++j) {
      const float distance = i == j ? 0 : jaccard_of(shared_weight(weights, i, j));
      if (distance > kMaxDistance) continue;
      assert(graph.index[e] == j && graph.value[e] == distance);
      ++e;
    }
    assert(e == graph.start[i + 1]);
  }
}

// The expansions by `Scan`, which a GPU runs, against those of the CPU stage.
void check_expansions(const Ranking& ranking, const Csr& weights) {
  const int k = ranking.k, half_size = set_size(half_of(k), k);
  std::vector<int32_t> full_member(ranking.n * k), half_member(ranking.n * half_size);
  std::vector<int32_t> full_length(ranking.n), half_length(ranking.n);
  const Sets full{full_member.data(), full_length.data(), k};
  const Sets half{half_member.data(), half_length.data(), half_size};
  for (int64_t i = 0; i < ranking.n; ++i) reciprocal_sets(ranking.index, k, i, full, half);
  std::vector<int32_t> members(expansion_bound(full, half));
  for (int64_t i = 0; i < ranking.n; ++i) {
    Scan scan;
    const int size = expand(full, half, i, scan, members.data());
    std::sort(members.begin(), members.begin() + size);
    assert(size == weights.start[i + 1] - weights.start[i]);
    assert(!std::memcmp(members.data(), weights.index.begin() + weights.start[i], size * sizeof(int32_t)));
  }
}

// Lists of 50 rows, each near the next two and the two before.
void check_lists(const Features& features, int k) {
  const int64_t n = features.n, count = (n + 49) / 50;
  std::vector<int32_t> members(n), near;
  std::vector<int64_t> start(count + 1), near_start{0};
  for (int64_t i = 0; i < n; ++i) members[i] = static_cast<int32_t>((11 * i) % n);
  for (int64_t list = 0; list < count; ++list) {
    start[list + 1] = std::min(n, 50 * (list + 1));
    for (int64_t other = std::max<int64_t>(0, list - 2); other < std::min(count, list + 3); ++other)
      near.push_back(other);
    near_start.push_back(static_cast<int64_t>(near.size()));
  }
  const Lists lists{members.data(), start.data(), near_start.data(), near.data(), count};
  const Neighbours found = knn_in_lists(features, k, lists, "portable", kThree);
  const Ranking ranking{found.index.begin(), found.similarity.begin(), n, k};
  assert(fault_of(ranking, kThree).empty());
  const Neighbours better = neighbours_of_neighbours(features, ranking, members.data(), kThree);
  for (int64_t e = 0; e < n * k; ++e) assert(better.similarity[e] >= found.similarity[e] || e % k == 0);
}

// The smallest cosines against those of all pairs; the distances of the first rows to the others against those of
// pairs.
void check_reranking(const Features& features, const Ranking& ranking, int k2) {
  const int64_t n = features.n;
  if (ranking.k == 1 && n > 1) return;  // its search begins with two
  const Array<float> smallest = knn_and_farthest(features, ranking.k, 0, n, "portable", kThree).second;
  for (const std::string& kernel : similarity_kernels()) {
    const auto [nearest, part] = knn_and_farthest(features, ranking.k, n / 3, n, kernel, kThree);
    assert(!std::memcmp(part.begin(), &smallest[n / 3], (n - n / 3) * sizeof(float)));
    assert(!std::memcmp(nearest.index.begin(), ranking.index + n / 3 * ranking.k,
                        (n - n / 3) * ranking.k * sizeof(int32_t)));
  }
  for (int64_t i = 0; i < n; ++i) {
    double least = 1;
    for (int64_t j = 0; j < n; ++j) {
      double cosine = 0;
      for (int64_t d = 0; d < features.width; ++d) cosine += double{features.row(i)[d]} * features.row(j)[d];
      least = std::fmin(least, cosine);
    }
    assert(std::fabs(least - smallest[i]) < 1e-6);
  }
  const int half = set_size(half_of(ranking.k), ranking.k);
  const Csr weights = reranking_weights(features, ranking, half, k2, smallest.begin(), kThree);
  std::vector<int64_t> start{0};  // by column
  std::vector<int32_t> index;
  std::vector<float> value;
  for (int64_t g = 0; g < n; ++g) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t* last = weights.index.begin() + weights.start[i + 1];
      const int32_t* at = std::find(weights.index.begin() + weights.start[i], last, g);
      if (at == last) continue;
      index.push_back(static_cast<int32_t>(i));
      value.push_back(weights.value[at - weights.index.begin()]);
    }
    start.push_back(static_cast<int64_t>(index.size()));
  }
  const SparseView rows{weights.start.begin(), weights.index.begin(), weights.value.begin()};
  const int64_t begin = n / 2, end = std::min(n, begin + 9);
  std::vector<float> distance((end - begin) * n);
  jaccard_rows(rows, {start.data(), index.data(), value.data()}, begin, end, n, distance.data(), kThree);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      assert(distance[(i - begin) * n + j] == jaccard_of(shared_weight(weights, i, j)));
    }
  }
}

void run_all(int64_t n, int64_t width, int64_t distinct, int k, int k2) {
  const std::vector<float> rows = normalised_rows(n, width, distinct);
  const Features features{rows.data(), n, width};
  const Neighbours first = knn(features, k, 0, n, "portable", kThree);
  if (k > 1) check_lists(features, k);
  for (const std::string& kernel : similarity_kernels()) {
    const Neighbours found = knn(features, k, 0, n, kernel, kThree);
    assert(!std::memcmp(found.index.begin(), first.index.begin(), n * k * sizeof(int32_t)));
    const Neighbours part = knn(features, k, n / 3, n, kernel, kThree);
    assert(!std::memcmp(part.index.begin(), first.index.begin() + n / 3 * k, (n - n / 3) * k * sizeof(int32_t)));
  }
  const Ranking ranking{first.index.begin(), first.similarity.begin(), n, k};
  assert(fault_of(ranking, kThree).empty());
  const Csr graph = jaccard_graph(features, ranking, k2, kMaxDistance, kThree);
  assert(equal(graph, jaccard_graph(features, ranking, k2, kMaxDistance, Run{1, kThree.watch})));
  const Permuted permuted(ranking);
  const PermutedRows weights =
      expansion_weights(features, permuted.ranking, set_size(half_of(k), k), nullptr, permuted.permutation, kThree);
  check_expansions(ranking, by_row(weights, permuted.permutation));
  const PermutedRows means = query_expansion(weights, permuted.ranking, k2, permuted.permutation, kThree);
  check_pairs(by_row(means, permuted.permutation), graph, n);
  check_reranking(features, ranking, k2);
  std::vector<int64_t> labels(n);
  dbscan(Graph<int64_t, int32_t, float>{graph.start.begin(), graph.index.begin(), graph.value.begin(), n}, 0.6f, 4,
         labels.data(), kThree);
}

void stop_when_asked() {
  const std::vector<float> rows = normalised_rows(20000, 64, 20000);
  bool stopped = false;
  try {
    knn({rows.data(), 20000, 64}, 30, 0, 20000, "portable", Run{2, [](int64_t, int64_t) { return true; }});
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
