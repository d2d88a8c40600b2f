// Exact kNN of L2-normalised rows among themselves. Packed products pick the candidates of a row: everything within
// twice a proven error bound of the k-th best product. The fp32 `dot` settles them. Products are symmetric, so a panel
// pair serves both its rows and its columns. Of rows that are equal to the bit one is searched and found for all.
#include <numeric>
#include <optional>

#include "cpu/candidates.h"
#include "cpu/dot.h"
#include "cpu/equal_rows.h"
#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "stages.h"

namespace reid_fast {
namespace {

constexpr int64_t kDepth = 128;  // steps of a panel that stay in the first-level cache
constexpr int64_t kChunk = 512;  // panels of columns between two looks at an interrupt
constexpr int64_t kRows = 64;    // rows settled in one go

struct Range {
  int64_t begin, end;
};

// A thread's products of a stripe of panels with others.
class Products {
 public:
  Products(const Kernel& kernel, const Panels& panels)
      : kernel_(kernel),
        panels_(panels),
        left_(kernel.arrange ? kernel.stripe * size() : 0),
        product_(kPanel * kPanel) {}

  // Calls `use(p, q, product)` for the panels p of the stripe and the others q of which `wanted(p, q)` says so.
  template <class Wanted, class Use>
  void each(Range stripe, Range others, Wanted wanted, Use use) {
    if (kernel_.arrange) {
      for (int64_t p = stripe.begin; p < stripe.end; ++p) {
        kernel_.arrange(panels_.panel(p), panels_.steps(), left_.data() + (p - stripe.begin) * size());
      }
    }
    if (kernel_.begin) kernel_.begin();
    for (int64_t q = others.begin; q < others.end; ++q) {
      for (int64_t p = stripe.begin; p < stripe.end; ++p) {
        if (!wanted(p, q)) continue;
        multiply(kernel_.arrange ? left_.data() + (p - stripe.begin) * size() : panels_.panel(p), panels_.panel(q));
        use(p, q, product_.data());
      }
    }
    if (kernel_.end) kernel_.end();
  }

 private:
  int64_t size() const { return panels_.steps() * kPanel; }

  void multiply(const uint32_t* left, const uint32_t* right) {
    std::fill(product_.begin(), product_.end(), 0.0f);
    for (int64_t step = 0; step < panels_.steps(); step += kDepth) {
      kernel_.multiply(left + step * kPanel, right + step * kPanel, std::min(kDepth, panels_.steps() - step),
                       product_.data());
    }
  }

  const Kernel& kernel_;
  const Panels& panels_;
  std::vector<uint32_t> left_;  // the stripe, as the kernel wants it
  std::vector<float> product_;
};

REID_VECTOR_VARIANTS void negate(float* product) {
  for (int t = 0; t < kPanel * kPanel; ++t) product[t] = -product[t];
}

REID_VECTOR_VARIANTS bool reaches(const float* product, float row_floor, const float* column_floor) {
  int reached = 0;
  for (int c = 0; c < kPanel; ++c) reached |= (product[c] >= row_floor) | (product[c] >= column_floor[c]);
  return reached != 0;
}

// Offers the products of panels p and q to the rows of p and, where q has not had its own turn, to the rows of q.
void select(const float* product, int64_t p, int64_t q, bool both, Candidates& candidates) {
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
      if (candidates.row_at(i) < 0 || candidates.row_at(j) < 0 || i == j) continue;
      if (product[c] >= row_floor[r]) candidates.offer(i, product[c], candidates.row_at(j));
      if (product[c] >= column_floor[c]) candidates.offer(j, product[c], candidates.row_at(i));
    }
  }
}

// What is looked for in one go, the nearest first.
using Wanted = std::vector<Candidates*>;

// Offers the products of a stripe of panels with others, once for a pair of which both are among `own`.
void offer_stripe(Products& products, Range stripe, Range others, Range own, const Wanted& wanted) {
  const auto shared = [&](int64_t q) { return own.begin <= q && q < own.end; };
  products.each(
      stripe, others, [&](int64_t p, int64_t q) { return !shared(q) || p <= q; },
      [&](int64_t p, int64_t q, float* product) {
        float sense = kNearest;
        for (Candidates* candidates : wanted) {
          if (candidates->sense() != sense) negate(product);
          sense = candidates->sense();
          select(product, p, q, shared(q) && p < q, *candidates);
        }
      });
}

Range stripe_of(int64_t number, Range of, const Kernel& kernel) {
  const int64_t first = of.begin + number * kernel.stripe;
  return {first, std::min(first + kernel.stripe, of.end)};
}

void collect(const Kernel& kernel, const Panels& panels, Range own, const Run& run, const Wanted& wanted) {
  const int64_t stripes = (own.end - own.begin + kernel.stripe - 1) / kernel.stripe;
  const int64_t chunks = (panels.count() + kChunk - 1) / kChunk;
  parallel_blocks(stripes * chunks, 1, run, [&] {
    return [&, products = Products(kernel, panels)](int64_t item, int64_t) mutable {
      const int64_t chunk = item % chunks * kChunk;
      const Range others{chunk, std::min(chunk + kChunk, panels.count())};
      offer_stripe(products, stripe_of(item / chunks, own, kernel), others, own, wanted);
    };
  });
}

// The k best of each of `rows`, by `dot` times the sense against what `for_each_other` names: for the rows whose
// candidates did not fit.
template <class ForEachOther>
void search_exhaustively(const Features& features, int k, float sense, const int32_t* rows, int count,
                         ForEachOther for_each_other, std::vector<std::vector<Scored>>& best) {
  for_each_other([&](int32_t j) {
    for (int r = 0; r < count; ++r) {
      if (rows[r] == j) continue;
      const Scored scored{sense * dot(features.row(rows[r]), features.row(j), features.width), j};
      std::vector<Scored>& heap = best[r];
      if (static_cast<int>(heap.size()) == k) {
        if (!(scored < heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
      }
      heap.push_back(scored);
      std::push_heap(heap.begin(), heap.end());
    }
  });
  for (int r = 0; r < count; ++r) std::sort_heap(best[r].begin(), best[r].end());
}

// Row after row of the result: the row itself, then its neighbours.
class Result {
 public:
  Result(const Features& features, int k, int64_t begin, int64_t end)
      : features_(features),
        begin_(begin),
        end_(end),
        k_(k),
        neighbours_{Array<int32_t>((end - begin) * k), Array<float>((end - begin) * k)} {}

  // The first k - 1 of `others` that are not the row itself.
  void write(int64_t row, const std::vector<Scored>& others) {
    int32_t* index = neighbours_.index.begin() + (row - begin_) * k_;
    float* similarity = neighbours_.similarity.begin() + (row - begin_) * k_;
    const int32_t* last = index + k_;
    *index++ = static_cast<int32_t>(row);
    *similarity++ = similarity_to_itself(row);
    for (auto scored = others.begin(); index < last; ++scored) {
      if (scored->index == row) continue;
      *index++ = scored->index;
      *similarity++ = scored->similarity;
    }
  }

  // Writes all rows that are equal to the first row of a group: `others` are the first rows of the groups nearest to
  // it.
  void write(int32_t first, const std::vector<Scored>& others, const EqualRows& equal) {
    if (equal.none()) return write(first, others);
    std::vector<Scored> all;
    const auto add = [&](float similarity, int32_t group) {
      int count = 0;
      for (int32_t member : equal.members(group)) {
        if (count++ == k_) break;
        all.push_back({similarity, member});
      }
    };
    add(similarity_to_itself(first), first);
    for (const Scored& scored : others) add(scored.similarity, scored.index);
    std::partial_sort(all.begin(), all.begin() + k_, all.end());
    for (int32_t member : equal.members(first)) {
      if (begin_ <= member && member < end_) write(member, all);
    }
  }

  Neighbours take() { return std::move(neighbours_); }

 private:
  float similarity_to_itself(int64_t row) const { return dot(features_.row(row), features_.row(row), features_.width); }

  const Features& features_;
  int64_t begin_, end_;
  int k_;
  Neighbours neighbours_;
};

// The smallest cosine of each row with another.
class Smallest {
 public:
  Smallest(const Features& features, int64_t begin, int64_t end)
      : features_(features), begin_(begin), end_(end), cosine_(end - begin) {}

  // Writes all rows that are equal to the first row of a group; `best` is empty where all rows are equal.
  void write(int32_t first, const std::vector<Scored>& best, const EqualRows& equal) {
    const float to_itself = dot(features_.row(first), features_.row(first), features_.width);
    const float smallest = best.empty() ? to_itself : -best.front().similarity;
    if (equal.none()) {
      cosine_[first - begin_] = smallest;
      return;
    }
    const auto members = equal.members(first);
    const float among = members.end() - members.begin() > 1 ? std::min(smallest, to_itself) : smallest;
    for (int32_t member : members) {
      if (begin_ <= member && member < end_) cosine_[member - begin_] = among;
    }
  }

  Array<float> take() { return std::move(cosine_); }

 private:
  const Features& features_;
  int64_t begin_, end_;
  Array<float> cosine_;
};

// Gives `write` the rows at the first `count` places whose candidates settle them; returns the places of the others.
template <class Write>
std::vector<int64_t> settle(Candidates& candidates, int64_t count, const Run& run, Write write) {
  parallel_blocks(count, kRows, run, [&] {
    return [&, best = std::vector<Scored>()](int64_t from, int64_t to) mutable {
      for (int64_t i = from; i < to; ++i) {
        if (candidates.row_at(i) < 0 || candidates.given_up(i)) continue;
        candidates.settle(i, best);
        write(candidates.row_at(i), best);
      }
    };
  });
  std::vector<int64_t> rest;
  for (int64_t i = 0; i < count; ++i) {
    if (candidates.row_at(i) >= 0 && candidates.given_up(i)) rest.push_back(i);
  }
  return rest;
}

// What a search of rows [begin, end) has at its places: the first row of each group of equal ones. Those that have a
// member among the rows come first.
struct Search {
  std::vector<int32_t> places;  // whole panels; -1 where no row is
  int64_t own = 0;              // how many are searched for
};

Search search_of(const EqualRows& equal, int64_t n, int64_t begin, int64_t end) {
  std::vector<bool> wanted(n);
  for (int64_t i = begin; i < end; ++i) wanted[equal.first(i)] = true;
  Search search;
  for (const bool own : {true, false}) {
    for (int64_t i = 0; i < n; ++i) {
      if (equal.first(i) == i && wanted[i] == own) search.places.push_back(static_cast<int32_t>(i));
    }
    if (own) search.own = static_cast<int64_t>(search.places.size());
  }
  search.places.resize((search.places.size() + kPanel - 1) / kPanel * kPanel, -1);
  return search;
}

// Gives `result` what was found of the rows at `places`, the first `own` of which were searched for.
template <class Written>
void settle_all(const Features& features, const Search& search, int k, Candidates& candidates, const EqualRows& equal,
                const Run& run, Written& result) {
  const auto write = [&](int32_t row, const std::vector<Scored>& best) { result.write(row, best, equal); };
  std::vector<int32_t> rest;
  for (int64_t place : settle(candidates, search.own, run, write)) rest.push_back(search.places[place]);
  parallel_blocks(static_cast<int64_t>(rest.size()), kRows, run, [&] {
    return [&](int64_t from, int64_t to) {
      std::vector<std::vector<Scored>> best(to - from);
      const auto everything = [&](auto take) {
        for (int32_t j : search.places) {
          if (j >= 0) take(j);
        }
      };
      search_exhaustively(features, k, candidates.sense(), rest.data() + from, static_cast<int>(to - from), everything,
                          best);
      for (int64_t r = from; r < to; ++r) write(rest[r], best[r - from]);
    };
  });
}

// Gives `nearest` the k best of all other groups of equal rows, or all if they are fewer, and `smallest` the farthest,
// for each of the rows [begin, end); null: it is not looked for.
void search(const Features& features, int k, int64_t begin, int64_t end, const Kernel& kernel, const Run& run,
            Result& nearest, Smallest* smallest = nullptr) {
  const EqualRows equal(features, run);
  const Search search = search_of(equal, features.n, begin, end);
  if (equal.groups() == 1) {
    if (search.own == 0) return;
    nearest.write(search.places[0], {}, equal);
    if (smallest) smallest->write(search.places[0], {}, equal);
    return;
  }
  const Panels panels(features, search.places, kernel, run);
  const int others = static_cast<int>(std::min<int64_t>(k, equal.groups() - 1));
  Candidates near(features, search.places, panels, search.own, others);
  std::optional<Candidates> far;
  Wanted wanted{&near};
  if (smallest) wanted.push_back(&far.emplace(features, search.places, panels, search.own, 1, kFarthest));
  collect(kernel, panels, {0, (search.own + kPanel - 1) / kPanel}, run, wanted);
  settle_all(features, search, others, near, equal, run, nearest);
  if (smallest) settle_all(features, search, 1, *far, equal, run, *smallest);
}

}  // namespace

Neighbours knn(const Features& features, int k, int64_t begin, int64_t end, const std::string& kernel_name,
               const Run& run) {
  const Kernel& kernel = kernel_named(kernel_name);
  Result result(features, k, begin, end);
  if (k == 1) {
    for (int64_t i = begin; i < end; ++i) result.write(i, {});
    return result.take();
  }
  search(features, k - 1, begin, end, kernel, run, result);
  return result.take();
}

std::pair<Neighbours, Array<float>> knn_and_farthest(const Features& features, int k, int64_t begin, int64_t end,
                                                     const std::string& kernel_name, const Run& run) {
  Result nearest(features, k, begin, end);
  Smallest smallest(features, begin, end);
  search(features, k - 1, begin, end, kernel_named(kernel_name), run, nearest, &smallest);
  return {nearest.take(), smallest.take()};
}

Neighbours knn_in_lists(const Features& features, int k, const Lists& lists, const std::string& kernel_name,
                        const Run& run) {
  const Kernel& kernel = kernel_named(kernel_name);
  // Each list begins a panel, so what a panel is multiplied with is a matter of its list.
  std::vector<int32_t> places;
  std::vector<int64_t> first_panel{0};
  std::vector<std::pair<int64_t, Range>> stripes;  // of panels, with their lists
  for (int64_t list = 0; list < lists.count; ++list) {
    places.insert(places.end(), lists.row + lists.start[list], lists.row + lists.start[list + 1]);
    places.resize((places.size() + kPanel - 1) / kPanel * kPanel, -1);
    const Range panels{first_panel.back(), static_cast<int64_t>(places.size()) / kPanel};
    for (int64_t s = 0; s * kernel.stripe < panels.end - panels.begin; ++s) {
      stripes.emplace_back(list, stripe_of(s, panels, kernel));
    }
    first_panel.push_back(panels.end);
  }
  const Range all{0, first_panel.back()};

  Result result(features, k, 0, features.n);
  const Panels panels(features, places, kernel, run);
  Candidates candidates(features, places, panels, static_cast<int64_t>(places.size()), k - 1);
  parallel_blocks(static_cast<int64_t>(stripes.size()), 1, run, [&] {
    return [&, products = Products(kernel, panels)](int64_t number, int64_t) mutable {
      const auto [list, stripe] = stripes[number];
      for (int64_t e = lists.near_start[list]; e < lists.near_start[list + 1]; ++e) {
        const Range others{first_panel[lists.near[e]], first_panel[lists.near[e] + 1]};
        if (lists.near[e] < list) continue;  // has had its turn
        offer_stripe(products, stripe, others, all, {&candidates});
      }
    };
  });

  const auto write = [&](int64_t row, const std::vector<Scored>& best) { result.write(row, best); };
  const std::vector<int64_t> rest = settle(candidates, static_cast<int64_t>(places.size()), run, write);
  parallel_blocks(static_cast<int64_t>(rest.size()), 1, run, [&] {
    return [&](int64_t number, int64_t) {
      const int64_t panel = rest[number] / kPanel;
      const int64_t list = std::upper_bound(first_panel.begin(), first_panel.end(), panel) - first_panel.begin() - 1;
      const auto near = [&](auto take) {
        for (int64_t e = lists.near_start[list]; e < lists.near_start[list + 1]; ++e) {
          for (int64_t t = lists.start[lists.near[e]]; t < lists.start[lists.near[e] + 1]; ++t) take(lists.row[t]);
        }
      };
      std::vector<std::vector<Scored>> best(1);
      search_exhaustively(features, k - 1, kNearest, &places[rest[number]], 1, near, best);
      result.write(places[rest[number]], best[0]);
    };
  });
  return result.take();
}

Neighbours neighbours_of_neighbours(const Features& features, const Ranking& ranking, const int32_t* sequence,
                                    const Run& run) {
  const int k = ranking.k;
  Result result(features, k, 0, ranking.n);
  parallel_blocks(ranking.n, kRows, run, [&] {
    return [&, seen = std::vector<int32_t>(ranking.n, -1), best = std::vector<Scored>()](int64_t from,
                                                                                         int64_t to) mutable {
      for (int64_t turn = from; turn < to; ++turn) {
        const int32_t i = sequence[turn];
        const int32_t* own = ranking.index + int64_t{i} * k;
        best.clear();
        for (int t = 0; t < k; ++t) {
          seen[own[t]] = i;
          if (t > 0) best.push_back({ranking.similarity[int64_t{i} * k + t], own[t]});
        }
        for (int t = 1; t < k; ++t) {
          const int32_t* theirs = ranking.index + int64_t{own[t]} * k;
          for (int u = 1; u < k; ++u) {
            if (seen[theirs[u]] == i) continue;
            seen[theirs[u]] = i;
            best.push_back({dot(features.row(i), features.row(theirs[u]), features.width), theirs[u]});
          }
        }
        std::partial_sort(best.begin(), best.begin() + k - 1, best.end());
        best.resize(k - 1);
        result.write(i, best);
      }
    };
  });
  return result.take();
}

}  // namespace reid_fast
