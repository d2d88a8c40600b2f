// Sorting the entries of a row.
#pragma once

#include "stages.h"

namespace reid_fast {

// Sorts the entries of a row, which name different places, by the rows at these places.
class RowSort {
 public:
  void operator()(const Order& order, Entry* entries, int64_t size);

 private:
  // Scratch memory.
  std::vector<int32_t> row_, rank_;
  std::vector<Entry> copy_;
};

}  // namespace reid_fast
