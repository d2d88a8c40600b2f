// The k-reciprocal re-ranking of queries (Zhong et al., CVPR 2017): weights of all rows, distances of some at a time.
#include "cpu/parallel.h"
#include "cpu/sums.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

// Permuted rows in the caller's sequence, naming rows.
Csr by_row(const PermutedRows& rows, const Permutation& permutation, const Run& run) {
  const int64_t n = permutation.size;
  Csr found{Array<int64_t>(n + 1), {}, {}};
  found.start[0] = 0;
  for (int64_t position = 0; position < n; ++position) {
    found.start[permutation[position] + 1] = rows.row(position).size();
  }
  for (int64_t i = 0; i < n; ++i) found.start[i + 1] += found.start[i];
  found.index = Array<int32_t>(found.start[n]);
  found.value = Array<float>(found.start[n]);
  parallel_blocks(n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position) {
        int64_t to = found.start[permutation[position]];
        for (const Entry& entry : rows.row(position)) {
          found.index[to] = permutation[entry.index];
          found.value[to++] = entry.value;
        }
      }
    };
  });
  return found;
}

}  // namespace

Csr reranking_weights(const Features& features, const Ranking& ranking, int half, int k2, const float* smallest,
                      const Run& run) {
  const Permutation permutation = locality_permutation(ranking);
  const Neighbours permuted = permute(ranking, permutation, run);
  const Ranking local{permuted.index.begin(), permuted.similarity.begin(), ranking.n, ranking.k};
  PermutedRows weights = expansion_weights(features, local, half, smallest, permutation, run);
  if (k2 > 1) weights = query_expansion(weights, local, k2, permutation, run);
  return by_row(weights, permutation, run);
}

void jaccard_rows(const SparseView& rows, const SparseView& columns, int64_t begin, int64_t end, int64_t width,
                  float* distance, const Run& run) {
  parallel_blocks(end - begin, 1, run, [&] {
    return [&, sums = Sums(width)](int64_t from, int64_t to) mutable {
      for (int64_t r = from; r < to; ++r) {
        for (int64_t e = rows.start[begin + r]; e < rows.start[begin + r + 1]; ++e) {
          const int32_t g = rows.index[e];
          for (int64_t c = columns.start[g]; c < columns.start[g + 1]; ++c) {
            sums.add(columns.index[c], std::min(rows.value[e], columns.value[c]));
          }
        }
        float* out = distance + r * width;
        std::fill(out, out + width, 1.0f);
        sums.drain([&](int32_t j, float shared) { out[j] = jaccard_of(shared); });
      }
    };
  });
}

}  // namespace reid_fast
