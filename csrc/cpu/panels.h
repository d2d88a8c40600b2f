// Features packed for the similarity kernels: panels of 48 rows, depth-major, one 32-bit word per row and step.
#pragma once

#include <cstdint>
#include <string>

#include "stages.h"

namespace reid_fast {

constexpr int kPanel = 48;  // rows of a panel: three 16-lane vectors

// One way of multiplying panels. A word holds one fp32 value, or two bf16 values of neighbouring columns.
struct Kernel {
  const char* name;
  bool bf16;
  int unit;    // steps are a multiple of it
  int stripe;  // panels on the left that stay in the second-level cache
  bool (*supported)();
  // c [48, 48] += Σ_step a[step, :]ᵀ b[step, :], a as `arrange` leaves it
  void (*multiply)(const uint32_t* a, const uint32_t* b, int64_t steps, float* c);
  // Steps of a panel as `multiply` wants them on its left side; null: as they are packed.
  void (*arrange)(const uint32_t* panel, int64_t steps, uint32_t* out) = nullptr;
  // Called in a thread before and after its products; null: nothing needs to be.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

// The kernel called `name`, or the fastest this processor has for "auto"; throws std::invalid_argument.
const Kernel& kernel_named(const std::string& name);

class Panels {
 public:
  // `places`: the row at each place, 48 places a panel; -1 for none.
  Panels(const Features& features, const std::vector<int32_t>& places, const Kernel& kernel, const Run& run);

  int64_t count() const { return count_; }
  int64_t steps() const { return steps_; }
  const uint32_t* panel(int64_t p) const { return words_.begin() + p * steps_ * kPanel; }

  // |x·y - product of the packed rows| is at most error_of(place) for the row x there and any other row y: the rounding
  // of the packed values by their actual residuals, and of the sums by the standard bound for any order.
  float error_of(int64_t place) const;

 private:
  void pack(const Features& features, const int32_t* rows, int64_t p);

  const Kernel& kernel_;
  int64_t width_, steps_, count_;
  Array<uint32_t> words_;
  Array<float> norm_, residual_;  // of the packed row; of the row minus the packed row
  float largest_norm_ = 0, largest_residual_ = 0;
};

}  // namespace reid_fast
