// SPDX-License-Identifier: Apache-2.0
// What the ways to a weight gradient share, and what those of two_tap_weight_grad.cc and position_weight_grad.cc offer.
#pragma once

#include <limits>
#include <memory>
#include <string>

#include "engine.h"

namespace tconv3d {

constexpr int64_t kChain = 1024;  // terms added in one chain of multiply-adds, but for the two-tap method's

constexpr int64_t kTasks = 16;       // so many, where blocks, channels and the memory for their sums allow
constexpr double kStepCycles = 1e8;  // of a task, between two looks for an interrupt

// Cycles to turn an element to channels last.
constexpr double kPackedSample = 1.5;

// Lanes of gw (in, out per group, kd, kh, kw) from element `at` on, `lane_stride` apart: all taps, sums[tap * tap_stride + lane]. Where the kernel's
// elements are contiguous, lanes and taps change places block by block: element by element, a 268 MB gradient took a second.
template <class T>
void store_taps(const Problem& p, const View& gw, int64_t at, int64_t lane_stride, const T* sums, int64_t tap_stride, int64_t lanes, const TileKernels<T>& k) {
  const int64_t kh = p.axis[1].kernel, kw = p.axis[2].kernel, taps = p.axis[0].kernel * kh * kw;
  if (gw.element_size() == int64_t(sizeof(T)) && gw.stride[4] == 1 && gw.stride[3] == kw && gw.stride[2] == kh * kw) {
    k.pack_positions(static_cast<T*>(gw.at(at)), lane_stride, sums, tap_stride, taps, 1, lanes, kAccumulated<T>);
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap)
    k.store_run(gw.at(at + tap / (kh * kw) * gw.stride[2] + tap / kw % kh * gw.stride[3] + tap % kw * gw.stride[4]), lane_stride, sums + tap * tap_stride, 1,
                lanes, gw.dtype);
}

// How the weight gradient of one problem is formed, other than with channels on the lanes.
class WeightGradPlan {
 public:
  virtual ~WeightGradPlan() = default;
  // False where a sum is not finite and may owe that to padding: nothing is written then.
  virtual bool run(const View& x, const View& gy, const View& gw, const Options&) const = 0;
  virtual std::string describe() const = 0;
  double cycles = std::numeric_limits<double>::infinity();  // of all threads together
};

// On the axes with the fewest cycles or, `everywhere`, on all where the method applies; null where it does not or its sums outgrow memory. It depends on
// the problem and the instruction set alone.
template <class T>
std::unique_ptr<WeightGradPlan> plan_two_tap_weight_grad(const Problem&, const Kernels&, bool everywhere);

// With the positions on the lanes; null where its sums or the smallest block outgrow memory. It depends on the problem and the instruction set alone.
template <class T>
std::unique_ptr<WeightGradPlan> plan_position_weight_grad(const Problem&, const Kernels&);

}  // namespace tconv3d
