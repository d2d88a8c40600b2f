// Blocks of rows over threads. Each block is computed by one thread alone, so no result depends on their number.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "stages.h"

namespace reid_fast {

// `make_worker()` gives each thread a callable (begin, end) with scratch memory of its own.
template <class MakeWorker>
void parallel_blocks(int64_t n, int64_t block, const Run& run, MakeWorker make_worker) {
  const int64_t blocks = (n + block - 1) / block;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(run.threads, blocks)));
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr failure;
  std::mutex mutex;
  std::condition_variable finished;
  int running = threads;

  auto loop = [&] {
    try {
      auto work = make_worker();
      for (int64_t b; !stop && (b = next++) < blocks;) work(b * block, std::min(n, (b + 1) * block));
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
      stop = true;
    }
    std::lock_guard<std::mutex> lock(mutex);
    if (--running == 0) finished.notify_one();
  };

  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(loop);
  bool interrupted = false;
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; })) {
      lock.unlock();
      if (!interrupted && run.interrupted()) stop = interrupted = true;
      lock.lock();
    }
  }
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
  if (interrupted) throw Interrupted();
}

// Neighbours lie near each other in the order, so asking for the row some places ahead hides most of a row's cache
// misses: what it reads beyond its own data was asked for with the rows before it.
constexpr int64_t kAhead = 16;

template <class T>
void prefetch(const T* first, int64_t count) {
  const char* byte = reinterpret_cast<const char*>(first);
  for (int64_t offset = 0; offset < count * static_cast<int64_t>(sizeof(T)); offset += 64) {
    __builtin_prefetch(byte + offset);
  }
}

template <class Ask>
void ask_ahead(const Order& order, int64_t place, int64_t distance, Ask ask) {
  if (place + distance < order.size) ask(int64_t{order[place + distance]});
}

// The offset of a sparse row two strides ahead, then, once that is there, its first entries.
inline void ask_for_row(const SparseRows& rows, const Order& order, int64_t place) {
  constexpr int64_t kEntries = 48;
  ask_ahead(order, place, 2 * kAhead, [&](int64_t i) { prefetch(rows.start.begin() + i, 2); });
  ask_ahead(order, place, kAhead, [&](int64_t i) {
    prefetch(rows.index.begin() + rows.start[i], kEntries);
    prefetch(rows.value.begin() + rows.start[i], kEntries);
  });
}

// Sparse rows computed in the given order, a block of it at a time, then laid end to end by row number.
class RowBlocks {
 public:
  RowBlocks(const Order& order, int64_t block)
      : order_(order), block_(block), blocks_((order.size + block - 1) / block), start_(order.size + 1) {}

  // The rows at the places [begin, begin + block) of the order, one after another.
  struct Block {
    std::vector<int32_t> index;
    std::vector<float> value;
  };

  Block& block_at(int64_t begin) { return blocks_[begin / block_]; }
  void set_length(int64_t row, int64_t length) { start_[row + 1] = length; }

  SparseRows join(const Run& run) {
    const int64_t n = order_.size;
    start_[0] = 0;
    for (int64_t i = 0; i < n; ++i) start_[i + 1] += start_[i];
    const int64_t entries = start_[n];
    SparseRows rows{std::move(start_), Array<int32_t>(entries), Array<float>(entries)};
    parallel_blocks(n, block_, run, [&] {
      return [&](int64_t begin, int64_t end) {
        const Block block = std::move(block_at(begin));
        int64_t from = 0;
        for (int64_t place = begin; place < end; ++place) {
          const int64_t to = rows.start[order_[place]], length = rows.start[order_[place] + 1] - to;
          std::copy_n(block.index.begin() + from, length, rows.index.begin() + to);
          std::copy_n(block.value.begin() + from, length, rows.value.begin() + to);
          from += length;
        }
      };
    });
    return rows;
  }

 private:
  const Order& order_;
  int64_t block_;
  std::vector<Block> blocks_;
  Array<int64_t> start_;
};

}  // namespace reid_fast
