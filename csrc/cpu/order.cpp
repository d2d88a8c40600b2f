// The order in which rows are laid out, and the ranking laid out in it.
#include "cpu/parallel.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

}  // namespace

Order locality_order(const Ranking& ranking) {
  Order order(ranking.n);
  std::vector<char> placed(ranking.n);
  std::vector<int32_t> pending;
  int64_t count = 0;
  auto place = [&](int32_t row) {
    placed[row] = 1;
    prefetch(ranking.index + int64_t{row} * ranking.k, ranking.k);  // the row placed last is the next to be followed
    order[count++] = row;
    pending.push_back(row);
  };
  for (int64_t seed = 0; seed < ranking.n; ++seed) {
    if (!placed[seed]) place(static_cast<int32_t>(seed));
    while (!pending.empty()) {
      const int32_t* row = ranking.index + int64_t{pending.back()} * ranking.k;
      pending.pop_back();
      for (int t = 1; t < ranking.k; ++t) {
        if (!placed[row[t]]) place(row[t]);
      }
    }
  }
  return order;
}

Neighbours by_place(const Ranking& ranking, const Order& order, const Run& run) {
  const int k = ranking.k;
  Array<int32_t> place_of(ranking.n);
  for (int64_t place = 0; place < ranking.n; ++place) place_of[order[place]] = static_cast<int32_t>(place);

  Neighbours placed{Array<int32_t>(ranking.n * k), Array<float>(ranking.n * k)};
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        if (place + kAhead < ranking.n) {
          prefetch(ranking.index + int64_t{order[place + kAhead]} * k, k);
          prefetch(ranking.similarity + int64_t{order[place + kAhead]} * k, k);
        }
        const int64_t from = int64_t{order[place]} * k;
        for (int t = 0; t < k; ++t) placed.index[place * k + t] = place_of[ranking.index[from + t]];
        std::copy_n(ranking.similarity + from, k, placed.similarity.begin() + place * k);
      }
    };
  });
  return placed;
}

}  // namespace reid_fast
