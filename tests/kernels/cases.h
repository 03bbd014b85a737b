// SPDX-License-Identifier: Apache-2.0
// Random layers of small integers, so every comparison is exact, and what the definition says about them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "engine.h"
#include "reference.h"

namespace tconv3d {

using Generator = std::mt19937;

inline int64_t draw(Generator& generator, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// An image of few channels, whose weight gradient is cut into blocks and strands.
inline Problem draw_large_problem(Generator& generator) {
  const auto draw = [&](int64_t low, int64_t high) { return tconv3d::draw(generator, low, high); };
  Problem p{1, draw(1, 2), 0, 0, {}};
  p.in_channels = p.groups * draw(1, 2);
  p.out_channels = p.groups * draw(1, 2);
  for (Axis& a : p.axis) {
    a = {draw(18, 24), draw(2, 3), 2, 1, draw(0, 1), 0};
    a.output = (a.input - 1) * a.stride + a.kernel - 2 * a.crop;
  }
  return p;
}

inline Problem draw_problem(Generator& generator) {
  const auto draw = [&](int64_t low, int64_t high) { return tconv3d::draw(generator, low, high); };
  Problem p{draw(1, 3), draw(1, 3), 0, 0, {}};
  p.in_channels = p.groups * (draw(0, 9) ? draw(1, 20) : draw(257, 270));
  p.out_channels = p.groups * draw(1, 20);
  for (Axis& a : p.axis) {
    a = {draw(1, 6), draw(1, 4), draw(1, 3), draw(1, 2), 0, 0};
    const int64_t full = (a.input - 1) * a.stride + a.dilation * (a.kernel - 1) + 1;
    a.crop = draw(0, 1) ? draw(0, full - 1) : 0;
    a.output = draw(1, full + 2);
  }
  if (draw(0, 3) == 0) p.axis[2].input = draw(20, 70), p.axis[2].output = draw(30, 90);
  return p;
}

template <class T>
std::vector<T> integers(Generator& generator, int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (T& x : v) x = T(draw(generator, -3, 3));
  return v;
}

template <class T>
View view(std::vector<T>& v, std::array<int64_t, 5> shape) {
  View out{v.data(), sizeof(T) == 8 ? DType::float64 : DType::float32, {}};
  int64_t stride = 1;
  for (size_t a = 5; a-- > 0; stride *= shape[a]) out.stride[a] = stride;
  return out;
}

// One layer with its operands, the results of the last calls, and the results that are right.
template <class T>
struct Case {
  Problem p;
  std::array<int64_t, 5> xs, ws, ys;
  std::vector<T> x, w, gy, bias, y, gx, gw, right_y, right_gx, right_gw;

  explicit Case(Generator& generator) : Case(generator, draw_problem(generator)) {}
  Case(Generator& generator, const Problem& problem) : p(problem) {
    xs = {p.batch, p.in_channels, p.axis[0].input, p.axis[1].input, p.axis[2].input};
    ws = {p.in_channels, p.out_channels / p.groups, p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel};
    ys = {p.batch, p.out_channels, p.axis[0].output, p.axis[1].output, p.axis[2].output};
    const auto size = [](const std::array<int64_t, 5>& s) { return s[0] * s[1] * s[2] * s[3] * s[4]; };
    x = integers<T>(generator, size(xs)), w = integers<T>(generator, size(ws)), gy = integers<T>(generator, size(ys));
    bias = integers<T>(generator, p.out_channels);
    y.resize(gy.size()), gx.resize(x.size()), gw.resize(w.size());
    right_y.resize(y.size()), right_gx.resize(gx.size()), right_gw.resize(gw.size());
    const size_t plane = size_t(ys[2] * ys[3] * ys[4]);
    for (size_t i = 0; i < right_y.size(); ++i) right_y[i] = bias[i / plane % size_t(p.out_channels)];
    for_each_product(p, [&](int64_t o, int64_t i, int64_t k) {
      right_y[size_t(o)] += x[size_t(i)] * w[size_t(k)];
      right_gx[size_t(i)] += gy[size_t(o)] * w[size_t(k)];
      right_gw[size_t(k)] += x[size_t(i)] * gy[size_t(o)];
    });
  }

  bool forward_is_right(const Options& options) {
    std::fill(y.begin(), y.end(), T(99));
    const View vb{bias.data(), view(x, xs).dtype, {1}};
    forward(p, view(x, xs), view(w, ws), &vb, view(y, ys), options);
    return y == right_y;
  }

  bool input_grad_is_right(const Options& options) {
    std::fill(gx.begin(), gx.end(), T(99));
    input_grad(p, view(gy, ys), view(w, ws), view(gx, xs), options);
    return gx == right_gx;
  }

  bool weight_grad_is_right(const Options& options) {
    std::fill(gw.begin(), gw.end(), T(99));
    weight_grad(p, view(x, xs), view(gy, ys), view(gw, ws), options);
    return gw == right_gw;
  }
};

}  // namespace tconv3d
