// SPDX-License-Identifier: Apache-2.0
#include "openmp.h"

#include <dlfcn.h>

#include <atomic>

namespace tconv3d {

namespace {

std::atomic<bool> forgotten{false};

// A symbol of a library that was loaded for all to see; looked for until it is there, since frameworks may be imported at any time.
template <class F>
F* visible(const char* name, std::atomic<F*>& kept) {
  F* found = kept.load(std::memory_order_relaxed);
  if (!found) kept.store(found = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name)), std::memory_order_relaxed);
  return found;
}

std::atomic<void (*)(void (*)(void*), void*, unsigned, unsigned)> parallel{nullptr};
std::atomic<int (*)()> max_threads{nullptr}, thread_number{nullptr};

}  // namespace

bool has_openmp_team(int threads) {
  if (forgotten.load(std::memory_order_relaxed)) return false;
  const auto most = visible("omp_get_max_threads", max_threads);
  // Another size would end threads of the team and start them again: 30 us and more.
  return visible("GOMP_parallel", parallel) && visible("omp_get_thread_num", thread_number) && most && most() == threads;
}

void run_on_openmp_team(int threads, void (*fn)(void*), void* data) { parallel.load()(fn, data, unsigned(threads), 0); }

int openmp_worker() { return thread_number.load()(); }

void forget_openmp() { forgotten = true; }

}  // namespace tconv3d
