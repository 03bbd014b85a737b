// SPDX-License-Identifier: Apache-2.0
// The engine against the definition, without Python: for cross-compiled instruction sets (under an emulator) and for sanitizers.
// Integer data, so every comparison is exact. usage: selftest [cases]
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "engine.h"
#include "reference.h"

using namespace tconv3d;

namespace {

std::mt19937 generator(20240);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

Problem draw_problem() {
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
std::vector<T> integers(int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (T& x : v) x = T(draw(-3, 3));
  return v;
}

template <class T>
View view(std::vector<T>& v, std::array<int64_t, 5> shape) {
  View out{v.data(), sizeof(T) == 8 ? DType::float64 : DType::float32, {}};
  int64_t stride = 1;
  for (size_t a = 5; a-- > 0; stride *= shape[a]) out.stride[a] = stride;
  return out;
}

template <class T>
bool run_case(Family family, const char* algorithm, int threads) {
  set_active_algorithm(algorithm);
  const Problem p = draw_problem();
  const int64_t out = p.out_channels / p.groups;
  const std::array<int64_t, 5> xs{p.batch, p.in_channels, p.axis[0].input, p.axis[1].input, p.axis[2].input},
      ws{p.in_channels, out, p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel},
      ys{p.batch, p.out_channels, p.axis[0].output, p.axis[1].output, p.axis[2].output};
  const auto size = [](const std::array<int64_t, 5>& s) { return s[0] * s[1] * s[2] * s[3] * s[4]; };
  auto x = integers<T>(size(xs)), w = integers<T>(size(ws)), gy = integers<T>(size(ys)), bias = integers<T>(p.out_channels);
  std::vector<T> y(gy.size(), T(99)), gx(x.size(), T(99)), gw(w.size(), T(99)), ry(y.size()), rgx(gx.size()), rgw(gw.size());
  const int64_t plane = ys[2] * ys[3] * ys[4];
  for (size_t i = 0; i < ry.size(); ++i) ry[i] = bias[i / size_t(plane) % size_t(p.out_channels)];
  for_each_product(p, [&](int64_t o, int64_t i, int64_t k) {
    ry[size_t(o)] += x[size_t(i)] * w[size_t(k)];
    rgx[size_t(i)] += gy[size_t(o)] * w[size_t(k)];
    rgw[size_t(k)] += x[size_t(i)] * gy[size_t(o)];
  });
  Options options;
  options.threads = threads;
  options.family = family;
  const View vx = view(x, xs), vw = view(w, ws), vgy = view(gy, ys), vy = view(y, ys), vgx = view(gx, xs), vgw = view(gw, ws);
  const View vb{bias.data(), vx.dtype, {1}};
  forward(p, vx, vw, &vb, vy, options);
  input_grad(p, vgy, vw, vgx, options);
  weight_grad(p, vx, vgy, vgw, options);
  return y == ry && gx == rgx && gw == rgw;
}

}  // namespace

int main(int argc, char** argv) {
  start_pool();
  start_stores();
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  const Family families[] = {Family::automatic, Family::spatial, Family::phased, Family::channels, Family::automatic};
  for (int isa = 0; available_isa(isa); ++isa) {
    set_active_kernels(available_isa(isa));
    int wrong = 0;
    for (int i = 0; i < cases; ++i) {
      const char* const algorithm = i / 2 % 5 == 4 ? "two_tap" : "automatic";
      wrong += !(i % 2 ? run_case<float>(families[i / 2 % 5], algorithm, 1 + i % 3) : run_case<double>(families[i / 2 % 5], algorithm, 1 + i % 3));
    }
    std::printf("%s: %d cases, %d wrong\n", available_isa(isa), cases, wrong);
    if (wrong) return 1;
  }
  return 0;
}
