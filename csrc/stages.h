// The contract of the clustering stages: features -> neighbours -> rows of weights -> Jaccard graph -> labels.
// Shapes: N images, D feature width, K neighbours. Source: Zhong et al., CVPR 2017, as the published code has it; its
// seven steps, numbered here and below, are listed in docs/clustering.md.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace reid_fast {

// L2-normalised rows [N, D], C order.
struct Features {
  const float* data;
  int64_t n;
  int64_t width;

  const float* row(int64_t i) const { return data + i * width; }
};

// The K most similar rows of each row, itself first, and their cosines: [N, K], C order.
struct Ranking {
  const int32_t* index;
  const float* similarity;
  int64_t n;
  int k;
};

// Uninitialised memory, for `std::free`. Large blocks ask for huge pages: a million rows are read in an order that
// small pages cannot keep up with.
inline void* allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  void* memory = nullptr;
  if (bytes < 2 * kHugePage) {
    memory = std::malloc(bytes > 0 ? bytes : 1);
  } else {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    memory = std::aligned_alloc(kHugePage, bytes);
#ifdef MADV_HUGEPAGE
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  }
  if (!memory) throw std::bad_alloc();
  return memory;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// An array of plain numbers or structs whose elements start uninitialised.
template <class T>
struct Array {
  std::unique_ptr<T[], Free> data;
  int64_t size = 0;

  Array() = default;
  explicit Array(int64_t size) : data(static_cast<T*>(allocate(size * sizeof(T)))), size(size) {}
  T* begin() { return data.get(); }
  const T* begin() const { return data.get(); }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }
};

// A sparse matrix by rows (CSR); 64-bit offsets, for N·K can pass 2^31.
struct Csr {
  Array<int64_t> start;  // [N + 1]
  Array<int32_t> index;
  Array<float> value;
};

// The row at each position. Stages go through the permuted rows, where neighbours lie near each other and so in the
// caches; sums still run by ascending row, so the permutation decides the speed and not the result.
using Permutation = Array<int32_t>;

struct Entry {
  int32_t index;
  float value;
};

// Permuted sparse rows, whose entries name positions. A block of rows is filled by one thread and stays where that put
// it.
struct PermutedRows {
  static constexpr int64_t kBlock = 256;

  struct Block {
    const Entry* entry;
    int64_t end[kBlock];  // of each row, in `entry`
  };
  struct Row {
    const Entry* first;
    const Entry* last;

    const Entry* begin() const { return first; }
    const Entry* end() const { return last; }
    int64_t size() const { return last - first; }
  };

  std::vector<Block> blocks;
  std::vector<Array<Entry>> memory;  // of the blocks

  explicit PermutedRows(int64_t n) : blocks((n + kBlock - 1) / kBlock) {}
  Row row(int64_t position) const {
    const Block& block = blocks[position / kBlock];
    const int64_t t = position % kBlock;
    return {block.entry + (t > 0 ? block.end[t - 1] : 0), block.entry + block.end[t]};
  }
};

struct Neighbours {
  Array<int32_t> index;     // [rows, K]
  Array<float> similarity;  // [rows, K]
};

// How a stage runs: results never depend on the number of threads.
struct Run {
  int threads;
  // Told on the calling thread, a few times a second, how many parts of how many are done; true ends the stage.
  std::function<bool(int64_t, int64_t)> watch;
};

struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

// A graph has more entries than there is room for; says of how many, and which row most have in common.
struct TooLarge : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An empty text, or which row is the first with NaN or so long that products overflow; a search relies on finite ones.
std::string fault_of(const Features& features, const Run& run);

// An empty text, or which row is the first that is longer than 1 and so has products that are no cosines. The weights
// rely on it: of what lies outside they would be infinite, or zero.
std::string fault_of_length(const Features& features, const Run& run);

// Names of the similarity kernels this processor can run, fastest first.
std::vector<std::string> similarity_kernels();

// Step 1: rows [begin, end) of the exact kNN by (similarity descending, index ascending), the row itself first.
Neighbours knn(const Features& features, int k, int64_t begin, int64_t end, const std::string& kernel, const Run& run);

// For re-ranking: the same, k at least 2 unless there is one row, and the smallest cosine of each of the rows with
// another.
std::pair<Neighbours, Array<float>> knn_and_farthest(const Features& features, int k, int64_t begin, int64_t end,
                                                     const std::string& kernel, const Run& run);

// Rows apart in lists, and which lists are looked at together.
struct Lists {
  const int32_t* row;         // [N] all rows, list by list
  const int64_t* start;       // [lists + 1], in `row`
  const int64_t* near_start;  // [lists + 1], in `near`
  const int32_t* near;        // of each list, ascending: itself among them, and of each other list if that has this one
  int64_t count;              // of lists
};

// Step 1 in part: the k nearest of each row, as `knn` has them, among the rows of the lists near its own, which are k
// at least.
Neighbours knn_in_lists(const Features& features, int k, const Lists& lists, const std::string& kernel, const Run& run);

// The K nearest of each row among its neighbours and theirs, as `knn` has them. `sequence` holds all rows, near ones
// together.
Neighbours neighbours_of_neighbours(const Features& features, const Ranking& ranking, const int32_t* sequence,
                                    const Run& run);

// An empty text, or what is wrong with the first bad row: out of range, not itself first, a neighbour twice, no cosine.
// The other stages rely on a sound ranking.
std::string fault_of(const Ranking& ranking, const Run& run);

// Rows next to their neighbours: depth first along the ranking, nearest first.
Permutation locality_permutation(const Ranking& ranking);

// The permuted ranking: its rows in that sequence, naming positions.
Neighbours permute(const Ranking& ranking, const Permutation& permutation, const Run& run);

// Steps 2 to 5. V: k-reciprocal sets S of all columns and of the first `half`, expanded, with softmax weights of the
// cosines, or, where they are given, of the cosines beside the `smallest` one of each row [N]. `ranking` is permuted,
// and the entries of each row of the result ascend by the rows that they name; so do those of W.
PermutedRows expansion_weights(const Features& features, const Ranking& ranking, int half, const float* smallest,
                               const Permutation& permutation, const Run& run);

// Step 6. W_i: the mean of the rows V_j over the first k2 of ranking i. `ranking` is permuted.
PermutedRows query_expansion(const PermutedRows& weights, const Ranking& ranking, int k2,
                             const Permutation& permutation, const Run& run);

// Step 7: every pair with 1 - s/(2 - s) <= max_distance, s = Σ_g min(W_ig, W_jg): symmetric, self included. In the
// caller's sequence again, indices ascending. Throws `TooLarge` beyond `most` entries.
Csr threshold_graph(PermutedRows weights, float max_distance, const Permutation& permutation, const Run& run,
                    int64_t most = INT64_MAX);

// Steps 2 to 7, one stage after another: the graph of a sound ranking.
Csr jaccard_graph(const Features& features, const Ranking& ranking, int k2, float max_distance, const Run& run,
                  int64_t most = INT64_MAX);

// Steps 2 to 6 as re-ranking has them: W of a sound ranking whose columns are each S(i, k1), the first `half` of them
// the half sets, in the caller's sequence, indices ascending.
Csr reranking_weights(const Features& features, const Ranking& ranking, int half, int k2, const float* smallest,
                      const Run& run);

// Sparse rows, or columns, as their owner stores them.
struct SparseView {
  const int64_t* start;
  const int32_t* index;
  const float* value;
};

// Step 7, dense: J of each of the rows [begin, end) of W with `width` others, which `columns` holds by column: into
// `distance` [end - begin, width], 1 where nothing is shared.
void jaccard_rows(const SparseView& rows, const SparseView& columns, int64_t begin, int64_t end, int64_t width,
                  float* distance, const Run& run);

// A symmetric distance graph as its owner stores it.
template <class Offset, class Index, class Value>
struct Graph {
  const Offset* start;
  const Index* index;
  const Value* value;
  int64_t n;
};

// labels [N]: clusters numbered by their lowest core point, a border point in the first cluster that reaches it, the
// rest -1.
template <class Offset, class Index, class Value>
void dbscan(const Graph<Offset, Index, Value>& graph, Value eps, int64_t min_samples, int64_t* labels, const Run& run);

}  // namespace reid_fast
