// SPDX-License-Identifier: Apache-2.0
// C symbols for MindSpore's "aot" operators, found by name in this very library; no compiler and no header of MindSpore is needed.
//
//     forward      (x, w, [bias,] sizes) -> y
//     input_grad   (gy, w, sizes)        -> gx
//     weight_grad  (x, gy, sizes)        -> gw
//     bias_grad    (gy)                  -> gb
//
// Arrays are C-contiguous, of one type; x and y may lack the batch. `sizes` is an int64 tensor: stride, dilation and crop in front per axis, groups, threads
// (0: ours). All return 0, or another number for operands that do not fit, which MindSpore turns into a RuntimeError.
#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "engine.h"
#include "start.h"

namespace tconv3d {

namespace {

constexpr int64_t kSizes = 11;

void require(bool ok) {
  if (!ok) throw std::invalid_argument("operands of an aot operator do not fit together");
}

// The operands of one call as MindSpore hands them over, the output last.
struct Operands {
  int count;
  void** data;
  int* ranks;
  int64_t** shapes;
  const char** dtypes;

  DType dtype(int i) const {
    constexpr std::array<std::pair<const char*, DType>, 4> kNames{
        {{"float16", DType::float16}, {"bfloat16", DType::bfloat16}, {"float32", DType::float32}, {"float64", DType::float64}}};
    for (const auto& [name, dtype] : kNames) {
      if (!std::strcmp(dtypes[i], name)) return dtype;
    }
    throw std::invalid_argument("the engine takes float16, bfloat16, float32 and float64");
  }

  // Five sizes; of an array without a batch the first is 1.
  std::array<int64_t, 5> shape(int i) const {
    require(ranks[i] == 4 || ranks[i] == 5);
    std::array<int64_t, 5> result{1};
    std::copy_n(shapes[i], ranks[i], result.end() - ranks[i]);
    return result;
  }

  View view(int i) const {
    const std::array<int64_t, 5> sizes = shape(i);
    View v{data[i], dtype(i), {}};
    int64_t step = 1;
    for (size_t a = 5; a-- > 0;) {
      v.stride[a] = step;
      step *= std::max<int64_t>(1, sizes[a]);
    }
    return v;
  }

  // The bias, or its gradient, of `channels` elements.
  View vector(int i, int64_t channels) const {
    require(ranks[i] == 1 && shapes[i][0] == channels);
    return {data[i], dtype(i), {1}};
  }

  const int64_t* sizes(int i) const {
    require(!std::strcmp(dtypes[i], "int64") && ranks[i] == 1 && shapes[i][0] == kSizes);
    return static_cast<const int64_t*>(data[i]);
  }

  void advise_output() const {
    const int out = count - 1;
    int64_t bytes = view(out).element_size();
    for (int64_t size : shape(out)) bytes *= size;
    tconv3d::advise_output(data[out], size_t(bytes));
  }
};

Problem problem(const std::array<int64_t, 5>& x, const std::array<int64_t, 5>& w, const std::array<int64_t, 5>& y, const int64_t* sizes) {
  const int64_t groups = sizes[9];
  require(groups > 0 && x[0] == y[0] && x[1] == w[0] && x[1] % groups == 0 && y[1] == w[1] * groups);
  Problem p{x[0], groups, x[1], y[1], {}};
  for (size_t a = 0; a < 3; ++a) {
    p.axis[a] = {x[a + 2], w[a + 2], sizes[a], sizes[3 + a], sizes[6 + a], y[a + 2]};
    require(sizes[a] > 0 && sizes[3 + a] > 0);
  }
  return p;
}

Options options(const int64_t* sizes) {
  Options o;
  o.threads = sizes[10] > 0 ? int(std::min<int64_t>(sizes[10], kMaxThreads)) : get_num_threads();
  return o;
}

// No exception may pass into MindSpore: it would end the process.
template <class F>
int guarded(F f) noexcept {
  try {
    start_engine();
    f();
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace

}  // namespace tconv3d

#define TCONV3D_EXPORT extern "C" __attribute__((visibility("default"), used))

TCONV3D_EXPORT int tconv3d_mindspore_forward(int n, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  using namespace tconv3d;
  return guarded([&] {
    require(n == 4 || n == 5);
    const Operands in{n, data, ranks, shapes, dtypes};
    const int64_t* const sizes = in.sizes(n - 2);
    const Problem p = problem(in.shape(0), in.shape(1), in.shape(n - 1), sizes);
    const View x = in.view(0), w = in.view(1), y = in.view(n - 1), b = n == 5 ? in.vector(2, p.out_channels) : View{nullptr, x.dtype, {}};
    require(x.dtype == w.dtype && x.dtype == y.dtype && x.dtype == b.dtype);
    in.advise_output();
    forward(p, x, w, n == 5 ? &b : nullptr, y, options(sizes));
  });
}

TCONV3D_EXPORT int tconv3d_mindspore_input_grad(int n, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  using namespace tconv3d;
  return guarded([&] {
    require(n == 4);
    const Operands in{n, data, ranks, shapes, dtypes};
    const int64_t* const sizes = in.sizes(2);
    const Problem p = problem(in.shape(3), in.shape(1), in.shape(0), sizes);
    const View gy = in.view(0), w = in.view(1), gx = in.view(3);
    require(gy.dtype == w.dtype && gy.dtype == gx.dtype);
    in.advise_output();
    input_grad(p, gy, w, gx, options(sizes));
  });
}

TCONV3D_EXPORT int tconv3d_mindspore_weight_grad(int n, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  using namespace tconv3d;
  return guarded([&] {
    require(n == 4);
    const Operands in{n, data, ranks, shapes, dtypes};
    const int64_t* const sizes = in.sizes(2);
    const Problem p = problem(in.shape(0), in.shape(3), in.shape(1), sizes);
    const View x = in.view(0), gy = in.view(1), gw = in.view(3);
    require(x.dtype == gy.dtype && x.dtype == gw.dtype);
    weight_grad(p, x, gy, gw, options(sizes));
  });
}

TCONV3D_EXPORT int tconv3d_mindspore_bias_grad(int n, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  using namespace tconv3d;
  return guarded([&] {
    require(n == 2);
    const Operands in{n, data, ranks, shapes, dtypes};
    const std::array<int64_t, 5> y = in.shape(0);
    const View gy = in.view(0), gb = in.vector(1, y[1]);
    require(gy.dtype == gb.dtype);
    Problem p{y[0], 1, 1, y[1], {}};
    for (size_t a = 0; a < 3; ++a) p.axis[a] = {1, 1, 1, 1, 0, y[a + 2]};
    Options o;
    o.threads = get_num_threads();
    bias_grad(p, gy, gb, o);
  });
}
