// Exact kNN of L2-normalised rows among themselves. Packed products pick the candidates of a row: everything within
// twice a proven error bound of the k-th best product. The fp32 `dot` settles them. Products are symmetric, so a panel
// pair serves both its rows and its columns.
#include "cpu/candidates.h"
#include "cpu/dot.h"
#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kStripe = 3;   // panels of rows that stay in the second-level cache
constexpr int64_t kDepth = 128;  // steps of a panel that stay in the first-level cache
constexpr int64_t kChunk = 512;  // panels of columns between two looks at an interrupt
constexpr int64_t kRows = 64;    // rows settled in one go

void multiply(const Kernel& kernel, const Panels& panels, int64_t p, int64_t q, float* product) {
  std::fill(product, product + kPanel * kPanel, 0.0f);
  for (int64_t step = 0; step < panels.steps(); step += kDepth) {
    kernel.multiply(panels.panel(p) + step * kPanel, panels.panel(q) + step * kPanel,
                    std::min(kDepth, panels.steps() - step), product);
  }
}

REID_VECTOR_VARIANTS bool reaches(const float* product, float row_floor, const float* column_floor) {
  int reached = 0;
  for (int c = 0; c < kPanel; ++c) reached |= (product[c] >= row_floor) | (product[c] >= column_floor[c]);
  return reached != 0;
}

// Offers the products of panels p and q to the rows of p and, where q has not had its own turn, to the rows of q.
void select(const float* product, int64_t p, int64_t q, bool both, int64_t n, Candidates& candidates) {
  float row_floor[kPanel], column_floor[kPanel];
  candidates.floors(p, row_floor);
  if (both) {
    candidates.floors(q, column_floor);
  } else {
    std::fill(column_floor, column_floor + kPanel, kInfinity);
  }
  for (int r = 0; r < kPanel; ++r, product += kPanel) {
    if (!reaches(product, row_floor[r], column_floor)) continue;
    const int64_t i = p * kPanel + r;
    for (int c = 0; c < kPanel; ++c) {
      const int64_t j = q * kPanel + c;
      if (i >= n || j >= n || i == j) continue;
      if (product[c] >= row_floor[r]) candidates.offer(i, product[c], j);
      if (product[c] >= column_floor[c]) candidates.offer(j, product[c], i);
    }
  }
}

void collect(const Kernel& kernel, const Panels& panels, int64_t begin, int64_t end, int64_t n, const Run& run,
             Candidates& candidates) {
  const int64_t first = begin / kPanel, last = (end + kPanel - 1) / kPanel;
  const int64_t stripes = (last - first + kStripe - 1) / kStripe;
  const int64_t chunks = (panels.count() + kChunk - 1) / kChunk;
  parallel_blocks(stripes * chunks, 1, run, [&] {
    return [&, product = std::vector<float>(kPanel * kPanel)](int64_t item, int64_t) mutable {
      const int64_t stripe = first + item / chunks * kStripe, chunk = item % chunks * kChunk;
      for (int64_t q = chunk; q < std::min(chunk + kChunk, panels.count()); ++q) {
        const bool own = first <= q && q < last;
        for (int64_t p = stripe; p < std::min(stripe + kStripe, last); ++p) {
          if (own && q < p) continue;
          multiply(kernel, panels, p, q, product.data());
          select(product.data(), p, q, own && p < q, n, candidates);
        }
      }
    };
  });
}

// The k most similar of each of `rows`, by `dot` against everything: for the rows whose candidates did not fit.
void search_exhaustively(const Features& features, int k, const int64_t* rows, int count,
                         std::vector<std::vector<Scored>>& best) {
  for (int64_t j = 0; j < features.n; ++j) {
    for (int r = 0; r < count; ++r) {
      if (rows[r] == j) continue;
      const Scored scored{dot(features.row(rows[r]), features.row(j), features.width), static_cast<int32_t>(j)};
      std::vector<Scored>& heap = best[r];
      if (static_cast<int>(heap.size()) == k) {
        if (!(scored < heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
      }
      heap.push_back(scored);
      std::push_heap(heap.begin(), heap.end());
    }
  }
  for (int r = 0; r < count; ++r) std::sort_heap(best[r].begin(), best[r].end());
}

// Row after row of the result: the row itself, then its neighbours.
class Result {
 public:
  Result(const Features& features, int k, int64_t begin, int64_t end)
      : features_(features),
        begin_(begin),
        k_(k),
        neighbours_{Array<int32_t>((end - begin) * k), Array<float>((end - begin) * k)} {}

  void write(int64_t row, const std::vector<Scored>& others) {
    int32_t* index = neighbours_.index.begin() + (row - begin_) * k_;
    float* similarity = neighbours_.similarity.begin() + (row - begin_) * k_;
    *index++ = static_cast<int32_t>(row);
    *similarity++ = dot(features_.row(row), features_.row(row), features_.width);
    for (const Scored& scored : others) {
      *index++ = scored.index;
      *similarity++ = scored.similarity;
    }
  }

  Neighbours take() { return std::move(neighbours_); }

 private:
  const Features& features_;
  int64_t begin_;
  int k_;
  Neighbours neighbours_;
};

}  // namespace

Neighbours knn(const Features& features, int k, int64_t begin, int64_t end, const std::string& kernel_name,
               const Run& run) {
  const Kernel& kernel = kernel_named(kernel_name);
  Result result(features, k, begin, end);
  if (k == 1) {
    for (int64_t i = begin; i < end; ++i) result.write(i, {});
    return result.take();
  }

  const Panels panels(features, kernel, run);
  Candidates candidates(features, panels, begin, end, k - 1);
  collect(kernel, panels, begin, end, features.n, run, candidates);

  parallel_blocks(end - begin, kRows, run, [&] {
    return [&, best = std::vector<Scored>()](int64_t from, int64_t to) mutable {
      for (int64_t i = begin + from; i < begin + to; ++i) {
        if (candidates.given_up(i)) continue;
        candidates.settle(i, best);
        result.write(i, best);
      }
    };
  });

  std::vector<int64_t> rest;
  for (int64_t i = begin; i < end; ++i) {
    if (candidates.given_up(i)) rest.push_back(i);
  }
  parallel_blocks(static_cast<int64_t>(rest.size()), kRows, run, [&] {
    return [&](int64_t from, int64_t to) {
      std::vector<std::vector<Scored>> best(to - from);
      search_exhaustively(features, k - 1, rest.data() + from, static_cast<int>(to - from), best);
      for (int64_t r = from; r < to; ++r) result.write(rest[r], best[r - from]);
    };
  });
  return result.take();
}

}  // namespace reid_fast
