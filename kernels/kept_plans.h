// SPDX-License-Identifier: Apache-2.0
// Plans of a thread's latest calls: no lock on the way of a small call, and a layer in a loop is planned once.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "geometry.h"

namespace tconv3d {

// What a plan depends on: `rest`, then the problem.
template <size_t N>
using PlanKey = std::array<int64_t, N + 22>;
template <size_t N>
PlanKey<N> plan_key(const std::array<int64_t, N>& rest, const Problem& p) {
  PlanKey<N> key{};
  int64_t* to = std::copy(rest.begin(), rest.end(), key.begin());
  for (const int64_t n : {p.batch, p.groups, p.in_channels, p.out_channels}) *to++ = n;
  for (const Axis& a : p.axis)
    for (const int64_t n : {a.input, a.kernel, a.stride, a.dilation, a.crop, a.output}) *to++ = n;
  return key;
}

template <class Plan, size_t N>
class KeptPlans {
 public:
  // The plan kept for a key, else the one that make() returns, kept from now on. The caller holds it: a signal handler that runs during a call may plan
  // another layer on this thread.
  template <class F>
  std::shared_ptr<const Plan> get(const PlanKey<N>& key, F make) {
    for (const auto& [kept, plan] : plans_)
      if (plan && kept == key) return plan;
    std::shared_ptr<const Plan> fresh = make();
    plans_[next_++ % plans_.size()] = {key, fresh};
    return fresh;
  }

 private:
  std::array<std::pair<PlanKey<N>, std::shared_ptr<const Plan>>, 32> plans_;
  size_t next_ = 0;
};

}  // namespace tconv3d
