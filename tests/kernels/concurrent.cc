// SPDX-License-Identifier: Apache-2.0
// Calls from several threads at once, each of which may use the pool, packed weights that they share, and idle memory given back meanwhile.
// For ThreadSanitizer. usage: concurrent [calls]
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "cases.h"

using namespace tconv3d;

namespace {

constexpr int kThreads = 4;

struct Shared {
  Case<float> layer;
  PackedPanels panels;  // of layer's weight
};

std::atomic<int> made{0}, wrong{0};

void call(Shared& shared, Generator& generator, int number) {
  Options options;
  options.threads = int(draw(generator, 1, 3));
  options.stop = [] { return false; };
  Case<float> own = number % 2 ? Case<float>(generator) : shared.layer;
  if (number % 2 == 0) options.packed = &shared.panels;
  const bool right = number % 3 == 2 ? own.weight_grad_is_right(options) : (number % 3 ? own.input_grad_is_right(options) : own.forward_is_right(options));
  release_output(acquire_output(size_t(draw(generator, 1, 1 << 20))));
  if (number % 16 == 0) release_idle_memory();
  if (number % 7 == 0) set_num_threads(1 + number % 3);
  ++made;
  wrong += !right;
}

}  // namespace

int main(int argc, char** argv) {
  start_pool();
  start_stores();
  const int calls = argc > 1 ? std::atoi(argv[1]) : 200;
  Generator generator(7);
  Shared shared{Case<float>(generator), {}};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&shared, calls, t] {
      Generator own(unsigned(100 + t));
      for (int i = 0; i < calls / kThreads; ++i) call(shared, own, i);
    });
  for (std::thread& thread : threads) thread.join();
  std::printf("concurrent: %d calls from %d threads, %d wrong\n", made.load(), kThreads, wrong.load());
  return wrong.load() != 0;
}
