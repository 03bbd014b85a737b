// SPDX-License-Identifier: Apache-2.0
// Every allocation of the engine fails once: for each operation the first, then the second, until one runs through. A failure must come out as
// std::bad_alloc, leave nothing allocated behind, and the same call afterwards must be right. Linked with --wrap=posix_memalign,--wrap=free.
// usage: allocations [cases]
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <thread>

#include "cases.h"

namespace {

std::atomic<long> until_failure{-1};  // allocations that still succeed; negative: all do
std::atomic<long> live{0};            // blocks that nobody has freed

bool fails() { return until_failure.load() >= 0 && until_failure.fetch_sub(1) == 0; }

// What posix_memalign gave and nobody has freed; free gets other blocks as well, and those do not count.
std::atomic<void*> counted[1 << 12];

void count(void* p) {
  for (auto& slot : counted) {
    void* empty = nullptr;
    if (slot.compare_exchange_strong(empty, p)) {
      ++live;
      return;
    }
  }
  std::abort();
}

void uncount(void* p) {
  for (auto& slot : counted) {
    void* same = p;
    if (p && slot.compare_exchange_strong(same, nullptr)) {
      --live;
      return;
    }
  }
}

}  // namespace

extern "C" {
int __real_posix_memalign(void** p, size_t alignment, size_t bytes);
void __real_free(void* p);

int __wrap_posix_memalign(void** p, size_t alignment, size_t bytes) {
  if (fails()) return 12;  // ENOMEM
  const int error = __real_posix_memalign(p, alignment, bytes);
  if (!error) count(*p);
  return error;
}

void __wrap_free(void* p) {
  uncount(p);
  __real_free(p);
}
}

void* operator new(size_t bytes) {
  if (fails()) throw std::bad_alloc();
  void* p = std::malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  ++live;
  return p;
}
void operator delete(void* p) noexcept {
  if (p) --live;
  __real_free(p);
}
void operator delete(void* p, size_t) noexcept { operator delete(p); }

using namespace tconv3d;

namespace {

long failures = 0, wrong = 0;

// In a thread of its own: the plans that a thread keeps are freed with it.
void in_a_thread(const std::function<void()>& body) {
  std::thread thread(body);
  thread.join();
}

// Fails the n-th allocation of `call`, for every n that it has; afterwards the same call must be right, and as much must be free as before.
void fail_each(const char* name, const std::function<bool()>& call) {
  in_a_thread([&] { wrong += !call(); });
  release_idle_memory();
  const long before = live.load();
  for (long n = 0, failed = 1; failed; ++n) {
    in_a_thread([&] {
      until_failure = n;
      bool right = true;
      try {
        right = call();
        failed = until_failure.load() < 0;  // a worker that could not start: the call does without it
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
      until_failure = -1;
      failures += failed;
      if (!right || !call()) std::printf("wrong after failure %ld of %s\n", n, name), ++wrong;
    });
    release_idle_memory();
    if (live.load() != before) std::printf("failure %ld of %s leaves %ld blocks\n", n, name, live.load() - before), ++wrong;
  }
}

template <class T>
void run_case(Generator& generator, Family family, const char* algorithm) {
  set_active_algorithm(algorithm);
  Case<T> c(generator);
  Options options;
  options.threads = 2;
  options.family = family;
  fail_each("forward", [&] { return c.forward_is_right(options); });
  fail_each("input_grad", [&] { return c.input_grad_is_right(options); });
  fail_each("weight_grad", [&] { return c.weight_grad_is_right(options); });
  fail_each("forward with packed weights", [&] {
    PackedPanels panels;
    Options packed = options;
    packed.packed = &panels;
    return c.forward_is_right(packed) && c.forward_is_right(packed);
  });
}

}  // namespace

int main(int argc, char** argv) {
  start_pool();
  start_stores();
  const int cases = argc > 1 ? std::atoi(argv[1]) : 2;
  Generator generator(11);
  const Family families[] = {Family::automatic, Family::spatial, Family::phased, Family::depthwise, Family::rows, Family::channels};
  for (int i = 0; i < cases; ++i) {
    for (Family family : families) {
      run_case<float>(generator, family, "direct");
      run_case<double>(generator, family, "direct");
    }
    for (const char* algorithm : {"two_tap", "col2im"}) {
      run_case<float>(generator, Family::automatic, algorithm);
      run_case<double>(generator, Family::automatic, algorithm);
    }
  }
  std::printf("allocations: %ld failures injected, %ld wrong\n", failures, wrong);
  return wrong != 0;
}
