// Reciprocal sets, their expansion, the weights and the query expansion (methods.md §1.10, steps 3 to 6).
#include "cpu/dot.h"
#include "cpu/parallel.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

struct OwnedSets {
  Array<int32_t> member, size;
  int stride;

  OwnedSets(int64_t n, int stride) : member(n * stride), size(n), stride(stride) {}
  Sets view() const { return {member.begin(), size.begin(), stride}; }
};

REID_VECTOR_VARIANTS void reciprocal_rows(const Ranking& ranking, int64_t begin, int64_t end, OwnedSets& sets) {
  for (int64_t i = begin; i < end; ++i) {
    sets.size[i] = reciprocal_set(ranking.index, ranking.k, sets.stride, i, sets.member.begin() + i * sets.stride);
  }
}

OwnedSets reciprocal_sets(const Ranking& ranking, int k, const Run& run) {
  OwnedSets sets(ranking.n, set_size(k, ranking.k));
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) { reciprocal_rows(ranking, begin, end, sets); };
  });
  return sets;
}

REID_VECTOR_VARIANTS int expand_row(const Sets& full, const Sets& half, int64_t i, int32_t* out) {
  return expand(full, half, i, out);
}

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

REID_VECTOR_VARIANTS bool row_is_sound(const Ranking& ranking, int64_t i) {
  const int32_t* row = ranking.index + i * ranking.k;
  bool sound = row[0] == i;
  for (int t = 0; t < ranking.k; ++t) sound &= row[t] >= 0 && row[t] < ranking.n && !contains(row, t, row[t]);
  return sound;
}

std::string fault_of_row(const Ranking& ranking, int64_t i) {
  const int32_t* row = ranking.index + i * ranking.k;
  const std::string name = "neighbours: row " + std::to_string(i);
  for (int t = 0; t < ranking.k; ++t) {
    if (row[t] < 0 || row[t] >= ranking.n) return name + " names " + std::to_string(row[t]) + ", a row that does not exist";
  }
  return name + (row[0] == i ? " names a neighbour twice" : " does not begin with itself");
}

}  // namespace

std::string fault_of(const Ranking& ranking, const Run& run) {
  std::atomic<int64_t> first{ranking.n};
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (row_is_sound(ranking, i)) continue;
        for (int64_t seen = first; i < seen && !first.compare_exchange_weak(seen, i);) {
        }
        return;
      }
    };
  });
  return first < ranking.n ? fault_of_row(ranking, first) : "";
}

SparseRows expansion_weights(const Features& features, const Ranking& ranking, const Run& run) {
  const OwnedSets full_sets = reciprocal_sets(ranking, ranking.k, run);
  const OwnedSets half_sets = reciprocal_sets(ranking, half_of(ranking.k), run);
  const Sets full = full_sets.view(), half = half_sets.view();
  RowBlocks rows(ranking.n, kBlock);
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&, members = std::vector<int32_t>(expansion_bound(full, half))](int64_t begin, int64_t end) mutable {
      RowBlocks::Block& block = rows.block_of(begin);
      for (int64_t i = begin; i < end; ++i) {
        const int size = expand_row(full, half, i, members.data());
        append_weights(features, ranking, i, members.data(), size, block);
        rows.set_length(i, size);
      }
    };
  });
  return rows.join(run);
}

SparseRows query_expansion(const SparseRows& weights, const Ranking& ranking, int k2, const Run& run) {
  RowBlocks rows(ranking.n, kBlock);
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&, cursor = std::vector<int64_t>(k2)](int64_t begin, int64_t end) mutable {
      RowBlocks::Block& block = rows.block_of(begin);
      for (int64_t i = begin; i < end; ++i) {
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
