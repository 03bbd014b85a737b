// SPDX-License-Identifier: Apache-2.0
// C symbols for MindSpore's "aot" operators, found by name in this very library; no compiler and no header of MindSpore is needed.
//
//     forward      (x, w, [bias,] sizes) -> y
//     input_grad   (gy, w, sizes)        -> gx
//     weight_grad  (x, gy, sizes)        -> gw
//     bias_grad    (gy)                  -> gb
//
// Arrays are C-contiguous, of one type. `sizes` is an int64 tensor: stride, dilation and crop in front per axis, groups, threads (0: ours). All
// return 0, or another number for operands that do not fit, which MindSpore turns into a RuntimeError.
#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "engine.h"
#include "start.h"

namespace tconv3d {

namespace {

constexpr int64_t kSizes = 11;
constexpr int64_t kAdviseBytes = int64_t(4) << 20;

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

  View view(int i, int rank) const {
    require(ranks[i] == rank);
    View v{data[i], dtype(i), {}};
    int64_t step = 1;
    for (int a = rank - 1; a >= 0; --a) {
      v.stride[size_t(a)] = step;
      step *= std::max<int64_t>(1, shapes[i][a]);
    }
    return v;
  }

  const int64_t* sizes(int i) const {
    require(!std::strcmp(dtypes[i], "int64") && ranks[i] == 1 && shapes[i][0] == kSizes);
    return static_cast<const int64_t*>(data[i]);
  }

  void advise_output() const {
    const int out = count - 1;
    int64_t bytes = view(out, 5).element_size();
    for (int a = 0; a < 5; ++a) bytes *= shapes[out][a];
    if (bytes >= kAdviseBytes) advise_huge(data[out], size_t(bytes));
  }
};

Problem problem(const int64_t* x, const int64_t* w, const int64_t* y, const int64_t* sizes) {
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
    const View x = in.view(0, 5), w = in.view(1, 5), y = in.view(n - 1, 5), b = n == 5 ? in.view(2, 1) : View{};
    require(x.dtype == w.dtype && x.dtype == y.dtype && (n == 4 || (b.dtype == x.dtype && shapes[2][0] == shapes[n - 1][1])));
    const Problem p = problem(shapes[0], shapes[1], shapes[n - 1], sizes);
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
    const View gy = in.view(0, 5), w = in.view(1, 5), gx = in.view(3, 5);
    require(gy.dtype == w.dtype && gy.dtype == gx.dtype);
    const Problem p = problem(shapes[3], shapes[1], shapes[0], sizes);
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
    const View x = in.view(0, 5), gy = in.view(1, 5), gw = in.view(3, 5);
    require(x.dtype == gy.dtype && x.dtype == gw.dtype);
    weight_grad(problem(shapes[0], shapes[3], shapes[1], sizes), x, gy, gw, options(sizes));
  });
}

TCONV3D_EXPORT int tconv3d_mindspore_bias_grad(int n, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  using namespace tconv3d;
  return guarded([&] {
    require(n == 2);
    const Operands in{n, data, ranks, shapes, dtypes};
    const View gy = in.view(0, 5), gb = in.view(1, 1);
    require(gy.dtype == gb.dtype && shapes[1][0] == shapes[0][1]);
    Problem p{shapes[0][0], 1, 1, shapes[0][1], {}};
    for (size_t a = 0; a < 3; ++a) p.axis[a] = {1, 1, 1, 1, 0, shapes[0][a + 2]};
    Options o;
    o.threads = get_num_threads();
    bias_grad(p, gy, gb, o);
  });
}
