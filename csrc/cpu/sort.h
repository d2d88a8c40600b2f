// Sorting the entries of a row.
#pragma once

#include "stages.h"

namespace reid_fast {

// Sorts the entries of a row, which name different positions, by the rows at these positions.
class RowSort {
 public:
  void operator()(const Permutation& permutation, Entry* entries, int64_t size);

 private:
  // Scratch memory.
  std::vector<int32_t> row_, rank_;
  std::vector<Entry> copy_;
};

}  // namespace reid_fast
