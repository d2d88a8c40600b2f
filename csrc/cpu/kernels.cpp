// The similarity kernels: 48×48 products of panels, for the vector units a processor turns out to have.
#include <algorithm>
#include <stdexcept>

#include "cpu/panels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define REID_X86 1
#include <immintrin.h>
#if (defined(__clang__) && __clang_major__ >= 16) || (!defined(__clang__) && __GNUC__ >= 12)
#define REID_X86_BF16 1  // compilers that know the instructions and how to ask for them
#ifdef __linux__
#define REID_X86_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
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

#ifdef REID_X86_AMX
// Tiles of 16 rows of 16 words: of C, of A with a row of C's each, of B with two columns of A's each in a row. B's are
// panels as they are packed; A's are transposed once for many products.

constexpr int kTile = 16;
constexpr int kThird = kPanel / kTile;

// Linux gives a process the tiles when it asks for them.
bool has_amx() {
  static const bool granted = [] {
    constexpr unsigned kBf16AndTiles = 1u << 22 | 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16AndTiles) != kBf16AndTiles) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr TileShapes() {
    for (int tile = 0; tile < 7; ++tile) {
      row_bytes[tile] = kTile * sizeof(uint32_t);
      rows[tile] = kTile;
    }
  }
};

// Not on the stack: GCC's intrinsic does not say that it reads all of it.
constexpr TileShapes kShapes;

__attribute__((target("amx-tile"))) void begin_amx() { _tile_loadconfig(&kShapes); }

__attribute__((target("amx-tile"))) void end_amx() { _tile_release(); }

void arrange_amx(const uint32_t* panel, int64_t steps, uint32_t* out) {
  for (int64_t s = 0; s < steps; s += kTile, panel += kTile * kPanel) {
    for (int r = 0; r < kPanel; ++r) {
      for (int t = 0; t < kTile; ++t) *out++ = panel[t * kPanel + r];
    }
  }
}

__attribute__((target("amx-tile,amx-bf16"))) void multiply_amx(const uint32_t* a, const uint32_t* b, int64_t steps,
                                                               float* c) {
  constexpr int kAcross = kPanel * sizeof(uint32_t), kAlong = kTile * sizeof(uint32_t);
  for (int third = 0; third < kThird; ++third, a += kTile * kTile, c += kTile * kPanel) {
    _tile_loadd(0, c, kAcross);
    _tile_loadd(1, c + kTile, kAcross);
    _tile_loadd(2, c + 2 * kTile, kAcross);
    for (int64_t s = 0; s < steps; s += kTile) {
      _tile_loadd(3, a + s * kPanel, kAlong);
      _tile_loadd(4, b + s * kPanel, kAcross);
      _tile_dpbf16ps(0, 3, 4);
      _tile_loadd(5, b + s * kPanel + kTile, kAcross);
      _tile_dpbf16ps(1, 3, 5);
      _tile_loadd(6, b + s * kPanel + 2 * kTile, kAcross);
      _tile_dpbf16ps(2, 3, 6);
    }
    _tile_stored(0, c, kAcross);
    _tile_stored(1, c + kTile, kAcross);
    _tile_stored(2, c + 2 * kTile, kAcross);
  }
}
#endif

#ifdef REID_X86_BF16
// Intel's processors take two turns for what AMD's do in one, and are faster in fp32.
bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel"); }

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
#ifdef REID_X86_AMX
    {"amx", true, kTile, 6, has_amx, multiply_amx, arrange_amx, begin_amx, end_amx},
#endif
#ifdef REID_X86_BF16
    {"avx512bf16", true, 1, 3, has_bf16, multiply_bf16},
#endif
    {"avx512", false, 1, 3, has_avx512, multiply_avx512},
    {"avx2", false, 1, 3, has_avx2, multiply_avx2},
#endif
    {"portable", false, 1, 3, always, multiply_portable},
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
