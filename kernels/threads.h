// SPDX-License-Identifier: Apache-2.0
// A persistent pool: short spin, then sleep. Not OpenMP: after libgomp ran in a parent, a forked child hangs in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace tconv3d {

constexpr int kMaxThreads = 256;

// TCONV3D_NUM_THREADS, else the processors that affinity and the cgroup quota leave; or what set_num_threads said.
int get_num_threads();
void set_num_threads(int n);

struct Interrupted {};  // thrown when the stop callback of parallel_for returned true

// Runs body(task, worker) for 0 <= task < tasks, 0 <= worker < threads, tasks handed out in order. `stop` is polled by the calling
// thread between its tasks, at most every 20 ms. The first exception of a body is rethrown. A call made while another thread's call
// runs, or from inside a body, runs on its own thread alone.
void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body, const std::function<bool()>& stop);

// Scratch memory on huge pages, 64-byte aligned, from a bounded store of earlier buffers. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// Asks for 2 MiB pages for the aligned inside of a large buffer that is about to be written: first touch costs 47 ms instead of 182 ms
// for 268 MB. A hint; never fails.
void advise_huge(void* data, size_t bytes);

// Bytes of second-level cache per core, for block sizes.
size_t cache_bytes();

}  // namespace tconv3d
