// The similarity kernels: 48×48 products of panels, for the vector units a processor turns out to have.
#include <algorithm>
#include <stdexcept>

#include "cpu/panels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define REID_X86 1
#include <immintrin.h>
#if (defined(__clang__) && __clang_major__ >= 16) || (!defined(__clang__) && __GNUC__ >= 12)
#define REID_X86_BF16 1  // compilers that know the instructions and how to ask for them
#endif
#endif

namespace reid_fast {
namespace {

bool always() { return true; }

void multiply_portable(const uint32_t* a, const uint32_t* b, int64_t steps, float* c) {
  const float* left = reinterpret_cast<const float*>(a);
  const float* right = reinterpret_cast<const float*>(b);
  for (int64_t s = 0; s < steps; ++s, left += kPanel, right += kPanel) {
    for (int r = 0; r < kPanel; ++r) {
      for (int q = 0; q < kPanel; ++q) c[r * kPanel + q] += left[r] * right[q];
    }
  }
}

#ifdef REID_X86
// Register tiles of R rows by three vectors: R·3 sums, three loads and R broadcasts per step.

bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#ifdef REID_X86_BF16
bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

__attribute__((target("avx512f,avx512bf16"))) void multiply_bf16(const uint32_t* a, const uint32_t* b, int64_t steps,
                                                                 float* c) {
  constexpr int kRows = 8;
  for (int r = 0; r < kPanel; r += kRows) {
    __m512 sum[kRows][3];
    for (int q = 0; q < kRows; ++q) {
      for (int v = 0; v < 3; ++v) sum[q][v] = _mm512_loadu_ps(c + (r + q) * kPanel + 16 * v);
    }
    const uint32_t* left = a + r;
    const uint32_t* right = b;
    for (int64_t s = 0; s < steps; ++s, left += kPanel, right += kPanel) {
      const __m512bh column[3] = {(__m512bh)_mm512_loadu_si512(right), (__m512bh)_mm512_loadu_si512(right + 16),
                                  (__m512bh)_mm512_loadu_si512(right + 32)};
#pragma GCC unroll 8
      for (int q = 0; q < kRows; ++q) {
        const __m512bh row = (__m512bh)_mm512_set1_epi32(static_cast<int>(left[q]));
        for (int v = 0; v < 3; ++v) sum[q][v] = _mm512_dpbf16_ps(sum[q][v], row, column[v]);
      }
    }
    for (int q = 0; q < kRows; ++q) {
      for (int v = 0; v < 3; ++v) _mm512_storeu_ps(c + (r + q) * kPanel + 16 * v, sum[q][v]);
    }
  }
}

#endif

__attribute__((target("avx512f"))) void multiply_avx512(const uint32_t* a, const uint32_t* b, int64_t steps, float* c) {
  constexpr int kRows = 8;
  for (int r = 0; r < kPanel; r += kRows) {
    __m512 sum[kRows][3];
    for (int q = 0; q < kRows; ++q) {
      for (int v = 0; v < 3; ++v) sum[q][v] = _mm512_loadu_ps(c + (r + q) * kPanel + 16 * v);
    }
    const float* left = reinterpret_cast<const float*>(a) + r;
    const float* right = reinterpret_cast<const float*>(b);
    for (int64_t s = 0; s < steps; ++s, left += kPanel, right += kPanel) {
      const __m512 column[3] = {_mm512_loadu_ps(right), _mm512_loadu_ps(right + 16), _mm512_loadu_ps(right + 32)};
#pragma GCC unroll 8
      for (int q = 0; q < kRows; ++q) {
        const __m512 row = _mm512_set1_ps(left[q]);
        for (int v = 0; v < 3; ++v) sum[q][v] = _mm512_fmadd_ps(row, column[v], sum[q][v]);
      }
    }
    for (int q = 0; q < kRows; ++q) {
      for (int v = 0; v < 3; ++v) _mm512_storeu_ps(c + (r + q) * kPanel + 16 * v, sum[q][v]);
    }
  }
}

__attribute__((target("avx2,fma"))) void multiply_avx2(const uint32_t* a, const uint32_t* b, int64_t steps, float* c) {
  constexpr int kRows = 4;
  for (int part = 0; part < kPanel; part += 24) {
    for (int r = 0; r < kPanel; r += kRows) {
      __m256 sum[kRows][3];
      for (int q = 0; q < kRows; ++q) {
        for (int v = 0; v < 3; ++v) sum[q][v] = _mm256_loadu_ps(c + (r + q) * kPanel + part + 8 * v);
      }
      const float* left = reinterpret_cast<const float*>(a) + r;
      const float* right = reinterpret_cast<const float*>(b) + part;
      for (int64_t s = 0; s < steps; ++s, left += kPanel, right += kPanel) {
        const __m256 column[3] = {_mm256_loadu_ps(right), _mm256_loadu_ps(right + 8), _mm256_loadu_ps(right + 16)};
#pragma GCC unroll 4
        for (int q = 0; q < kRows; ++q) {
          const __m256 row = _mm256_set1_ps(left[q]);
          for (int v = 0; v < 3; ++v) sum[q][v] = _mm256_fmadd_ps(row, column[v], sum[q][v]);
        }
      }
      for (int q = 0; q < kRows; ++q) {
        for (int v = 0; v < 3; ++v) _mm256_storeu_ps(c + (r + q) * kPanel + part + 8 * v, sum[q][v]);
      }
    }
  }
}
#endif

// Fastest first.
const Kernel kKernels[] = {
#ifdef REID_X86
#ifdef REID_X86_BF16
    {"avx512bf16", true, has_bf16, multiply_bf16},
#endif
    {"avx512", false, has_avx512, multiply_avx512},
    {"avx2", false, has_avx2, multiply_avx2},
#endif
    {"portable", false, always, multiply_portable},
};

}  // namespace

std::vector<std::string> similarity_kernels() {
  std::vector<std::string> names;
  for (const Kernel& kernel : kKernels) {
    if (kernel.supported()) names.push_back(kernel.name);
  }
  return names;
}

const Kernel& kernel_named(const std::string& name) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.supported() && (name == "auto" || name == kernel.name)) return kernel;
  }
  throw std::invalid_argument("this processor has no similarity kernel called " + name);
}

}  // namespace reid_fast
