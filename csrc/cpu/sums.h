// Sparse sums of one row at a time.
#pragma once

#include <cstring>
#include <vector>

#include "stages.h"

namespace reid_fast {

// Positive terms added by position, in a dense array that is all zero between rows. Others would be noted down more
// than once, beyond the room for that.
class Sums {
 public:
  explicit Sums(int64_t n) : sum_(n, 0.0f), touched_(n + 1) {}

  void add(int32_t position, float term) {
    int32_t bits;  // all zero for a zero, which is quicker to see than in a float
    std::memcpy(&bits, &sum_[position], sizeof bits);
    touched_[count_] = position;
    count_ += bits == 0;
    sum_[position] += term;
  }

  // take(position, sum) for every position that was added to, by their first terms; zero again afterwards.
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
