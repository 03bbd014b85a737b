// SPDX-License-Identifier: Apache-2.0
// The geometry of one axis as the engine runs it. Per axis, with input i, kernel tap k and output o:
//
//     o = i*stride + k*dilation - crop
//
// Forward and input gradient are the same gather once outputs are split into phases:
//
//     target[first + j*target_step] = sum over the phase's taps of source[(j + tap.offset)*source_step + tap.source_phase] * w[tap.kernel]
//
// forward:        target = output, target_step = stride (of an axis of one sample: at least output), one source phase.
// input_grad:     source = grad_output, source_step = stride.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace tconv3d {

struct Axis {
  int64_t input, kernel, stride, dilation, crop, output;
};

struct Problem {
  int64_t batch, groups, in_channels, out_channels;  // channels in all, not per group
  std::array<Axis, 3> axis;
};

struct Tap {
  int64_t kernel, offset, source_phase;
};

// Positions begin <= j < count reach a target; an aligned plan has phases whose ends lie outside.
struct Phase {
  int64_t first, count;
  std::vector<Tap> taps;
  int64_t begin = 0;
};

constexpr int64_t kMostEmptyPhases = 8;
constexpr int64_t kMostLoneTaps = 8;  // 8^3 phases: with many more, going through them would take longer than they save

struct AxisPlan {
  std::vector<Phase> phases;  // those with taps and targets, and along w a few without taps
  int64_t positions = 0;      // the longest phase
  int64_t source_size = 0, source_step = 1, target_size = 0, target_step = 1;
  bool covered = true;  // every target belongs to a phase
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
inline int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// The source sample that a tap takes to position j; it may lie outside.
inline int64_t source_of(const AxisPlan& axis, const Tap& tap, int64_t j) { return (j + tap.offset) * axis.source_step + tap.source_phase; }

// `whole_rows`: targets that no tap reaches become phases without taps, so that rows along this axis are stored once and whole.
// `lone_taps_apart`: an axis of one sample has a phase for every tap that reaches a target, as if the stride were no shorter than the output; in phases of
// the stride all taps but one would read outside (512 to 512 channels, 1^3 to 4^3: 15 ms instead of 77). An axis that the two-tap method pairs keeps its
// phases.
inline AxisPlan forward_axis(const Axis& a, bool whole_rows, bool lone_taps_apart = true) {
  AxisPlan plan;
  plan.source_size = a.input;
  plan.target_size = a.output;
  const bool lone = lone_taps_apart && a.input == 1 && a.kernel <= kMostLoneTaps;
  const int64_t stride = lone ? std::max(a.stride, a.output) : a.stride;
  plan.target_step = stride;
  int64_t reached = 0;
  std::map<int64_t, size_t> phase_of;  // by first output
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t of_first_sample = k * a.dilation - a.crop, first = floor_mod(of_first_sample, stride);  // the smallest o >= 0 with an integer i
    if (first >= a.output || (lone && first != of_first_sample)) continue;
    const auto [at, fresh] = phase_of.emplace(first, plan.phases.size());
    if (fresh) {
      plan.phases.push_back({first, (a.output - 1 - first) / stride + 1, {}, 0});
      reached += plan.phases.back().count;
      plan.positions = std::max(plan.positions, plan.phases.back().count);
    }
    plan.phases[at->second].taps.push_back({k, (first + a.crop - k * a.dilation) / stride, 0});
  }
  plan.covered = reached == a.output;
  if (!plan.covered && whole_rows && stride <= kMostEmptyPhases) {
    for (int64_t first = 0; first < std::min(stride, a.output); ++first)
      if (!phase_of.count(first)) {
        plan.phases.push_back({first, (a.output - 1 - first) / stride + 1, {}, 0});
        plan.positions = std::max(plan.positions, plan.phases.back().count);
      }
    plan.covered = true;
  }
  std::sort(plan.phases.begin(), plan.phases.end(), [](const Phase& p, const Phase& q) { return p.first < q.first; });
  return plan;
}

// Forward phases that share their source samples: tap k = u*stride + phase reads sample j - u, so that tap after tap all phases (or, last, the
// first few) use one load. For undilated kernels no shorter than the stride.
inline AxisPlan aligned_forward_axis(const Axis& a) {
  AxisPlan plan;
  plan.source_size = a.input;
  plan.target_size = a.output;
  plan.target_step = a.stride;
  const int64_t start = floor_div(a.crop, a.stride);
  plan.positions = floor_div(a.output - 1 + a.crop, a.stride) - start + 1;
  for (int64_t f = 0; f < a.stride; ++f) {
    Phase phase{start * a.stride + f - a.crop, 0, {}, 0};
    phase.begin = phase.first < 0;
    phase.count = floor_div(a.output - 1 - phase.first, a.stride) + 1;
    for (int64_t k = f; k < a.kernel; k += a.stride) phase.taps.push_back({k, start - k / a.stride, 0});
    plan.phases.push_back(std::move(phase));
  }
  return plan;
}

inline AxisPlan input_grad_axis(const Axis& a) {
  AxisPlan plan;
  plan.source_size = a.output;
  plan.source_step = a.stride;
  plan.target_size = plan.positions = a.input;
  Phase all{0, a.input, {}, 0};
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t o = k * a.dilation - a.crop;
    all.taps.push_back({k, floor_div(o, a.stride), floor_mod(o, a.stride)});
  }
  plan.phases.push_back(std::move(all));
  return plan;
}

// A run of source samples that a block of positions [j0, j0+b) needs: source[(j0 + offset + t)*source_step + phase], 0 <= t < b + extra.
struct Segment {
  int64_t phase, offset, extra;
};

// The packed coordinates of an axis. Dense: one segment per source phase, as long as the block plus the reach of its taps. Where taps
// are far apart (dilation) and the block is short, one segment per distinct tap holds less.
struct AxisPacking {
  std::vector<Segment> segments;
  int64_t length(int64_t block) const {
    int64_t n = 0;
    for (const Segment& s : segments) n += block + s.extra;
    return n;
  }
  int64_t longest(int64_t block) const {
    int64_t n = 0;
    for (const Segment& s : segments) n = std::max(n, block + s.extra);
    return n;
  }
  // (segment, place in it) of a tap's first position
  std::pair<int64_t, int64_t> place(const Tap& tap) const {
    const auto after = std::upper_bound(segments.begin(), segments.end(), tap, [](const Tap& t, const Segment& s) {
      return t.source_phase != s.phase ? t.source_phase < s.phase : t.offset < s.offset;
    });
    const auto at = after - 1;
    return {at - segments.begin(), tap.offset - at->offset};
  }
};

// `apart`: each distinct tap has a segment of its own whatever the length.
inline AxisPacking axis_packing(const AxisPlan& plan, int64_t block, bool apart) {
  std::map<int64_t, Segment> dense;
  std::set<std::pair<int64_t, int64_t>> sparse;
  for (const Phase& p : plan.phases)
    for (const Tap& t : p.taps) {
      sparse.emplace(t.source_phase, t.offset);
      Segment& g = dense.emplace(t.source_phase, Segment{t.source_phase, t.offset, 0}).first->second;
      const int64_t last = std::max(g.offset + g.extra, t.offset);
      g.offset = std::min(g.offset, t.offset);
      g.extra = last - g.offset;
    }
  AxisPacking packing;
  for (const auto& [phase, segment] : dense) packing.segments.push_back(segment);
  // Taps further apart than all sparse segments together: also keeps the sum of a length near 2^63 from wrapping.
  const int64_t most = int64_t(sparse.size()) * block;
  const bool far = std::any_of(packing.segments.begin(), packing.segments.end(), [&](const Segment& s) { return s.extra > most; });
  if (!apart && !far && packing.length(block) <= most) return packing;
  packing.segments.clear();
  for (const auto& [phase, offset] : sparse) packing.segments.push_back({phase, offset, 0});
  return packing;
}

}  // namespace tconv3d
