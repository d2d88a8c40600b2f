#include "cpu/equal_rows.h"

#include <cstring>
#include <numeric>

#include "cpu/parallel.h"

namespace reid_fast {
namespace {

uint64_t hash_of(const float* row, int64_t width) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
  uint64_t hash = kOdd;
  int64_t d = 0;
  for (; d + 2 <= width; d += 2) {
    uint64_t bits;
    std::memcpy(&bits, row + d, sizeof bits);
    hash = (hash ^ bits) * kOdd;
    hash ^= hash >> 29;
  }
  if (d < width) {
    uint32_t bits;
    std::memcpy(&bits, row + d, sizeof bits);
    hash = (hash ^ bits) * kOdd;
  }
  return hash ^ hash >> 32;
}

}  // namespace

EqualRows::EqualRows(const Features& features, const Run& run) : first_(features.n) {
  const int64_t n = features.n;
  std::vector<uint64_t> hash(n);
  parallel_blocks(n, 1024, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) hash[i] = hash_of(features.row(i), features.width);
    };
  });

  uint64_t mask = 1;
  while (mask < 2 * static_cast<uint64_t>(n)) mask *= 2;
  std::vector<int32_t> table(mask--, -1);  // of first rows, by hash
  const size_t bytes = features.width * sizeof(float);
  for (int64_t i = 0; i < n; ++i) {
    uint64_t slot = hash[i] & mask;
    for (; table[slot] >= 0; slot = (slot + 1) & mask) {
      const int32_t j = table[slot];
      if (hash[j] == hash[i] && std::memcmp(features.row(j), features.row(i), bytes) == 0) break;
    }
    if (table[slot] < 0) {
      table[slot] = static_cast<int32_t>(i);
      ++groups_;
    }
    first_[i] = table[slot];
  }
  if (groups_ == n) {
    first_ = {};
    return;
  }

  start_.assign(n + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++start_[first_[i] + 1];
  std::partial_sum(start_.begin(), start_.end(), start_.begin());
  member_.resize(n);
  std::vector<int64_t> next(start_.begin(), start_.end() - 1);
  for (int64_t i = 0; i < n; ++i) member_[next[first_[i]]++] = static_cast<int32_t>(i);
}

}  // namespace reid_fast
