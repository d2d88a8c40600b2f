// The inverted index and the thresholded Jaccard graph, step 7 of the k-reciprocal distance (Zhong et al., CVPR 2017).
#include "cpu/parallel.h"
#include "rows.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kBlock = 256;

// columns.start[g + 1] += the entries of column g.
void count_columns(const SparseRows& rows, int64_t entries, SparseRows& columns) {
  for (int64_t e = 0; e < entries; ++e) {
    if (e + kAhead < entries) __builtin_prefetch(&columns.start[rows.index[e + kAhead] + 1], 1);
    ++columns.start[rows.index[e] + 1];
  }
}

// Asks for what a scatter into columns [begin, end) writes some entries after this one: the slot, then its place.
void ask_for_slots(const int32_t* entry, int64_t begin, int64_t end, const std::vector<int64_t>& slot,
                   const SparseRows& columns) {
  const int32_t coming = entry[kAhead], soon = entry[kAhead / 2];
  if (begin <= coming && coming < end) __builtin_prefetch(&slot[coming - begin], 1);
  if (begin <= soon && soon < end) {
    __builtin_prefetch(columns.index.begin() + slot[soon - begin], 1);
    __builtin_prefetch(columns.value.begin() + slot[soon - begin], 1);
  }
}

// Column g of W: the rows that hold g, ascending. Each thread fills a range of columns, so the order is fixed.
SparseRows inverted(const SparseRows& rows, int64_t n, const Run& run) {
  const int64_t entries = rows.start[n];
  SparseRows columns{Array<int64_t>(n + 1), Array<int32_t>(entries), Array<float>(entries)};
  std::fill(columns.start.begin(), columns.start.begin() + n + 1, 0);
  count_columns(rows, entries, columns);
  for (int64_t g = 0; g < n; ++g) columns.start[g + 1] += columns.start[g];

  parallel_blocks(n, (n + run.threads - 1) / run.threads, run, [&] {
    return [&](int64_t begin, int64_t end) {
      std::vector<int64_t> slot(columns.start.begin() + begin, columns.start.begin() + end);
      const int32_t* all = rows.index.begin() + entries;
      for (int64_t i = 0; i < n; ++i) {
        const int32_t* last = rows.index.begin() + rows.start[i + 1];
        const int32_t* entry = std::lower_bound(rows.index.begin() + rows.start[i], last, begin);
        for (; entry < last && *entry < end; ++entry) {
          if (entry + kAhead < all) ask_for_slots(entry, begin, end, slot, columns);
          const int64_t to = slot[*entry - begin]++;
          columns.index[to] = static_cast<int32_t>(i);
          columns.value[to] = rows.value[entry - rows.index.begin()];
        }
      }
    };
  });
  return columns;
}

// Σ_g min(W_ig, W_jg) for all j < i at once, in a dense accumulator that is all zero between rows.
class RowSums {
 public:
  explicit RowSums(int64_t n) : sum_(n, 0.0f), touched_(n + 1) {}

  template <class Emit>
  void below(const SparseRows& rows, const SparseRows& columns, int64_t i, Emit emit) {
    int64_t count = 0;
    for (int64_t e = rows.start[i]; e < rows.start[i + 1]; ++e) {
      const float weight = rows.value[e];
      for (int64_t c = columns.start[rows.index[e]]; columns.index[c] < i; ++c) {
        const int32_t j = columns.index[c];
        touched_[count] = j;
        count += sum_[j] == 0.0f;
        sum_[j] += std::min(weight, columns.value[c]);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      emit(touched_[t], sum_[touched_[t]]);
      sum_[touched_[t]] = 0.0f;
    }
  }

 private:
  std::vector<float> sum_;
  std::vector<int32_t> touched_;
};

// The lower triangle: row i holds its neighbours j < i, ascending.
SparseRows lower_triangle(const SparseRows& rows, const SparseRows& columns, float max_distance, const Order& order,
                          const Run& run) {
  RowBlocks lower(order, kBlock);
  parallel_blocks(order.size, kBlock, run, [&] {
    using Pair = std::pair<int32_t, float>;
    return [&, sums = RowSums(order.size), near = std::vector<Pair>()](int64_t begin, int64_t end) mutable {
      RowBlocks::Block& block = lower.block_at(begin);
      for (int64_t place = begin; place < end; ++place) {
        ask_for_row(rows, order, place);
        ask_for_row(columns, order, place);
        const int64_t i = order[place];
        near.clear();
        sums.below(rows, columns, i, [&](int32_t j, float shared) {
          const float distance = jaccard_of(shared);
          if (distance <= max_distance) near.emplace_back(j, distance);
        });
        std::sort(near.begin(), near.end());
        for (const Pair& pair : near) {
          block.index.push_back(pair.first);
          block.value.push_back(pair.second);
        }
        lower.set_length(i, static_cast<int64_t>(near.size()));
      }
    };
  });
  return lower.join(run);
}

// Lower triangle, zero diagonal, and the lower triangle's mirror.
SparseRows symmetric(const SparseRows& lower, int64_t n, const Run& run) {
  const int64_t entries = 2 * lower.start[n] + n;
  SparseRows graph{Array<int64_t>(n + 1), Array<int32_t>(entries), Array<float>(entries)};
  std::fill(graph.start.begin(), graph.start.begin() + n + 1, 0);
  count_columns(lower, lower.start[n], graph);
  for (int64_t i = 0; i < n; ++i) graph.start[i + 1] += graph.start[i] + 1 + lower.start[i + 1] - lower.start[i];

  parallel_blocks(n, (n + run.threads - 1) / run.threads, run, [&] {
    return [&](int64_t begin, int64_t end) {
      std::vector<int64_t> slot(graph.start.begin() + begin, graph.start.begin() + end);
      const int32_t* all = lower.index.begin() + lower.start[n];
      auto append = [&](int64_t i, int64_t j, float distance) {
        const int64_t to = slot[i - begin]++;
        graph.index[to] = static_cast<int32_t>(j);
        graph.value[to] = distance;
      };
      for (int64_t i = begin; i < n; ++i) {
        const int32_t* first = lower.index.begin() + lower.start[i];
        const int32_t* last = lower.index.begin() + lower.start[i + 1];
        const float* value = lower.value.begin() + lower.start[i];
        const bool own = i < end;
        for (const int32_t* j = own ? first : std::lower_bound(first, last, begin); j < last; ++j) {
          if (j + kAhead < all) ask_for_slots(j, begin, end, slot, graph);
          if (own) append(i, *j, value[j - first]);
          if (*j >= begin && *j < end) append(*j, i, value[j - first]);
        }
        if (own) append(i, i, 0.0f);
      }
    };
  });
  return graph;
}

}  // namespace

SparseRows threshold_graph(const SparseRows& weights, float max_distance, const Order& order, const Run& run) {
  const SparseRows columns = inverted(weights, order.size, run);
  return symmetric(lower_triangle(weights, columns, max_distance, order, run), order.size, run);
}

}  // namespace reid_fast
