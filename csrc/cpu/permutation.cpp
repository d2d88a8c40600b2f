// The permutation in which rows are laid out, and the ranking laid out by it.
#include "cpu/parallel.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

}  // namespace

Permutation locality_permutation(const Ranking& ranking) {
  Permutation permutation(ranking.n);
  std::vector<char> taken(ranking.n);
  std::vector<int32_t> pending;
  int64_t count = 0;
  auto take = [&](int32_t row) {
    taken[row] = 1;
    prefetch(ranking.index + int64_t{row} * ranking.k, ranking.k);  // the row taken last is the next to be followed
    permutation[count++] = row;
    pending.push_back(row);
  };
  for (int64_t seed = 0; seed < ranking.n; ++seed) {
    if (!taken[seed]) take(static_cast<int32_t>(seed));
    while (!pending.empty()) {
      const int32_t* row = ranking.index + int64_t{pending.back()} * ranking.k;
      pending.pop_back();
      for (int t = 1; t < ranking.k; ++t) {
        if (!taken[row[t]]) take(row[t]);
      }
    }
  }
  return permutation;
}

Neighbours permute(const Ranking& ranking, const Permutation& permutation, const Run& run) {
  const int64_t n = ranking.n;
  const int k = ranking.k;
  Array<int32_t> position_of(n);
  for (int64_t position = 0; position < n; ++position) {
    position_of[permutation[position]] = static_cast<int32_t>(position);
  }

  Neighbours permuted{Array<int32_t>(n * k), Array<float>(n * k)};
  parallel_blocks(n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position) {
        if (position + kAhead < n) {
          prefetch(ranking.index + int64_t{permutation[position + kAhead]} * k, k);
          prefetch(ranking.similarity + int64_t{permutation[position + kAhead]} * k, k);
        }
        const int64_t from = int64_t{permutation[position]} * k, to = position * k;
        for (int t = 0; t < k; ++t) permuted.index[to + t] = position_of[ranking.index[from + t]];
        std::copy_n(ranking.similarity + from, k, permuted.similarity.begin() + to);
      }
    };
  });
  return permuted;
}

}  // namespace reid_fast
