// The candidates of each row of a search: everything that the error bound of the products cannot exclude.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/dot.h"
#include "cpu/panels.h"
#include "stages.h"

namespace reid_fast {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Scored {
  float similarity;
  int32_t index;

  // Best first: the more similar, then the lower index.
  bool operator<(const Scored& other) const {
    return similarity > other.similarity || (similarity == other.similarity && index < other.index);
  }
};

class Spinlock {
 public:
  void lock() {
    while (flag_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() { flag_.clear(std::memory_order_release); }

 private:
  std::atomic_flag flag_ = ATOMIC_FLAG_INIT;
};

// What is looked for: rows are scored by this times their similarity.
constexpr float kNearest = 1, kFarthest = -1;

// The candidates of the rows at the first `count` places, in buffers of a fixed size.
class Candidates {
 public:
  Candidates(const Features& features, const std::vector<int32_t>& places, const Panels& panels, int64_t count, int k,
             float sense = kNearest)
      : features_(features),
        places_(places),
        panels_(panels),
        count_(count),
        k_(k),
        sense_(sense),
        capacity_(std::max(3 * k, 64)),
        entry_(count * capacity_),
        rows_(count) {
    // What is at no row's place reaches no floor.
    for (int64_t i = 0; i < count; ++i) {
      if (places[i] < 0) rows_[i].floor.store(kInfinity, std::memory_order_relaxed);
    }
  }

  int32_t row_at(int64_t i) const { return places_[i]; }
  float sense() const { return sense_; }

  // Products, times the sense, below the floor are of no interest. Others may raise it meanwhile: a stale one lets a
  // few more through.
  void floors(int64_t panel, float* out) const {
    for (int r = 0; r < kPanel; ++r) {
      const int64_t i = panel * kPanel + r;
      out[r] = i < count_ ? rows_[i].floor.load(std::memory_order_relaxed) : kInfinity;
    }
  }

  void offer(int64_t i, float product, int32_t other) {
    Row& row = rows_[i];
    std::lock_guard<Spinlock> lock(row.lock);
    if (product < row.floor.load(std::memory_order_relaxed)) return;
    entries(i)[row.size++] = {product, other};
    if (row.size == capacity_) row.floor.store(make_room(i, row), std::memory_order_relaxed);
  }

  // Too many rows lie too close for the error bound to tell them apart.
  bool given_up(int64_t i) const { return rows_[i].floor.load(std::memory_order_relaxed) == kInfinity; }

  // The k most similar of a row that was not given up, scored by `dot`, best first.
  void settle(int64_t i, std::vector<Scored>& best) {
    Row& row = rows_[i];
    keep_band(i, row);
    const Scored* candidate = entries(i);
    const Scored* end = candidate + row.size;
    std::sort(entries(i), entries(i) + row.size);
    best.clear();
    float worst = kInfinity;
    for (; candidate < end && static_cast<int>(best.size()) < k_; ++candidate) {
      best.push_back(scored(i, candidate->index));
      worst = std::min(worst, best.back().similarity);
    }
    const float floor = worst - panels_.error_of(i);
    for (; candidate < end && candidate->similarity >= floor; ++candidate) best.push_back(scored(i, candidate->index));
    std::partial_sort(best.begin(), best.begin() + k_, best.end());
    best.resize(k_);
  }

 private:
  static constexpr int kPatience = 8;  // times a row may be settled early before it is given up

  struct Row {
    std::atomic<float> floor{-kInfinity};
    int32_t size = 0;
    int32_t settled = 0;
    Spinlock lock;
  };

  Scored* entries(int64_t i) { return entry_.begin() + i * capacity_; }

  Scored scored(int64_t i, int32_t j) const {
    return {sense_ * dot(features_.row(places_[i]), features_.row(j), features_.width), j};
  }

  // Returns the floor of what may still be among the k best.
  float make_room(int64_t i, Row& row) {
    const float floor = keep_band(i, row);
    if (row.size <= capacity_ * 3 / 4) return floor;
    if (++row.settled > kPatience) return kInfinity;
    Scored* first = entries(i);
    for (int t = 0; t < row.size; ++t) first[t] = scored(i, first[t].index);
    std::nth_element(first, first + k_ - 1, first + row.size);
    row.size = k_;
    return first[k_ - 1].similarity - panels_.error_of(i);
  }

  // Drops what is provably not among the k best: two products that differ by more than twice the error bound are in
  // the right order. Returns the floor.
  float keep_band(int64_t i, Row& row) {
    Scored* first = entries(i);
    Scored* last = first + row.size;
    std::nth_element(first, first + k_ - 1, last);
    const float floor = first[k_ - 1].similarity - 2 * panels_.error_of(i);
    last = std::partition(first + k_, last, [floor](const Scored& entry) { return entry.similarity >= floor; });
    row.size = static_cast<int32_t>(last - first);
    return floor;
  }

  const Features& features_;
  const std::vector<int32_t>& places_;
  const Panels& panels_;
  int64_t count_;
  int k_;
  float sense_;
  int capacity_;
  Array<Scored> entry_;
  std::vector<Row> rows_;
};

}  // namespace reid_fast
