// SPDX-License-Identifier: Apache-2.0
// The OpenMP team of a framework, where the process has one of the right size (openmp.h), else a persistent pool: short spin, then sleep. Not
// OpenMP alone: after libgomp ran in a parent, a forked child hangs in it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

namespace tconv3d {

constexpr int kMaxThreads = 256;

// TCONV3D_NUM_THREADS, else the processors that affinity and the cgroup quota leave; or what set_num_threads said.
int get_num_threads();
void set_num_threads(int n);

// Makes the pool and its fork handler; called once, when the library is loaded.
void start_pool();

// Would so many threads be those of a framework's OpenMP team? They are awake right after its operators.
bool has_team(int threads);

// It kept a call waiting a short while ago: others want its processors.
bool team_rests();

struct Interrupted {};  // thrown when the stop callback of parallel_for returned true
constexpr std::chrono::milliseconds kStopInterval{20};

// What parallel_for does with several tasks.
void share_tasks(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body, const std::function<bool()>& stop);

// Runs body(task, worker) for 0 <= task < tasks, 0 <= worker < threads, tasks handed out in order. `stop` is polled by the calling
// thread between its tasks, at most every kStopInterval. The first exception of a body is rethrown. A call made while another thread's call
// runs, or from inside a body, runs on its own thread alone.
template <class F>
void parallel_for(int64_t tasks, int threads, const F& body, const std::function<bool()>& stop) {
  if (tasks == 1)
    body(0, 0);  // small calls: neither memory for a function object nor a look at the clock, and `stop` is not polled
  else
    share_tasks(tasks, threads, std::cref(body), stop);
}

}  // namespace tconv3d
