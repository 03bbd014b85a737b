// SPDX-License-Identifier: Apache-2.0
// Forward and input gradient as one operation: every target phase gathers its taps from the source (geometry.h).
//
//     target[n, g*columns + m, first + j*step] = bias + sum over taps t, channels c of  source[n, g*channels + c, ...] * w(g, c, m, t)
#pragma once

#include "engine.h"

namespace tconv3d {

struct Gather {
  int64_t batch, groups;
  int64_t channels, columns;  // per group: reduced over, produced
  std::array<AxisPlan, 3> axis;
  View source, weight, target;
  const View* bias;
  int64_t weight_group, weight_channel, weight_column;  // strides of w in g, c and m
  std::array<int64_t, 3> weight_tap, weight_kernel;  // strides and sizes of the kernel's axes
};

// A phase of all three axes. Its taps are the product of the axes' taps, kernel d, h, w ascending: the order of the reduction.
using Combo = std::array<const Phase*, 3>;

template <class F>
void for_each_tap(const Combo& c, F f) {
  int64_t t = 0;
  for (const Tap& d : c[0]->taps)
    for (const Tap& h : c[1]->taps)
      for (const Tap& w : c[2]->taps) f(t++, d, h, w);
}

// Channels summed in one chain of multiply-adds: at most 256, and about 2048 terms, so that the error grows with the chunk and not
// with the whole reduction. `taps` depends on kernel and stride alone, never on sizes or threads: the chunk fixes the bits.
inline int64_t channel_chunk(int64_t taps) { return std::clamp<int64_t>(2048 / std::max<int64_t>(taps, 1) / 32 * 32, 32, 256); }

// body(task, scratch) for every task, each thread with scratch of so many elements of its own.
template <class T, class F>
void run_tasks(int64_t tasks, int64_t scratch_size, const Options& options, F body) {
  const int threads = int(std::min<int64_t>(options.threads, tasks));
  const int64_t each = (scratch_size * int64_t(sizeof(T)) + 127) / 64 * 64 / int64_t(sizeof(T));
  Scratch scratch(size_t(each * threads) * sizeof(T));
  T* const base = reinterpret_cast<T*>(scratch.data());
  parallel_for(tasks, threads, [&](int64_t task, int worker) { body(task, base + worker * each); }, options.stop);
}

template <class T>
void run_spatial(const Gather&, const Options&, const Kernels&, int64_t chunk);
template <class T>
void run_channels(const Gather&, const Options&, const Kernels&, int64_t chunk);
template <class T>
void run_phased(const Problem&, const Gather&, const Options&, const Kernels&, int64_t chunk);

// Machine cycles that a family needs by its cost model, all threads together; infinity where it cannot run.
template <class T>
double spatial_cost(const Gather&, const Options&, const Kernels&);
template <class T>
double phased_cost(const Problem&, const Gather&, const Options&, const Kernels&);
template <class T>
double channels_cost(const Gather&, const Options&, const Kernels&);

}  // namespace tconv3d
