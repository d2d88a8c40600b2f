// Reciprocal sets, their expansion, the weights and the query expansion (steps 3 to 6 of the k-reciprocal distance; Zhong et al., CVPR 2017).
#include <cmath>

#include "cpu/dot.h"
#include "cpu/parallel.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;
constexpr float kLargestCosine = 1.001f;  // of unit rows, rounding included

struct OwnedSets {
  Array<int32_t> member, size;
  int stride;

  OwnedSets(int64_t n, int stride) : member(n * stride), size(n), stride(stride) {}
  Sets view() const { return {member.begin(), size.begin(), stride}; }
};

REID_VECTOR_VARIANTS void reciprocal_rows(const Ranking& ranking, const Order& order, int64_t begin, int64_t end,
                                          OwnedSets& sets) {
  for (int64_t place = begin; place < end; ++place) {
    ask_ahead(order, place, kAhead, [&](int64_t i) { prefetch(ranking.index + i * ranking.k, ranking.k); });
    const int64_t i = order[place];
    sets.size[i] = reciprocal_set(ranking.index, ranking.k, sets.stride, i, sets.member.begin() + i * sets.stride);
  }
}

OwnedSets reciprocal_sets(const Ranking& ranking, int k, const Order& order, const Run& run) {
  OwnedSets sets(ranking.n, set_size(k, ranking.k));
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) { reciprocal_rows(ranking, order, begin, end, sets); };
  });
  return sets;
}

// `Scan` with a mark for each of the N rows: the number of the turn that added it, one more if it was the row's own.
class Marks {
 public:
  explicit Marks(int64_t n) : mark_(n) {}

  void start(const int32_t* own, int size, const int32_t*) {
    turn_ += 2;
    for (int t = 0; t < size; ++t) mark_[own[t]] = turn_ + 1;
  }
  bool in_own(int32_t member) const { return mark_[member] == turn_ + 1; }
  bool holds(int32_t member) const { return mark_[member] >= turn_; }
  void add(int32_t member) { mark_[member] = turn_; }

 private:
  std::vector<uint32_t> mark_;
  uint32_t turn_ = 0;
};

// The ranking already knows the cosine of (i, j) if either row names the other.
float cosine_of(const Features& features, const Ranking& ranking, int64_t i, int32_t j) {
  int column = column_of(ranking.index, ranking.k, i, j);
  if (column >= 0) return ranking.similarity[i * ranking.k + column];
  column = column_of(ranking.index, ranking.k, j, static_cast<int32_t>(i));
  if (column >= 0) return ranking.similarity[int64_t{j} * ranking.k + column];
  return dot(features.row(i), features.row(j), features.width);
}

void append_weights(const Features& features, const Ranking& ranking, int64_t i, const int32_t* members, int size,
                    RowBlocks::Block& block) {
  const size_t first = block.value.size();
  float total = 0;
  for (int t = 0; t < size; ++t) {
    block.value.push_back(affinity(cosine_of(features, ranking, i, members[t])));
    total += block.value.back();
  }
  for (size_t t = first; t < block.value.size(); ++t) block.value[t] /= total;
  block.index.insert(block.index.end(), members, members + size);
}

REID_VECTOR_VARIANTS bool is_sound(const Ranking& ranking, int64_t i) {
  const int32_t* row = ranking.index + i * ranking.k;
  const float* cosine = ranking.similarity + i * ranking.k;
  bool sound = row[0] == i;
  for (int t = 0; t < ranking.k; ++t) {
    sound &= row[t] >= 0 && row[t] < ranking.n && !contains(row, t, row[t]) && std::fabs(cosine[t]) <= kLargestCosine;
  }
  return sound;
}

std::string fault_of_row(const Ranking& ranking, int64_t i) {
  const int32_t* row = ranking.index + i * ranking.k;
  const std::string name = "row " + std::to_string(i);
  for (int t = 0; t < ranking.k; ++t) {
    if (row[t] < 0 || row[t] >= ranking.n) return name + " names " + std::to_string(row[t]) + ", which does not exist";
  }
  if (row[0] != i) return name + " does not begin with itself";
  for (int t = 0; t < ranking.k; ++t) {
    if (contains(row, t, row[t])) return name + " names " + std::to_string(row[t]) + " twice";
  }
  return name + " holds a similarity that is no cosine";
}

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

std::string fault_of(const Ranking& ranking, const Run& run) {
  std::atomic<int64_t> first{ranking.n};
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (is_sound(ranking, i)) continue;
        for (int64_t seen = first; i < seen && !first.compare_exchange_weak(seen, i);) {
        }
        return;
      }
    };
  });
  return first < ranking.n ? fault_of_row(ranking, first) : "";
}

SparseRows expansion_weights(const Features& features, const Ranking& ranking, const Order& order, const Run& run) {
  const OwnedSets full_sets = reciprocal_sets(ranking, ranking.k, order, run);
  const OwnedSets half_sets = reciprocal_sets(ranking, half_of(ranking.k), order, run);
  const Sets full = full_sets.view(), half = half_sets.view();
  RowBlocks rows(order, kBlock);
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&, marks = Marks(ranking.n), members = std::vector<int32_t>(expansion_bound(full, half))](
               int64_t begin, int64_t end) mutable {
      RowBlocks::Block& block = rows.block_at(begin);
      for (int64_t place = begin; place < end; ++place) {
        ask_ahead(order, place, kAhead, [&](int64_t i) {
          prefetch(full.row(i), full.stride);
          prefetch(half.row(i), half.stride);
          prefetch(full.size + i, 1);
          prefetch(half.size + i, 1);
          prefetch(ranking.index + i * ranking.k, ranking.k);
          prefetch(ranking.similarity + i * ranking.k, ranking.k);
        });
        const int64_t i = order[place];
        const int size = expand(full, half, i, marks, members.data());
        append_weights(features, ranking, i, members.data(), size, block);
        rows.set_length(i, size);
      }
    };
  });
  return rows.join(run);
}

SparseRows query_expansion(const SparseRows& weights, const Ranking& ranking, int k2, const Order& order,
                           const Run& run) {
  RowBlocks rows(order, kBlock);
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&, cursor = std::vector<int64_t>(k2)](int64_t begin, int64_t end) mutable {
      RowBlocks::Block& block = rows.block_at(begin);
      for (int64_t place = begin; place < end; ++place) {
        ask_for_row(weights, order, place);
        ask_ahead(order, place, kAhead, [&](int64_t i) { prefetch(ranking.index + i * ranking.k, k2); });
        const int64_t i = order[place];
        const int32_t* nearest = ranking.index + i * ranking.k;
        int64_t bound = 0;
        for (int t = 0; t < k2; ++t) bound += weights.start[nearest[t] + 1] - weights.start[nearest[t]];
        const size_t first = block.index.size();
        block.index.resize(first + bound);
        block.value.resize(first + bound);
        const int length =
            mean_of_rows(weights.start.begin(), weights.index.begin(), weights.value.begin(), nearest, k2,
                         cursor.data(), block.index.data() + first, block.value.data() + first);
        block.index.resize(first + length);
        block.value.resize(first + length);
        rows.set_length(i, length);
      }
    };
  });
  return rows.join(run);
}

}  // namespace reid_fast
