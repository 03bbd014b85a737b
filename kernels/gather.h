// SPDX-License-Identifier: Apache-2.0
// Forward and input gradient as one operation: every target phase gathers its taps from the source (geometry.h).
//
//     target[n, g*columns + m, first + j*step] = bias + sum over taps t, channels c of  source[n, g*channels + c, ...] * w(g, c, m, t)
#pragma once

#include <cstdio>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>

#include "engine.h"

namespace tconv3d {

struct Gather {
  int64_t batch, groups;
  int64_t channels, columns;  // per group: reduced over, produced
  const std::array<AxisPlan, 3>& axis;
  View source, weight, target;
  const View* bias;
  int64_t weight_group, weight_channel, weight_column;  // strides of w in g, c and m
  std::array<int64_t, 3> weight_tap, weight_kernel;     // strides and sizes of the kernel's axes
};

// Results that outgrow the caches are stored past them where whole lines are, so that none is fetched only to be overwritten.
constexpr int64_t kStreamBytes = int64_t(32) << 20;

inline int64_t target_elements(const Gather& g) {
  return g.batch * g.groups * g.columns * g.axis[0].target_size * g.axis[1].target_size * g.axis[2].target_size;
}

inline bool outgrows_caches(const Gather& g) { return target_elements(g) * g.target.element_size() >= kStreamBytes; }

// Channels are neighbours and of the accumulating type: positions are rows that can be read or written in place.
template <class T>
bool is_rows(const View& v) {
  return v.stride[1] == 1 && v.element_size() == int64_t(sizeof(T));
}

// The memory from the first to the last element of a source of the accumulating type; none of another.
template <class T>
struct Extent {
  explicit Extent(const Gather& g) : begin(static_cast<const T*>(g.source.data)), end(begin) {
    if (g.source.element_size() != int64_t(sizeof(T))) return;
    ++end;
    const int64_t sizes[5] = {g.batch, g.groups * g.channels, g.axis[0].source_size, g.axis[1].source_size, g.axis[2].source_size};
    for (size_t a = 0; a < 5; ++a) (g.source.stride[a] < 0 ? begin : end) += (sizes[a] - 1) * g.source.stride[a];
  }
  const T *begin, *end;
};

// Rows along w that are turned to channels last in one call, as one of their lengths: short ones fill no vector. They must lie side by side.
inline int64_t rows_at_once(const View& v, int64_t width, int64_t rows) {
  constexpr int64_t kPositions = 64;
  return v.stride[3] == width * v.stride[4] ? std::clamp<int64_t>(ceil_div(kPositions, std::max<int64_t>(width, 1)), 1, std::max<int64_t>(rows, 1)) : 1;
}

// Where a kernel's element lies, from its first one.
inline int64_t kernel_element(const Gather& g, const Tap& d, const Tap& h, const Tap& w) {
  return d.kernel * g.weight_tap[0] + h.kernel * g.weight_tap[1] + w.kernel * g.weight_tap[2];
}

// The elements of a kernel lie side by side.
inline bool has_dense_kernel(const Gather& g) {
  return g.weight_tap[2] == 1 && g.weight_tap[1] == g.weight_kernel[2] && g.weight_tap[0] == g.weight_kernel[1] * g.weight_kernel[2];
}

// f(first position, positions) for the tiles of a row: as few as can be, of about equal size.
template <class F>
void for_each_piece(int64_t width, int64_t most, F f) {
  const int64_t pieces = ceil_div(width, most);
  for (int64_t i = 0; i < pieces; ++i) f(i * width / pieces, (i + 1) * width / pieces - i * width / pieces);
}

// The same operation with its targets ordered another way.
inline Gather with_axes(const Gather& g, const std::array<AxisPlan, 3>& axis) {
  return {g.batch, g.groups,       g.channels,       g.columns,       axis,         g.source,       g.weight, g.target,
          g.bias,  g.weight_group, g.weight_channel, g.weight_column, g.weight_tap, g.weight_kernel};
}

// Sums over all positions and phases of an axis: taps inside, and positions.
inline std::array<double, 2> sums_inside(const AxisPlan& axis) {
  double taps = 0, positions = 0;
  for (const Phase& phase : axis.phases) {
    positions += double(phase.count);
    for (const Tap& tap : phase.taps) {
      const int64_t begin = ceil_div(-tap.source_phase, axis.source_step) - tap.offset,
                    end = floor_div(axis.source_size - 1 - tap.source_phase, axis.source_step) - tap.offset + 1;
      taps += double(std::max<int64_t>(0, std::min(end, phase.count) - std::max<int64_t>(begin, 0)));
    }
  }
  return {taps, positions};
}

// A phase of all three axes. Its taps are the product of the axes' taps, kernel d, h, w ascending: the order of the reduction.
using Combo = std::array<const Phase*, 3>;

template <class F>
void for_each_tap(const Combo& c, F f) {
  int64_t t = 0;
  for (const Tap& d : c[0]->taps)
    for (const Tap& h : c[1]->taps)
      for (const Tap& w : c[2]->taps) f(t++, d, h, w);
}

// Of all images.
inline int64_t source_positions(const Gather& g) { return g.batch * g.axis[0].source_size * g.axis[1].source_size * g.axis[2].source_size; }

// Channels summed in one chain of multiply-adds: at most 256, and about 2048 terms, so that the error grows with the chunk and not
// with the whole reduction. `taps` depends on kernel and stride alone, never on sizes or threads: the chunk fixes the bits.
inline int64_t channel_chunk(int64_t taps) {
  const int64_t channels = std::clamp<int64_t>(2048 / std::max<int64_t>(taps, 1), 1, 256);
  return channels >= 32 ? channels / 32 * 32 : channels;
}

// How a family runs a geometry: blocks, tiles, and the machine cycles that its cost model expects, all threads together. Kept from call to
// call, so it holds nothing of the arrays.
class Plan {
 public:
  virtual ~Plan() = default;
  virtual void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const = 0;
  virtual std::string describe() const = 0;  // for people: method, tile, block
  double cycles = std::numeric_limits<double>::infinity();
};

// What a plan may depend on besides the geometry.
struct PlanContext {
  const Kernels& kernels;
  int threads;
  int64_t chunk;        // of channels, summed in one chain
  bool source_is_rows;  // channels last and not to be widened: the channels family reads it in place
  bool target_is_rows;  // channels last: families with positions on the lanes turn their sums
};

template <class T>
std::unique_ptr<Plan> plan_spatial(const Gather&, const PlanContext&);
template <class T>
std::unique_ptr<Plan> plan_rows(const Gather&, const PlanContext&);
template <class T>
std::unique_ptr<Plan> plan_channels(const Gather&, const PlanContext&);
template <class T>
std::unique_ptr<Plan> plan_depthwise(const Gather&, const PlanContext&);
template <class T>
std::unique_ptr<Plan> plan_phased(const Problem&, const Gather&, const PlanContext&);  // forward only

// The two-tap method on the axes where it pays, on vectors of so many float32.
Method two_tap_where_it_pays(const Gather&, int64_t lanes);
// And wherever it applies.
Method two_tap_everywhere(const Gather&);
template <class T>
std::unique_ptr<Plan> plan_two_tap(const Gather&, const PlanContext&, const Method&);

// The products of all taps, added to their targets; forward only.
bool col2im_applies(const Problem&);
bool col2im_pays(const Gather&, int64_t lanes);
template <class T>
std::unique_ptr<Plan> plan_col2im(const Gather&, const PlanContext&);

// "4 x 8 x 32"
inline std::string by(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (int64_t n : sizes) text += (text.empty() ? "" : " x ") + std::to_string(n);
  return text;
}

// What a plan's describe() says, and its cost.
inline std::string with_cycles(const std::string& plan, double cycles) {
  char text[64];
  std::snprintf(text, sizeof text, "; %.3g cycles expected", cycles);
  return plan + text;
}

// body(task, scratch) for every task, each thread with scratch of so many elements of its own.
template <class T, class F>
void run_tasks(int64_t tasks, int64_t scratch_size, const Options& options, F body) {
  const int threads = tasks == 1 ? 1 : options.threads;
  const int64_t each = (scratch_size * int64_t(sizeof(T)) + 127) / 64 * 64 / int64_t(sizeof(T));
  Scratch scratch(size_t(each * threads) * sizeof(T));
  T* const base = reinterpret_cast<T*>(scratch.data());
  parallel_for(tasks, threads, [&](int64_t task, int worker) { body(task, base + worker * each); }, options.stop);
}

}  // namespace tconv3d
