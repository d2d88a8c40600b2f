// The stages of the k-reciprocal Jaccard graph, one after another.
#include "rows.h"
#include "stages.h"

namespace reid_fast {

Csr jaccard_graph(const Features& features, const Ranking& ranking, int k2, float max_distance, const Run& run,
                  int64_t most) {
  const Permutation permutation = locality_permutation(ranking);
  Neighbours permuted = permute(ranking, permutation, run);
  const Ranking local{permuted.index.begin(), permuted.similarity.begin(), ranking.n, ranking.k};
  const int half = set_size(half_of(ranking.k), ranking.k);
  PermutedRows weights = expansion_weights(features, local, half, nullptr, permutation, run);
  if (k2 > 1) weights = query_expansion(weights, local, k2, permutation, run);
  permuted = {};  // the largest stage needs the room
  return threshold_graph(std::move(weights), max_distance, permutation, run, most);
}

}  // namespace reid_fast
