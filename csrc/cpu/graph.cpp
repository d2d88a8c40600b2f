// The inverted index and the thresholded Jaccard graph, step 7 of the k-reciprocal distance (Zhong et al., CVPR 2017).
#include "cpu/parallel.h"
#include "cpu/sort.h"
#include "cpu/sums.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

// Rows at their places in two passes over entries that come in any sequence: `for_each(put)` calls put(row, entry) for
// all of them, the same way each time. Every thread goes through all and keeps those of its own range of rows, so their
// sequence within a row is fixed.
template <class ForEach, class Place>
Array<int64_t> offsets(int64_t n, const Run& run, ForEach for_each, Place place) {
  Array<int64_t> start(n + 1);
  start[0] = 0;
  parallel_blocks(n, (n + run.threads - 1) / run.threads, run, [&] {
    return [&](int64_t begin, int64_t end) {
      std::vector<int64_t> length(end - begin);
      for_each([&](int64_t row, Entry) {
        if (begin <= row && row < end) ++length[row - begin];
      });
      for (int64_t row = begin; row < end; ++row) start[place(row) + 1] = length[row - begin];
    };
  });
  for (int64_t i = 0; i < n; ++i) start[i + 1] += start[i];
  return start;
}

// write(offset, entry) for every entry.
template <class ForEach, class Place, class Write>
void distribute(const Array<int64_t>& start, const Run& run, ForEach for_each, Place place, Write write) {
  const int64_t n = start.size - 1;
  parallel_blocks(n, (n + run.threads - 1) / run.threads, run, [&] {
    return [&](int64_t begin, int64_t end) {
      std::vector<int64_t> next(end - begin);
      for (int64_t row = begin; row < end; ++row) next[row - begin] = start[place(row)];
      for_each([&](int64_t row, Entry entry) {
        if (begin <= row && row < end) write(next[row - begin]++, entry);
      });
    };
  });
}

// Sparse rows, end to end.
struct JoinedRows {
  Array<int64_t> start;  // [N + 1]
  Array<Entry> entry;
};

// Column g of W: the rows that hold g, ascending by position.
JoinedRows inverted(const PermutedRows& rows, int64_t n, const Run& run) {
  const auto for_each = [&](auto put) {
    for (int64_t i = 0; i < n; ++i) {
      for (const Entry& entry : rows.row(i)) put(entry.index, Entry{static_cast<int32_t>(i), entry.value});
    }
  };
  const auto place = [](int64_t position) { return position; };
  JoinedRows columns{offsets(n, run, for_each, place), {}};
  columns.entry = Array<Entry>(columns.start[n]);
  distribute(columns.start, run, for_each, place, [&](int64_t to, Entry entry) { columns.entry[to] = entry; });
  return columns;
}

[[noreturn]] void refuse(const JoinedRows& columns, int64_t most, const Permutation& permutation) {
  int64_t widest = 0, size = 0;
  for (int64_t g = 0; g < permutation.size; ++g) {
    const int64_t held = columns.start[g + 1] - columns.start[g];
    if (held > size) widest = g, size = held;
  }
  throw TooLarge("it has more than " + std::to_string(most) + " entries, for " + std::to_string(size) +
                 " rows have row " + std::to_string(permutation[widest]) + " in common");
}

// Row i holds its neighbours j < i, unsorted. Their sums Σ_g min(W_ig, W_jg) grow all at once, in the sequence of row
// i's entries: the ascending g that row j has too.
PermutedRows lower_triangle(const PermutedRows& rows, float max_distance, const Permutation& permutation,
                            const Run& run, int64_t most) {
  const int64_t n = permutation.size;
  const JoinedRows columns = inverted(rows, n, run);
  std::atomic<int64_t> count{n};  // entries of the graph: the diagonal, and two for one here
  return fill_rows(n, run, [&] {
    return [&, sums = Sums(n)](int64_t i, std::vector<Entry>& entries) mutable {
      for (const Entry& own : rows.row(i)) {
        for (const Entry* other = &columns.entry[columns.start[own.index]]; other->index < i; ++other) {
          sums.add(other->index, std::min(own.value, other->value));
        }
      }
      const size_t before = entries.size();
      sums.drain([&](int32_t j, float shared) {
        const float distance = jaccard_of(shared);
        if (distance <= max_distance) entries.push_back({j, distance});
      });
      const int64_t grown = 2 * static_cast<int64_t>(entries.size() - before);
      if (count.fetch_add(grown, std::memory_order_relaxed) + grown > most) refuse(columns, most, permutation);
    };
  });
}

// Lower triangle, zero diagonal and the lower triangle's mirror, in the caller's sequence, naming rows, ascending.
Csr symmetric(const PermutedRows& lower, const Permutation& permutation, const Run& run) {
  const int64_t n = permutation.size;
  const auto for_each = [&](auto put) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t row = permutation[i];
      put(i, Entry{row, 0.0f});
      for (const Entry& entry : lower.row(i)) {
        put(i, Entry{permutation[entry.index], entry.value});
        put(entry.index, Entry{row, entry.value});
      }
    }
  };
  const auto place = [&](int64_t position) { return int64_t{permutation[position]}; };
  Csr rows{offsets(n, run, for_each, place), {}, {}};
  rows.index = Array<int32_t>(rows.start[n]);
  rows.value = Array<float>(rows.start[n]);
  distribute(rows.start, run, for_each, place, [&](int64_t to, Entry entry) {
    rows.index[to] = entry.index;
    rows.value[to] = entry.value;
  });
  parallel_blocks(n, kBlock, run, [&] {
    return [&, sort = RowSort()](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = rows.start[i];
        sort(&rows.index[first], &rows.value[first], rows.start[i + 1] - first);
      }
    };
  });
  return rows;
}

}  // namespace

Csr threshold_graph(PermutedRows weights, float max_distance, const Permutation& permutation, const Run& run,
                    int64_t most) {
  const PermutedRows lower = lower_triangle(weights, max_distance, permutation, run, most);
  weights = PermutedRows(0);
  return symmetric(lower, permutation, run);
}

}  // namespace reid_fast
