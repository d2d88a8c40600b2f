// Sorting by counting: each key goes behind those below it.
#include "cpu/sort.h"

#include <algorithm>
#include <cstring>

#include "cpu/dot.h"

namespace reid_fast {
namespace {

constexpr int kLanes = 16;
using Lanes = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
constexpr int64_t kLargestRanked = 512;  // beyond it n² comparisons, many at once, lose to n·log n

// rank[t] = how many keys lie below key[t]: for short rows faster than any sort that branches. Both arrays go on to a
// multiple of kLanes.
REID_VECTOR_VARIANTS void rank_keys(const int32_t* key, int size, int32_t* rank) {
  for (int first = 0; first < size; first += kLanes) {
    Lanes own, below = {};
    std::memcpy(&own, key + first, sizeof own);
    for (int t = 0; t < size; ++t) below -= own > Lanes{} + key[t];  // a comparison that holds gives -1
    std::memcpy(rank + first, &below, sizeof below);
  }
}

}  // namespace

void RowSort::operator()(const Permutation& permutation, Entry* entries, int64_t size) {
  if (size > kLargestRanked) {
    std::sort(entries, entries + size, [&](Entry a, Entry b) { return permutation[a.index] < permutation[b.index]; });
    return;
  }
  key_.resize(size + kLanes);
  rank_.resize(size + kLanes);
  for (int64_t t = 0; t < size; ++t) key_[t] = permutation[entries[t].index];
  rank_keys(key_.data(), static_cast<int>(size), rank_.data());
  copy_.assign(entries, entries + size);
  for (int64_t t = 0; t < size; ++t) entries[rank_[t]] = copy_[t];
}

void RowSort::operator()(int32_t* index, float* value, int64_t size) {
  copy_.resize(size);
  for (int64_t t = 0; t < size; ++t) copy_[t] = {index[t], value[t]};
  if (size > kLargestRanked) {
    std::sort(copy_.begin(), copy_.end(), [](Entry a, Entry b) { return a.index < b.index; });
    for (int64_t t = 0; t < size; ++t) index[t] = copy_[t].index, value[t] = copy_[t].value;
    return;
  }
  key_.assign(index, index + size);
  key_.resize(size + kLanes);
  rank_.resize(size + kLanes);
  rank_keys(key_.data(), static_cast<int>(size), rank_.data());
  for (int64_t t = 0; t < size; ++t) index[rank_[t]] = copy_[t].index, value[rank_[t]] = copy_[t].value;
}

}  // namespace reid_fast
