// Reciprocal sets, their expansion, the weights and the query expansion: steps 2 to 6 of the k-reciprocal distance
// (Zhong et al., CVPR 2017).
#include <cmath>

#include "cpu/dot.h"
#include "cpu/parallel.h"
#include "cpu/sort.h"
#include "cpu/sums.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;
constexpr float kLargestCosine = 1.001f;  // of L2-normalised rows, rounding included
constexpr float kLongest = 1e30f;         // squared length of rows whose products, and what is made of them, are finite

struct OwnedSets {
  Array<int32_t> member, size;
  int stride;

  OwnedSets(int64_t n, int stride) : member(n * stride), size(n), stride(stride) {}
  Sets view() { return {member.begin(), size.begin(), stride}; }
};

REID_VECTOR_VARIANTS void reciprocal_rows(const Ranking& ranking, int64_t begin, int64_t end, const Sets& full,
                                          const Sets& half) {
  for (int64_t i = begin; i < end; ++i) reciprocal_sets(ranking.index, ranking.k, i, full, half);
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

constexpr float kUnknown = 2;  // no cosine

// The ranking already knows the cosine of (i, j) if either names the other. `known` is scratch for all positions, all
// kUnknown between calls.
REID_VECTOR_VARIANTS void append_affinities(const Features& features, const Ranking& ranking, const float* smallest,
                                            const Permutation& permutation, int64_t i, const int32_t* members, int size,
                                            float* known, std::vector<Entry>& entries) {
  const int32_t* neighbours = ranking.index + i * ranking.k;
  for (int t = 0; t < ranking.k; ++t) known[neighbours[t]] = ranking.similarity[i * ranking.k + t];
  for (int t = 0; t < size; ++t) {
    const int64_t j = members[t];
    float cosine = known[j];
    if (cosine == kUnknown) {
      const int column = column_of(ranking.index, ranking.k, j, static_cast<int32_t>(i));
      cosine = column >= 0 ? ranking.similarity[j * ranking.k + column]
                           : dot(features.row(permutation[i]), features.row(permutation[j]), features.width);
    }
    entries.push_back({members[t], smallest ? affinity(cosine, smallest[permutation[i]]) : affinity(cosine)});
  }
  for (int t = 0; t < ranking.k; ++t) known[neighbours[t]] = kUnknown;
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

std::string fault_of(const Features& features, const Run& run) {
  const int64_t first = first_without(
      features.n, run, [&](int64_t i) { return dot(features.row(i), features.row(i), features.width) < kLongest; });
  return first < features.n ? "row " + std::to_string(first) + " holds NaN, infinity or values that are too large" : "";
}

std::string fault_of_length(const Features& features, const Run& run) {
  const int64_t first = first_without(features.n, run, [&](int64_t i) {
    return dot(features.row(i), features.row(i), features.width) <= kLargestCosine;
  });
  return first < features.n ? "row " + std::to_string(first) + " holds NaN or is longer than 1" : "";
}

std::string fault_of(const Ranking& ranking, const Run& run) {
  const int64_t first = first_without(ranking.n, run, [&](int64_t i) { return is_sound(ranking, i); });
  return first < ranking.n ? fault_of_row(ranking, first) : "";
}

PermutedRows expansion_weights(const Features& features, const Ranking& ranking, int half_size, const float* smallest,
                               const Permutation& permutation, const Run& run) {
  OwnedSets full_sets(ranking.n, ranking.k), half_sets(ranking.n, half_size);
  const Sets full = full_sets.view(), half = half_sets.view();
  parallel_blocks(ranking.n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) { reciprocal_rows(ranking, begin, end, full, half); };
  });
  return fill_rows(ranking.n, run, [&] {
    return [&, marks = Marks(ranking.n), members = std::vector<int32_t>(expansion_bound(full, half)),
            known = std::vector<float>(ranking.n, kUnknown),
            sort = RowSort()](int64_t i, std::vector<Entry>& entries) mutable {
      const int size = expand(full, half, i, marks, members.data());
      const size_t first = entries.size();
      append_affinities(features, ranking, smallest, permutation, i, members.data(), size, known.data(), entries);
      sort(permutation, entries.data() + first, size);
      float total = 0;
      for (size_t t = first; t < entries.size(); ++t) total += entries[t].value;
      for (size_t t = first; t < entries.size(); ++t) entries[t].value /= total;
    };
  });
}

PermutedRows query_expansion(const PermutedRows& weights, const Ranking& ranking, int k2,
                             const Permutation& permutation, const Run& run) {
  return fill_rows(ranking.n, run, [&] {
    return [&, sums = Sums(ranking.n), sort = RowSort()](int64_t i, std::vector<Entry>& entries) mutable {
      for (int t = 0; t < k2; ++t) {
        for (const Entry& entry : weights.row(ranking.index[i * ranking.k + t])) sums.add(entry.index, entry.value);
      }
      const size_t first = entries.size();
      sums.drain([&](int32_t g, float sum) { entries.push_back({g, sum / static_cast<float>(k2)}); });
      sort(permutation, entries.data() + first, static_cast<int64_t>(entries.size() - first));
    };
  });
}

}  // namespace reid_fast
