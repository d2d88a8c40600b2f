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

// The column in which `ranking` row i names j, or -1.
REID_HOST_DEVICE int column_of(const int32_t* ranking, int columns, int64_t i, int32_t j) {
  int column = -1;
  for (int t = 0; t < columns; ++t) column = ranking[i * columns + t] == j ? t : column;
  return column;
}

// Sets of all rows at one stride, in ranking order.
struct Sets {
  int32_t* member;  // [N, stride]
  int32_t* size;    // [N]
  int stride;

  REID_HOST_DEVICE int32_t* row(int64_t i) const { return member + i * stride; }
};

// {j ∈ S(i) : i ∈ S(j)}: into `full` with S = all `columns` ranked, into `half` with S = the first half.stride.
REID_HOST_DEVICE void reciprocal_sets(const int32_t* ranking, int columns, int64_t i, const Sets& full,
                                      const Sets& half) {
  int full_size = 0, half_size = 0;
  for (int t = 0; t < columns; ++t) {
    const int32_t j = ranking[i * columns + t];
    const int back = column_of(ranking, columns, j, static_cast<int32_t>(i));
    if (back < 0) continue;
    full.row(i)[full_size++] = j;
    if (t < half.stride && back < half.stride) half.row(i)[half_size++] = j;
  }
  full.size[i] = full_size;
  half.size[i] = half_size;
}

// Longest possible expansion of a row.
REID_HOST_DEVICE int expansion_bound(const Sets& full, const Sets& half) { return full.stride * (1 + half.stride); }

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

// E(i) = r(i) ∪ ⋃{q(c) : c ∈ r(i), |q(c) ∩ r(i)| > 2/3 |q(c)|}, as they come; returns its length. The test and the
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
  return length;
}

// exp(-(2 - 2 cos)): the Gaussian of the squared distance of L2-normalised vectors.
REID_HOST_DEVICE float affinity(float cosine) { return expf(2 * cosine - 2); }

// The same for re-ranking: of the squared distances squared again and divided by the row's largest, which is that to
// the row of its smallest cosine. Where that is rounding error, all rows are equal and weigh the same.
// The bound is for a `smallest` that is none: no weight is zero.
REID_HOST_DEVICE float affinity(float cosine, float smallest) {
  const float largest = 1 - smallest;
  const float ratio = largest > 1e-6f ? fminf((1 - cosine) / largest, 4) : 0;
  return expf(-ratio * ratio);
}

// Rows sum to 1, so Σ max = 2 - s; rounding can carry s past 1.
REID_HOST_DEVICE float jaccard_of(float shared) {
  const float distance = 1 - shared / (2 - shared);
  return distance > 0 ? distance : 0;
}

}  // namespace reid_fast
