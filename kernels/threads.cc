// SPDX-License-Identifier: Apache-2.0
#include "threads.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "openmp.h"

namespace tconv3d {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Rounding and flush-to-zero of this thread. A worker takes over the caller's for each job: it was started under those of some earlier caller,
// and results must not depend on who computes them.
#if defined(__x86_64__)
using FloatMode = unsigned;
FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
#endif

struct Job {
  const std::function<void(int64_t, int)>* body;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> cancelled{false};
  const FloatMode mode = float_mode();
  std::exception_ptr error;
  std::mutex error_mutex;

  bool run_one(int worker) {
    if (cancelled.load(std::memory_order_relaxed)) return false;
    const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks) return false;
    try {
      (*body)(task, worker);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
      cancelled = true;
    }
    return true;
  }
};

// A call publishes its job under `handover_`; workers wait for one, first spinning, then asleep, and join while it is open. The caller closes
// the job when no task is left and waits for those that joined: one that wakes late (50 us and more from sleep) holds nobody up.
class Pool {
 public:
  std::mutex callers;  // held by the one call that uses the workers

  void run(Job& job, int threads, const std::function<void()>& own) {
    start(threads - 1);
    {
      std::lock_guard<std::mutex> lock(handover_);
      job_ = &job;
      wanted_ = threads - 1;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    own();
    {
      std::lock_guard<std::mutex> lock(handover_);
      job_ = nullptr;
    }
    while (joined_.load(std::memory_order_acquire) > 0) {
      for (int i = 0; i < 64; ++i) pause();
      std::this_thread::yield();
    }
  }

 private:
  // Where the system refuses a thread, the call goes on with those that there are.
  void start(int count) {
    try {
      for (; started_ < count; ++started_) std::thread(&Pool::work, this, started_ + 1, generation_.load()).detach();
    } catch (const std::system_error&) {
    }
  }

  void work(int worker, uint64_t seen) {
    for (;;) {
      // About 20 us of spinning: layers that follow each other find the workers awake.
      for (int i = 0; i < 1000 && generation_.load(std::memory_order_acquire) == seen; ++i) pause();
      Job* job;
      {
        std::unique_lock<std::mutex> lock(handover_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        job = worker <= wanted_ ? job_ : nullptr;
        if (job) joined_.fetch_add(1, std::memory_order_relaxed);
      }
      if (!job) continue;
      set_float_mode(job->mode);
      while (job->run_one(worker)) {
      }
      joined_.fetch_sub(1, std::memory_order_release);
    }
  }

  int started_ = 0;
  std::atomic<int> joined_{0};
  std::atomic<uint64_t> generation_{0};
  std::mutex handover_;  // guards job_ and wanted_
  std::condition_variable wake_;
  Job* job_ = nullptr;  // null between calls
  int wanted_ = 0;
};

std::atomic<Pool*> pool{nullptr};

// A forked child has none of the parent's threads: it starts with a pool of its own. The old one is left where it is, its mutexes may
// be held by threads that no longer exist.
void new_pool() { pool.store(new Pool); }

void start_over_in_child() {
  forget_openmp();
  new_pool();
}

using Clock = std::chrono::steady_clock;

// A job begins and ends with a barrier of the whole team: where somebody else has one of the processors, that takes a time slice, 8 ms for a call
// of 0.15. After a call that waited longer than it worked, and for more than a millisecond, the team rests and calls go to our own pool: shortly, for
// it may have been a passing thing (ONNX Runtime's threads, which spin on for some milliseconds: nnunet_320_320_4 in its turn between other engines 1.5 ms
// with rests of a second, 0.9 so), and twice as long each time, for it may be a process that stays.
constexpr std::chrono::milliseconds kLongWait{1};
constexpr Clock::duration kShortestRest = std::chrono::milliseconds{20}, kLongestRest = std::chrono::milliseconds{1280};
std::atomic<Clock::rep> team_rests_until{0}, next_rest{kShortestRest.count()};

void note_wait(Clock::duration worked, Clock::duration waited, Clock::time_point end) {
  const Clock::rep rest = next_rest.load(std::memory_order_relaxed);
  if (waited > kLongWait && waited > worked) {
    team_rests_until = end.time_since_epoch().count() + rest;
    next_rest = std::min(2 * rest, kLongestRest.count());
  } else if (rest > kShortestRest.count()) {
    next_rest = rest / 2;
  }
}

// Tasks of `job` on the OpenMP team; the calling thread is its worker 0.
void run_on_team(Job& job, int threads, const std::function<void()>& own) {
  struct Shared {
    Job& job;
    const std::function<void()>& own;
    Clock::duration worked;
  } shared{job, own, {}};
  const Clock::time_point begin = Clock::now();
  run_on_openmp_team(
      threads,
      [](void* data) {
        Shared& s = *static_cast<Shared*>(data);
        const int worker = openmp_worker();
        if (worker == 0) {
          const Clock::time_point at = Clock::now();
          s.own();
          s.worked = Clock::now() - at;
          return;
        }
        const FloatMode mode = float_mode();
        set_float_mode(s.job.mode);
        while (s.job.run_one(worker)) {
        }
        set_float_mode(mode);
      },
      &shared);
  const Clock::time_point end = Clock::now();
  note_wait(shared.worked, end - begin - shared.worked, end);
}

int quota_processors() {
  std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (!f) return kMaxThreads;
  long long quota = 0, period = 0;
  const int read = std::fscanf(f, "%lld %lld", &quota, &period);
  std::fclose(f);
  return read == 2 && quota > 0 && period > 0 ? int(std::clamp<long long>((quota + period - 1) / period, 1, kMaxThreads)) : kMaxThreads;
}

int processors() {
  int n = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
  return std::clamp(std::min(n, quota_processors()), 1, kMaxThreads);
}

int default_threads() {
  if (const char* text = std::getenv("TCONV3D_NUM_THREADS"); text && *text) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*end || n < 1 || n > kMaxThreads)
      throw std::invalid_argument("TCONV3D_NUM_THREADS: '" + std::string(text) + "' is not a count from 1 to " + std::to_string(kMaxThreads) +
                                  "; unset it or give one");
    return int(n);
  }
  return processors();
}

std::atomic<int> thread_count{0};

}  // namespace

void start_pool() {
  new_pool();
  pthread_atfork(nullptr, nullptr, start_over_in_child);
}

int get_num_threads() {
  if (thread_count.load() == 0) thread_count = default_threads();
  return thread_count;
}

void set_num_threads(int n) {
  if (n < 1 || n > kMaxThreads) throw std::invalid_argument("set_num_threads: n = " + std::to_string(n) + " must be from 1 to " + std::to_string(kMaxThreads));
  thread_count = n;
}

bool team_rests() {
  const Clock::rep until = team_rests_until.load(std::memory_order_relaxed);
  return until != 0 && Clock::now().time_since_epoch().count() < until;
}

bool has_team(int threads) {
  static const int most = processors();  // more threads than those would wait for each other at the end of every job
  return threads <= most && has_openmp_team(threads) && !team_rests();
}

void share_tasks(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body, const std::function<bool()>& stop) {
  Job job;
  job.body = &body;
  job.tasks = tasks;
  bool interrupted = false;
  auto polled = Clock::now();
  const auto own = [&] {
    while (job.run_one(0)) {
      if (!stop) continue;
      const auto now = Clock::now();
      if (now - polled < kStopInterval) continue;
      polled = now;
      if (stop()) {
        interrupted = true;
        job.cancelled = true;
      }
    }
  };
  Pool* const workers = pool.load();
  std::unique_lock<std::mutex> lock(workers->callers, std::defer_lock);
  if (threads == 1 || !lock.try_lock())
    own();
  else if (has_team(threads))
    run_on_team(job, threads, own);
  else
    workers->run(job, int(std::min<int64_t>(threads, tasks)), own);
  if (job.error) std::rethrow_exception(job.error);
  if (interrupted) throw Interrupted{};
}

}  // namespace tconv3d
