// Rows that are equal to the bit: a still camera sends the same image for hours, and an error bound cannot tell its
// features apart.
#pragma once

#include <vector>

#include "stages.h"

namespace reid_fast {

// Groups of equal rows, each named by its first row.
class EqualRows {
 public:
  EqualRows(const Features& features, const Run& run);

  // Whether no two rows are equal.
  bool none() const { return member_.empty(); }

  int64_t groups() const { return groups_; }

  int32_t first(int64_t row) const { return none() ? static_cast<int32_t>(row) : first_[row]; }

  struct Members {
    const int32_t *begin_, *end_;
    const int32_t* begin() const { return begin_; }
    const int32_t* end() const { return end_; }
  };

  // The rows equal to a first row, itself among them, ascending; only where there are equal rows.
  Members members(int32_t first) const { return {&member_[0] + start_[first], &member_[0] + start_[first + 1]}; }

 private:
  int64_t groups_ = 0;
  std::vector<int32_t> first_;   // [N]
  std::vector<int64_t> start_;   // [N + 1]; nothing lies between the starts of a row that is not a first one
  std::vector<int32_t> member_;  // [N]
};

}  // namespace reid_fast
