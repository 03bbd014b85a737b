// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <limits>

#include "gather.h"

namespace tconv3d {

namespace {

// Writes the bias where no tap reaches: phases without taps (kernel < stride, common factors of stride and dilation).
template <class T>
void fill_bias(const Gather& g, const Options& options, const Kernels& kernels) {
  const TileKernels<T>& k = tiles<T>(kernels);
  const int64_t channels = g.groups * g.columns, depth = g.axis[0].target_size, rows = g.axis[1].target_size, width = g.axis[2].target_size;
  const View& t = g.target;
  const bool dense = t.stride[4] == 1 && t.stride[3] == width;
  const auto fill = [&](int64_t task, int) {
    const int64_t d = task % depth, channel = task / depth % channels, image = task / depth / channels;
    T bias = 0;
    if (g.bias) k.load_run(&bias, 1, g.bias->at(channel * g.bias->stride[0]), 1, 1, g.bias->dtype);
    const int64_t plane = image * t.stride[0] + channel * t.stride[1] + d * t.stride[2];
    if (dense) {
      k.fill_run(t.at(plane), 1, bias, rows * width, t.dtype);
      return;
    }
    for (int64_t h = 0; h < rows; ++h) k.fill_run(t.at(plane + h * t.stride[3]), t.stride[4], bias, width, t.dtype);
  };
  parallel_for(g.batch * channels * depth, options.threads, fill, options.stop);
}

template <class T>
void run(const Problem* forward, const Gather& g, const Options& options, int64_t chunk) {
  const Kernels& kernels = active_kernels();
  bool covered = g.channels > 0, any = g.batch * g.groups * g.columns > 0;
  for (const AxisPlan& a : g.axis) {
    covered = covered && a.covered && a.source_size > 0;
    any = any && a.target_size > 0;
  }
  if (!any) return;
  if (!covered) fill_bias<T>(g, options, kernels);
  bool work = g.channels > 0;
  for (const AxisPlan& a : g.axis) work = work && a.source_size > 0 && a.positions > 0;
  if (!work) return;
  double best = std::numeric_limits<double>::infinity();
  Family family = Family::spatial;
  const auto consider = [&](Family candidate, double cycles) {
    if ((options.family == Family::automatic || options.family == candidate) && cycles < best) best = cycles, family = candidate;
  };
  if (options.family == Family::automatic || options.family == Family::phased) {
    if (forward) consider(Family::phased, phased_cost<T>(*forward, g, options, kernels));
  }
  if (options.family == Family::automatic) consider(Family::spatial, spatial_cost<T>(g, options, kernels));
  if (options.family == Family::automatic || options.family == Family::channels) consider(Family::channels, channels_cost<T>(g, options, kernels));
  if (family == Family::channels)
    run_channels<T>(g, options, kernels, chunk);
  else if (family == Family::phased)
    run_phased<T>(*forward, g, options, kernels, chunk);
  else
    run_spatial<T>(g, options, kernels, chunk);
}

// `forward`: the problem, where g is its forward. `taps`: of the phase with the most.
void run(const Problem* forward, const Gather& g, const Options& options, int64_t taps) {
  if (g.source.dtype == DType::float64)
    run<double>(forward, g, options, channel_chunk(taps));
  else
    run<float>(forward, g, options, channel_chunk(taps));
}

}  // namespace

void forward(const Problem& p, const View& x, const View& w, const View* bias, const View& y, const Options& options) {
  Gather g{p.batch, p.groups, p.in_channels / p.groups, p.out_channels / p.groups, {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])},
           x, w, y, bias, p.in_channels / p.groups * w.stride[0], w.stride[0], w.stride[1], {w.stride[2], w.stride[3], w.stride[4]}, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}};
  int64_t taps = 1;
  for (const Axis& a : p.axis) taps *= ceil_div(a.kernel, a.stride);
  run(&p, g, options, taps);
}

void input_grad(const Problem& p, const View& gy, const View& w, const View& gx, const Options& options) {
  Gather g{p.batch, p.groups, p.out_channels / p.groups, p.in_channels / p.groups, {input_grad_axis(p.axis[0]), input_grad_axis(p.axis[1]), input_grad_axis(p.axis[2])},
           gy, w, gx, nullptr, p.in_channels / p.groups * w.stride[0], w.stride[1], w.stride[0], {w.stride[2], w.stride[3], w.stride[4]}, {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}};
  run(nullptr, g, options, p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel);
}

void bias_grad(const Problem& p, const View& gy, const View& gb, const Options& options) {
  const Kernels& kernels = active_kernels();
  const int64_t depth = p.axis[0].output, rows = p.axis[1].output, width = p.axis[2].output;
  const auto sum = [&](auto zero) {
    using T = decltype(zero);
    const TileKernels<T>& k = tiles<T>(kernels);
    parallel_for(p.out_channels, options.threads,
                 [&](int64_t channel, int) {
                   constexpr int64_t kRun = 256;
                   T run[kRun];
                   double total = 0;
                   for (int64_t n = 0; n < p.batch; ++n)
                     for (int64_t d = 0; d < depth; ++d)
                       for (int64_t h = 0; h < rows; ++h)
                         for (int64_t w = 0; w < width; w += kRun) {
                           const int64_t count = std::min(kRun, width - w);
                           k.load_run(run, 1, gy.at(n * gy.stride[0] + channel * gy.stride[1] + d * gy.stride[2] + h * gy.stride[3] + w * gy.stride[4]), gy.stride[4], count, gy.dtype);
                           double part[4] = {0, 0, 0, 0};
                           for (int64_t i = 0; i < count; ++i) part[i % 4] += double(run[i]);
                           total += (part[0] + part[1]) + (part[2] + part[3]);
                         }
                   const T result = T(total);
                   k.store_run(gb.at(channel * gb.stride[0]), 1, &result, 1, 1, gb.dtype);
                 },
                 options.stop);
  };
  if (gy.dtype == DType::float64)
    sum(double{});
  else
    sum(float{});
}

}  // namespace tconv3d
