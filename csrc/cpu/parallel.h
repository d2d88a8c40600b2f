// Blocks of rows over threads. Each block is computed by one thread alone, so no result depends on their number.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
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
  pool.reserve(threads);
  try {
    for (int t = 0; t < threads; ++t) pool.emplace_back(loop);
  } catch (const std::system_error&) {  // the system has no more of them: those that there are do all the work
    std::lock_guard<std::mutex> lock(mutex);
    running -= threads - std::max<int>(1, pool.size());
  }
  if (pool.empty()) loop();
  bool interrupted = false;
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; })) {
      lock.unlock();
      if (!interrupted && run.watch(std::min<int64_t>(next, blocks), blocks)) stop = interrupted = true;
      lock.lock();
    }
  }
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
  if (interrupted) throw Interrupted();
}

// The first of n rows that is not `sound(row)`, or n.
template <class Sound>
int64_t first_without(int64_t n, const Run& run, Sound sound) {
  constexpr int64_t kBlock = 256;
  std::atomic<int64_t> first{n};
  parallel_blocks(n, kBlock, run, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (sound(i)) continue;
        for (int64_t seen = first; i < seen && !first.compare_exchange_weak(seen, i);) {
        }
        return;
      }
    };
  });
  return first;
}

// How many turns before its own a row that lies anywhere in memory is asked for.
constexpr int64_t kAhead = 16;

template <class T>
void prefetch(const T* first, int64_t count) {
  const char* byte = reinterpret_cast<const char*>(first);
  for (int64_t offset = 0; offset < count * static_cast<int64_t>(sizeof(T)); offset += 64) {
    __builtin_prefetch(byte + offset);
  }
}

// Puts blocks of entries one after another into large pieces of memory; one for each thread.
class Shelf {
 public:
  Shelf(std::vector<Array<Entry>>& memory, std::mutex& mutex, int64_t piece)
      : memory_(memory), mutex_(mutex), piece_(piece) {}

  const Entry* put(const std::vector<Entry>& entries) {
    const int64_t size = static_cast<int64_t>(entries.size());
    if (size > room_) {
      std::lock_guard<std::mutex> lock(mutex_);
      memory_.emplace_back(room_ = std::max(size, piece_));
      next_ = memory_.back().begin();
    }
    const Entry* first = next_;
    next_ = std::copy(entries.begin(), entries.end(), next_);
    room_ -= size;
    return first;
  }

 private:
  std::vector<Array<Entry>>& memory_;
  std::mutex& mutex_;
  int64_t piece_;
  Entry* next_ = nullptr;
  int64_t room_ = 0;
};

// `make_worker()` gives each thread a callable (position, entries) that appends the entries of one row.
template <class MakeWorker>
PermutedRows fill_rows(int64_t n, const Run& run, MakeWorker make_worker) {
  constexpr int64_t kEntries = 32;     // of a row, about
  constexpr int64_t kPiece = 1 << 19;  // 4 MiB, enough for huge pages
  const int64_t piece = std::min(kPiece, kEntries * n / run.threads);
  PermutedRows rows(n);
  std::mutex mutex;
  parallel_blocks(n, PermutedRows::kBlock, run, [&] {
    return [&, append_row = make_worker(), entries = std::vector<Entry>(), shelf = Shelf(rows.memory, mutex, piece)](
               int64_t begin, int64_t end) mutable {
      PermutedRows::Block& block = rows.blocks[begin / PermutedRows::kBlock];
      entries.clear();
      for (int64_t position = begin; position < end; ++position) {
        append_row(position, entries);
        block.end[position - begin] = static_cast<int64_t>(entries.size());
      }
      block.entry = shelf.put(entries);
    };
  });
  return rows;
}

}  // namespace reid_fast
