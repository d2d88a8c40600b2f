// DBSCAN on a stored distance graph by union-find (Ester et al., KDD 1996).
#include <algorithm>
#include <chrono>

#include "stages.h"

namespace reid_fast {
namespace {

// A forest whose roots are the lowest members of their trees.
template <class Index>
class Components {
 public:
  explicit Components(int64_t n) : parent_(n) {
    for (int64_t i = 0; i < n; ++i) parent_[i] = static_cast<Index>(i);
  }

  Index root(Index i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }

  // Joins the trees of a root and any member, which mostly are one already; returns the root of both.
  Index join(Index top, Index i) {
    if (parent_[i] == top) return top;
    const Index other = root(i), low = std::min(top, other);
    parent_[std::max(top, other)] = low;
    return low;
  }

 private:
  Array<Index> parent_;
};

// Has the watcher told of a loop of this thread: when it starts and a few times a second.
class Pace {
 public:
  Pace(int64_t total, const Run& run) : total_(total), run_(run) {}

  void at(int64_t done) {
    constexpr int64_t kLook = 1 << 20;  // between looks at the clock
    if (done < look_) return;
    look_ = done + kLook;
    const auto now = std::chrono::steady_clock::now();
    if (now - told_ < std::chrono::milliseconds(100)) return;
    told_ = now;
    if (run_.watch(done, total_)) throw Interrupted();
  }

 private:
  int64_t total_;
  const Run& run_;
  int64_t look_ = 0;
  std::chrono::steady_clock::time_point told_{};
};

}  // namespace

template <class Offset, class Index, class Value>
void dbscan(const Graph<Offset, Index, Value>& graph, Value eps, int64_t min_samples, int64_t* labels, const Run& run) {
  const int64_t entries = graph.start[graph.n];
  Pace pace(2 * entries, run);
  // Of each pair of core points the higher joins them: by then both are known for what they are.
  Array<char> core(graph.n);
  Components<Index> clusters(graph.n);
  for (int64_t i = 0; i < graph.n; ++i) {
    pace.at(graph.start[i]);
    int64_t neighbours = 0;
    for (Offset e = graph.start[i]; e < graph.start[i + 1]; ++e) neighbours += graph.value[e] <= eps;
    core[i] = neighbours >= min_samples;
    if (!core[i]) continue;
    Index root = static_cast<Index>(i);
    for (Offset e = graph.start[i]; e < graph.start[i + 1]; ++e) {
      const Index j = graph.index[e];
      if (j < i && graph.value[e] <= eps && core[j]) root = clusters.join(root, j);
    }
  }

  // A root is the lowest core point of its cluster, so it is met before the others.
  int64_t count = 0;
  for (int64_t i = 0; i < graph.n; ++i) {
    const int64_t root = core[i] ? clusters.root(static_cast<Index>(i)) : i;
    labels[i] = !core[i] ? -1 : root == i ? count++ : labels[root];
  }

  // Clusters grow one after another, so the first to reach a border point has the lowest number.
  for (int64_t i = 0; i < graph.n; ++i) {
    pace.at(entries + graph.start[i]);
    if (core[i]) continue;
    for (Offset e = graph.start[i]; e < graph.start[i + 1]; ++e) {
      const int64_t j = graph.index[e];
      if (graph.value[e] <= eps && core[j] && (labels[i] < 0 || labels[j] < labels[i])) labels[i] = labels[j];
    }
  }
}

template void dbscan(const Graph<int64_t, int32_t, float>&, float, int64_t, int64_t*, const Run&);
template void dbscan(const Graph<int32_t, int32_t, float>&, float, int64_t, int64_t*, const Run&);
template void dbscan(const Graph<int32_t, int32_t, double>&, double, int64_t, int64_t*, const Run&);
template void dbscan(const Graph<int64_t, int64_t, float>&, float, int64_t, int64_t*, const Run&);
template void dbscan(const Graph<int64_t, int64_t, double>&, double, int64_t, int64_t*, const Run&);

}  // namespace reid_fast
