// The inverted index and the thresholded Jaccard graph, step 7 of the k-reciprocal distance (Zhong et al., CVPR 2017).
#include "cpu/parallel.h"
#include "cpu/sort.h"
#include "cpu/sums.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

// Sparse rows by place, end to end.
struct JoinedRows {
  Array<int64_t> start;  // [N + 1]
  Array<Entry> entry;
};

// Rows from entries that come in any order: `for_each(put)` calls put(row, entry) for all of them, the same way each
// time. Every thread goes through all and keeps those of its own range of rows, so their order is fixed.
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

// Column g of W: the rows that hold g, ascending by place.
JoinedRows inverted(const PlacedRows& rows, int64_t n, const Run& run) {
  return gather(n, run, [&](auto put) {
    for (int64_t i = 0; i < n; ++i) {
      for (const Entry& entry : rows.row(i)) put(entry.index, Entry{static_cast<int32_t>(i), entry.value});
    }
  });
}

// Row i holds its neighbours j < i, unsorted. Their sums Σ_g min(W_ig, W_jg) grow all at once, in the order of row i's
// entries: the ascending g that row j has too.
PlacedRows lower_triangle(const PlacedRows& rows, int64_t n, float max_distance, const Run& run) {
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
JoinedRows symmetric(const PlacedRows& lower, int64_t n, const Run& run) {
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

// The rows back in the caller's order, naming rows, ascending. They lie anywhere in memory, so their offsets are asked
// for ahead of their turn and, once these are there, their entries.
SparseRows by_row(JoinedRows placed, const Order& order, const Run& run) {
  const int64_t n = order.size;
  SparseRows rows{Array<int64_t>(n + 1), Array<int32_t>(placed.entry.size), Array<float>(placed.entry.size)};
  rows.start[0] = 0;
  for (int64_t place = 0; place < n; ++place) {
    rows.start[order[place] + 1] = placed.start[place + 1] - placed.start[place];
  }
  for (int64_t i = 0; i < n; ++i) rows.start[i + 1] += rows.start[i];

  parallel_blocks(n, kBlock, run, [&] {
    return [&, sort = RowSort()](int64_t begin, int64_t end) mutable {
      for (int64_t place = begin; place < end; ++place) {
        if (place + 2 * kAhead < n) prefetch(&rows.start[order[place + 2 * kAhead]], 1);
        if (place + kAhead < n) {
          const int64_t to = rows.start[order[place + kAhead]];
          const int64_t size = placed.start[place + kAhead + 1] - placed.start[place + kAhead];
          prefetch(&rows.index[to], size);
          prefetch(&rows.value[to], size);
        }
        Entry* entries = &placed.entry[placed.start[place]];
        const int64_t to = rows.start[order[place]], size = placed.start[place + 1] - placed.start[place];
        sort(order, entries, size);
        for (int64_t t = 0; t < size; ++t) {
          rows.index[to + t] = order[entries[t].index];
          rows.value[to + t] = entries[t].value;
        }
      }
    };
  });
  return rows;
}

}  // namespace

SparseRows threshold_graph(PlacedRows weights, float max_distance, const Order& order, const Run& run) {
  const PlacedRows lower = lower_triangle(weights, order.size, max_distance, run);
  weights = PlacedRows(0);
  return by_row(symmetric(lower, order.size, run), order, run);
}

}  // namespace reid_fast
