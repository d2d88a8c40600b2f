#include "cpu/panels.h"

#include <cmath>
#include <cstring>

#include "cpu/parallel.h"

namespace reid_fast {
namespace {

constexpr double kUnit = 1.0 / (1 << 23);  // twice the unit roundoff of fp32: covers kernels that truncate

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Round to nearest, ties to even; the rows are finite.
uint32_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

float from_bf16(uint32_t half) {
  const uint32_t bits = half << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

Panels::Panels(const Features& features, const std::vector<int32_t>& places, const Kernel& kernel, const Run& run)
    : kernel_(kernel),
      width_(features.width),
      steps_(((kernel.bf16 ? (features.width + 1) / 2 : features.width) + kernel.unit - 1) / kernel.unit * kernel.unit),
      count_(static_cast<int64_t>(places.size()) / kPanel),
      words_(count_ * steps_ * kPanel),
      norm_(count_ * kPanel),
      residual_(count_ * kPanel) {
  parallel_blocks(count_, 1, run, [&] { return [&](int64_t p, int64_t) { pack(features, &places[p * kPanel], p); }; });
  for (int64_t i = 0; i < norm_.size; ++i) {
    largest_norm_ = std::max(largest_norm_, norm_[i]);
    largest_residual_ = std::max(largest_residual_, residual_[i]);
  }
}

void Panels::pack(const Features& features, const int32_t* rows, int64_t p) {
  uint32_t* words = words_.begin() + p * steps_ * kPanel;
  for (int r = 0; r < kPanel; ++r) {
    const int64_t i = p * kPanel + r;
    const float* row = rows[r] >= 0 ? features.row(rows[r]) : nullptr;
    double norm = 0, residual = 0;
    auto packed = [&](int64_t d) -> uint32_t {
      if (!row || d >= width_) return 0;
      const uint32_t half = to_bf16(row[d]);
      const double value = from_bf16(half), rest = row[d] - value;
      norm += value * value;
      residual += rest * rest;
      return half;
    };
    for (int64_t s = 0; s < steps_; ++s) {
      if (kernel_.bf16) {
        const uint32_t low = packed(2 * s);
        words[s * kPanel + r] = low | packed(2 * s + 1) << 16;
      } else {
        const float value = row ? row[s] : 0;
        norm += double{value} * value;
        words[s * kPanel + r] = bits_of(value);
      }
    }
    norm_[i] = static_cast<float>(std::sqrt(norm) * (1 + kUnit));
    residual_[i] = static_cast<float>(std::sqrt(residual) * (1 + kUnit));
  }
}

float Panels::error_of(int64_t place) const {
  // x = b + r: x·y - b·b' = b·r' + r·b' + r·r'; then the sums of the product and of the settling `dot`.
  const double norm = norm_[place], residual = residual_[place];
  const double rounding = norm * largest_residual_ + residual * largest_norm_ + residual * largest_residual_;
  const double sums = 2 * (width_ + 64) * kUnit * (norm + residual) * (largest_norm_ + largest_residual_);
  return static_cast<float>((rounding + sums) * (1 + kUnit));
}

}  // namespace reid_fast
