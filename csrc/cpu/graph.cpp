// The inverted index and the thresholded Jaccard graph, step 7 of the k-reciprocal distance (Zhong et al., CVPR 2017).
#include "cpu/parallel.h"
#include "cpu/sort.h"
#include "cpu/sums.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

// Permuted sparse rows, end to end.
struct JoinedRows {
  Array<int64_t> start;  // [N + 1]
  Array<Entry> entry;
};

// Rows from entries that come in any sequence: `for_each(put)` calls put(row, entry) for all of them, the same way each
// time. Every thread goes through all and keeps those of its own range of rows, so their sequence is fixed.
template <class ForEach>
JoinedRows gather(int64_t n, const Run& run, ForEach for_each) {
  const int64_t range = (n + run.threads - 1) / run.threads;
  JoinedRows rows{Array<int64_t>(n + 1), {}};
  rows.start[0] = 0;
  parallel_blocks(n, range, run, [&] {
    return [&](int64_t begin, int64_t end) {
      int64_t* length = rows.start.begin() + 1;
      std::fill(length + begin, length + end, 0);
      for_each([&](int64_t row, Entry) {
        if (begin <= row && row < end) ++length[row];
      });
    };
  });
  for (int64_t i = 0; i < n; ++i) rows.start[i + 1] += rows.start[i];

  rows.entry = Array<Entry>(rows.start[n]);
  parallel_blocks(n, range, run, [&] {
    return [&](int64_t begin, int64_t end) {
      std::vector<int64_t> slot(rows.start.begin() + begin, rows.start.begin() + end);
      for_each([&](int64_t row, Entry entry) {
        if (begin <= row && row < end) rows.entry[slot[row - begin]++] = entry;
      });
    };
  });
  return rows;
}

// Column g of W: the rows that hold g, ascending by position.
JoinedRows inverted(const PermutedRows& rows, int64_t n, const Run& run) {
  return gather(n, run, [&](auto put) {
    for (int64_t i = 0; i < n; ++i) {
      for (const Entry& entry : rows.row(i)) put(entry.index, Entry{static_cast<int32_t>(i), entry.value});
    }
  });
}

// Row i holds its neighbours j < i, unsorted. Their sums Σ_g min(W_ig, W_jg) grow all at once, in the sequence of row
// i's entries: the ascending g that row j has too.
PermutedRows lower_triangle(const PermutedRows& rows, int64_t n, float max_distance, const Run& run) {
  const JoinedRows columns = inverted(rows, n, run);
  return fill_rows(n, run, [&] {
    return [&, sums = Sums(n)](int64_t i, std::vector<Entry>& entries) mutable {
      for (const Entry& own : rows.row(i)) {
        for (const Entry* other = &columns.entry[columns.start[own.index]]; other->index < i; ++other) {
          sums.add(other->index, std::min(own.value, other->value));
        }
      }
      sums.drain([&](int32_t j, float shared) {
        const float distance = jaccard_of(shared);
        if (distance <= max_distance) entries.push_back({j, distance});
      });
    };
  });
}

// Lower triangle, zero diagonal, and the lower triangle's mirror.
JoinedRows symmetric(const PermutedRows& lower, int64_t n, const Run& run) {
  return gather(n, run, [&](auto put) {
    for (int64_t i = 0; i < n; ++i) {
      put(i, Entry{static_cast<int32_t>(i), 0.0f});
      for (const Entry& entry : lower.row(i)) {
        put(i, entry);
        put(entry.index, Entry{static_cast<int32_t>(i), entry.value});
      }
    }
  });
}

// The rows back in the caller's sequence, naming rows, ascending. They lie anywhere in memory, so their offsets are
// asked for ahead of their turn and, once these are there, their entries.
Csr by_row(JoinedRows permuted, const Permutation& permutation, const Run& run) {
  const int64_t n = permutation.size;
  Csr rows{Array<int64_t>(n + 1), Array<int32_t>(permuted.entry.size), Array<float>(permuted.entry.size)};
  rows.start[0] = 0;
  for (int64_t position = 0; position < n; ++position) {
    rows.start[permutation[position] + 1] = permuted.start[position + 1] - permuted.start[position];
  }
  for (int64_t i = 0; i < n; ++i) rows.start[i + 1] += rows.start[i];

  parallel_blocks(n, kBlock, run, [&] {
    return [&, sort = RowSort()](int64_t begin, int64_t end) mutable {
      for (int64_t position = begin; position < end; ++position) {
        if (position + 2 * kAhead < n) prefetch(&rows.start[permutation[position + 2 * kAhead]], 1);
        if (position + kAhead < n) {
          const int64_t to = rows.start[permutation[position + kAhead]];
          const int64_t size = permuted.start[position + kAhead + 1] - permuted.start[position + kAhead];
          prefetch(&rows.index[to], size);
          prefetch(&rows.value[to], size);
        }
        Entry* entries = &permuted.entry[permuted.start[position]];
        const int64_t to = rows.start[permutation[position]];
        const int64_t size = permuted.start[position + 1] - permuted.start[position];
        sort(permutation, entries, size);
        for (int64_t t = 0; t < size; ++t) {
          rows.index[to + t] = permutation[entries[t].index];
          rows.value[to + t] = entries[t].value;
        }
      }
    };
  });
  return rows;
}

}  // namespace

Csr threshold_graph(PermutedRows weights, float max_distance, const Permutation& permutation, const Run& run) {
  const PermutedRows lower = lower_triangle(weights, permutation.size, max_distance, run);
  weights = PermutedRows(0);
  return by_row(symmetric(lower, permutation.size, run), permutation, run);
}

}  // namespace reid_fast
