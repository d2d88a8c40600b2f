// Sorting the entries of a row.
#pragma once

#include "stages.h"

namespace reid_fast {

// Sorts the entries of a row, which name different positions, by the rows at these positions.
class RowSort {
 public:
  void operator()(const Permutation& permutation, Entry* entries, int64_t size);
  // Sorts a row, index and value apart, by its indices, which differ.
  void operator()(int32_t* index, float* value, int64_t size);

 private:
  // Scratch memory.
  std::vector<int32_t> key_, rank_;
  std::vector<Entry> copy_;
};

}  // namespace reid_fast
