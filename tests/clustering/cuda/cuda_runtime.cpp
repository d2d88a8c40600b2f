// The scheduler of the stand-in for CUDA; compiled without instrumentation, which is for the code that it runs.
#include "cuda_runtime.h"

#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

// There where the program is built with a sanitiser.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fibre);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fibre, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
extern char __start_shared_memory[] __attribute__((weak));
extern char __stop_shared_memory[] __attribute__((weak));
}

namespace emulated {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kSwitchOrders = 0, kSwitchOrdersNothing = 1;  // flags of __tsan_switch_to_fiber

std::mt19937_64 draw;
bool fair;  // every thread has the same chance; else those that were ready last run ahead, a warp as far as it can

// The threads that meet in one place: a warp or a block.
struct Group {
  std::vector<int> members;
  size_t arrived = 0;
  unsigned turn = 0;  // number of the meeting
  Place place{};
  char order[2]{};  // a thread may be at the next meeting before another has left this one, never further ahead
};

// Where a stack was left: swapcontext would ask the kernel for its signals each time.
struct Jump {
  void* registers[5];
};

struct Fibre {
  Jump left;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
  void* tsan = __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
  const Group* waits_in = nullptr;
  uint64_t bits = 0;
  uint64_t received[kWarp];

  ~Fibre() {
    if (tsan) __tsan_destroy_fiber(tsan);
  }
};

// The block that runs, and the fibres, which serve one block after another.
std::vector<std::unique_ptr<Fibre>> fibres;
std::vector<Group> warps;
Group block;
std::vector<int> ready;
int current;
const std::function<void()>* body;
char complaint[1000];
char launch_order;

struct {
  Jump left;
  ucontext_t start;
  void* fake_stack;
  const void* bottom;
  size_t size;
  void* tsan;
} host;

__attribute__((noipa, noreturn)) void go(Jump& to) { __builtin_longjmp(to.registers, 1); }

__attribute__((noipa)) void change(Jump& from, Jump& to) {
  if (!__builtin_setjmp(from.registers)) go(to);
}

void to_host() {
  Fibre& fibre = *fibres[current];
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(host.tsan, kSwitchOrdersNothing);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fibre.fake_stack, host.bottom, host.size);
  change(fibre.left, host.left);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fibre.fake_stack, &host.bottom, &host.size);
}

void to_fibre(int thread) {
  Fibre& fibre = *fibres[current = thread];
  threadIdx.x = static_cast<unsigned>(thread);
  // Orders the fibre behind the host, which has seen nothing of the launch that runs.
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fibre.tsan, kSwitchOrders);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&host.fake_stack, fibre.stack.get(), kStack);
  change(host.left, fibre.left);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
}

void fibre_main() {
  if (!__builtin_setjmp(fibres.back()->left.registers)) setcontext(&host.start);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.size);
  for (;;) {
    (*body)();
    if (__tsan_release) __tsan_release(&launch_order);
    to_host();
  }
}

void add_fibre() {
  fibres.push_back(std::make_unique<Fibre>());
  ucontext_t context;
  getcontext(&context);
  context.uc_stack = {fibres.back()->stack.get(), 0, kStack};
  makecontext(&context, fibre_main, 0);
  swapcontext(&host.start, &context);
}

// The thread that runs goes no further.
void complain(const char* text, const Place& own, const Place& other) {
  std::snprintf(complaint, sizeof complaint, "thread %d of block %u %s: %s at %s:%d, %s at %s:%d", current, blockIdx.x,
                text, own.name, own.file, own.line, other.name, other.file, other.line);
  to_host();
}

// Waits for the whole group. The last to come makes the others ready and queues up again with them.
void meet(Group& group, const Place& place, bool orders) {
  if (group.arrived == 0) group.place = place;
  if (group.place.line != place.line || std::strcmp(group.place.file, place.file) ||
      std::strcmp(group.place.name, place.name)) {
    complain("is in another place than those who wait", place, group.place);
  }
  char* order = &group.order[group.turn % 2];
  if (orders && __tsan_release) __tsan_release(order);
  fibres[current]->waits_in = &group;
  if (++group.arrived == group.members.size()) {
    group.arrived = 0;
    ++group.turn;
    for (int member : group.members) {
      Fibre& fibre = *fibres[member];
      fibre.waits_in = nullptr;
      if (&group != &block) {
        for (int lane = 0; lane < kWarp; ++lane) fibre.received[lane] = fibres[group.members[lane]]->bits;
      }
      ready.push_back(member);
    }
  }
  to_host();
  if (orders && __tsan_acquire) __tsan_acquire(order);
}

void meet_warp(const Place& place, unsigned mask, bool orders) {
  if (mask != ~0u) complain("does not name all lanes of its warp", place, place);
  meet(warps[current / kWarp], place, orders);
}

void start_block(int threads) {
  if (threads % kWarp) throw std::logic_error("a block must be whole warps here");
  while (static_cast<int>(fibres.size()) < threads) add_fibre();
  warps.assign(threads / kWarp, {});
  block = {};
  for (int thread = 0; thread < threads; ++thread) {
    fibres[thread]->waits_in = nullptr;
    warps[thread / kWarp].members.push_back(thread);
    block.members.push_back(thread);
    ready.push_back(thread);
  }
  for (char* byte = __start_shared_memory; byte != __stop_shared_memory; ++byte) *byte = static_cast<char>(draw());
}

// Complains if threads still wait where no thread can go on.
void find_standstill() {
  for (int thread : block.members) {
    const Group* group = fibres[thread]->waits_in;
    if (!group) continue;
    const size_t all = group->members.size();
    std::snprintf(complaint, sizeof complaint,
                  "thread %d of block %u waits in %s at %s:%d, which %zu of %zu threads never reach", thread,
                  blockIdx.x, group->place.name, group->place.file, group->place.line, all - group->arrived, all);
    return;
  }
}

// They stand in the middle of a kernel, whose arguments nobody reads after this.
void abandon_fibres() {
  for (const auto& fibre : fibres) {
    if (!fibre->tsan) continue;
    __tsan_switch_to_fiber(fibre->tsan, kSwitchOrdersNothing);
    __tsan_switch_to_fiber(host.tsan, kSwitchOrders);
  }
  ready.clear();
  fibres.clear();
}

void run_block(int threads) {
  start_block(threads);
  complaint[0] = 0;
  while (!ready.empty() && !complaint[0]) {
    if (fair || draw() % 8 == 0) std::swap(ready[draw() % ready.size()], ready.back());
    const int next = ready.back();
    ready.pop_back();
    to_fibre(next);
  }
  if (!complaint[0]) find_standstill();
  if (!complaint[0]) return;
  abandon_fibres();
  throw std::logic_error(complaint);
}

}  // namespace

void seed(uint64_t value) {
  draw.seed(value);
  fair = value % 2;
}

void run(dim3 grid, dim3 threads, const std::function<void()>& thread) {
  body = &thread;
  gridDim = grid;
  blockDim = threads;
  if (__tsan_get_current_fiber) host.tsan = __tsan_get_current_fiber();
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(static_cast<int>(threads.x));
  if (__tsan_acquire) __tsan_acquire(&launch_order);
}

const uint64_t* exchange(const Place& place, unsigned mask, uint64_t bits) {
  fibres[current]->bits = bits;
  meet_warp(place, mask, false);
  return fibres[current]->received;
}

void meet_warp(const Place& place, unsigned mask) { meet_warp(place, mask, true); }

void meet_block(const Place& place) { meet(block, place, true); }

void pause() {
  if (draw() % 2) return;
  ready.push_back(current);
  to_host();
}

}  // namespace emulated

// Volatile accesses are no races on a GPU: relaxed, and never torn.
extern "C" void __tsan_volatile_read4(void*) { emulated::pause(); }

// For callers that are not C++.
extern "C" cudaStream_t emulated_stream() { return new CUstream_st; }
extern "C" void emulated_wait(cudaStream_t stream) { cudaStreamSynchronize(stream); }
