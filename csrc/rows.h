// The row algorithms of the k-reciprocal Jaccard distance: one source for CPU threads and CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define REID_HOST_DEVICE __host__ __device__ inline
#else
#define REID_HOST_DEVICE inline
#endif

namespace reid_fast {

REID_HOST_DEVICE bool contains(const int32_t* set, int size, int32_t member) {
  int found = 0;
  for (int t = 0; t < size; ++t) found |= set[t] == member;
  return found != 0;
}

// Entries of a ranking that S(i, k) holds: the row itself and k neighbours, as far as the K columns go.
REID_HOST_DEVICE int set_size(int k, int columns) { return k + 1 < columns ? k + 1 : columns; }

// round_half_even(k1 / 2), the k of the half set.
REID_HOST_DEVICE int half_of(int k1) { return k1 / 2 + (k1 % 4 == 3); }

// {j ∈ S(i) : i ∈ S(j)} in ranking order, S = the first `size` of the `columns` ranked; returns its length.
REID_HOST_DEVICE int reciprocal_set(const int32_t* ranking, int columns, int size, int64_t i, int32_t* out) {
  int length = 0;
  for (int t = 0; t < size; ++t) {
    const int32_t j = ranking[i * columns + t];
    if (contains(ranking + int64_t{j} * columns, size, static_cast<int32_t>(i))) out[length++] = j;
  }
  return length;
}

// Shell sort, ascending: short, in place, the same on host and device.
REID_HOST_DEVICE void sort_set(int32_t* set, int size) {
  const int gaps[] = {301, 132, 57, 23, 10, 4, 1};
  for (int gap : gaps) {
    for (int t = gap; t < size; ++t) {
      const int32_t member = set[t];
      int slot = t;
      for (; slot >= gap && set[slot - gap] > member; slot -= gap) set[slot] = set[slot - gap];
      set[slot] = member;
    }
  }
}

// Sets of all rows at one stride, as `reciprocal_set` leaves them.
struct Sets {
  const int32_t* member;  // [N, stride]
  const int32_t* size;    // [N]
  int stride;

  REID_HOST_DEVICE const int32_t* row(int64_t i) const { return member + i * stride; }
};

// Longest possible expansion of a row.
REID_HOST_DEVICE int expansion_bound(const Sets& full, const Sets& half) {
  return full.stride * (1 + half.stride);
}

// Which rows an expansion holds so far, found by looking through them: needs no memory of its own.
struct Scan {
  const int32_t* own = nullptr;
  int own_size = 0;
  const int32_t* all = nullptr;
  int size = 0;

  REID_HOST_DEVICE void start(const int32_t* own_set, int own_length, const int32_t* out) {
    own = own_set;
    own_size = size = own_length;
    all = out;
  }
  REID_HOST_DEVICE bool in_own(int32_t member) const { return contains(own, own_size, member); }
  REID_HOST_DEVICE bool holds(int32_t member) const { return contains(all, size, member); }
  REID_HOST_DEVICE void add(int32_t) { ++size; }
};

// E(i) = r(i) ∪ ⋃{q(c) : c ∈ r(i), |q(c) ∩ r(i)| > 2/3 |q(c)|}, ascending; returns its length. The test and the
// loop use the unexpanded r(i). `Membership` is `Scan`, or something faster with the same members.
template <class Membership>
REID_HOST_DEVICE int expand(const Sets& full, const Sets& half, int64_t i, Membership& members, int32_t* out) {
  const int32_t* own = full.row(i);
  const int own_size = full.size[i];
  int length = 0;
  for (; length < own_size; ++length) out[length] = own[length];
  members.start(own, own_size, out);
  for (int c = 0; c < own_size; ++c) {
    const int32_t* other = half.row(own[c]);
    const int other_size = half.size[own[c]];
    int shared = 0;
    for (int t = 0; t < other_size; ++t) shared += members.in_own(other[t]);
    if (3 * shared <= 2 * other_size || shared == other_size) continue;
    for (int t = 0; t < other_size; ++t) {
      if (members.holds(other[t])) continue;
      out[length++] = other[t];
      members.add(other[t]);
    }
  }
  sort_set(out, length);
  return length;
}

// The column in which `ranking` row i names j, or -1.
REID_HOST_DEVICE int column_of(const int32_t* ranking, int columns, int64_t i, int32_t j) {
  int column = -1;
  for (int t = 0; t < columns; ++t) column = ranking[i * columns + t] == j ? t : column;
  return column;
}

// exp(-(2 - 2 cos)): the Gaussian of the squared distance of unit vectors.
REID_HOST_DEVICE float affinity(float cosine) { return expf(2 * cosine - 2); }

// The mean of k2 sparse rows with ascending indices, merged; `cursor` is scratch [k2]. Returns the length; with
// `index` null nothing is written. Sums run in ranking order, then divide: the published code's rounding.
REID_HOST_DEVICE int mean_of_rows(const int64_t* start, const int32_t* row_index, const float* row_value,
                                  const int32_t* rows, int k2, int64_t* cursor, int32_t* index, float* value) {
  constexpr int32_t kEnd = INT32_MAX;
  for (int t = 0; t < k2; ++t) cursor[t] = start[rows[t]];
  for (int length = 0;; ++length) {
    int32_t next = kEnd;
    for (int t = 0; t < k2; ++t) {
      if (cursor[t] < start[rows[t] + 1] && row_index[cursor[t]] < next) next = row_index[cursor[t]];
    }
    if (next == kEnd) return length;
    float sum = 0;
    for (int t = 0; t < k2; ++t) {
      if (cursor[t] < start[rows[t] + 1] && row_index[cursor[t]] == next) sum += row_value[cursor[t]++];
    }
    if (index) {
      index[length] = next;
      value[length] = sum / static_cast<float>(k2);
    }
  }
}

// Rows sum to 1, so Σ max = 2 - s; rounding can carry s past 1.
REID_HOST_DEVICE float jaccard_of(float shared) {
  const float distance = 1 - shared / (2 - shared);
  return distance > 0 ? distance : 0;
}

}  // namespace reid_fast
