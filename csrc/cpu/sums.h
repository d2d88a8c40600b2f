// Sparse sums of one row at a time.
#pragma once

#include <cstring>
#include <vector>

#include "stages.h"

namespace reid_fast {

// Positive terms added by place, in a dense array that is all zero between rows.
class Sums {
 public:
  explicit Sums(int64_t n) : sum_(n, 0.0f), touched_(n + 1) {}

  void add(int32_t place, float term) {
    int32_t bits;  // all zero for a zero, which is quicker to see than in a float
    std::memcpy(&bits, &sum_[place], sizeof bits);
    touched_[count_] = place;
    count_ += bits == 0;
    sum_[place] += term;
  }

  // take(place, sum) for every place that was added to, in the order of their first terms; zero again afterwards.
  template <class Take>
  void drain(Take take) {
    for (int64_t t = 0; t < count_; ++t) {
      take(touched_[t], sum_[touched_[t]]);
      sum_[touched_[t]] = 0.0f;
    }
    count_ = 0;
  }

 private:
  std::vector<float> sum_;
  Array<int32_t> touched_;
  int64_t count_ = 0;
};

}  // namespace reid_fast
