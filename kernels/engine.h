// SPDX-License-Identifier: Apache-2.0
// The three operations. Callers have checked shapes, element types and sizes; nothing here knows Python.
//
//     forward      y[n, co, o]  = bias[co] + sum x[n, ci, i] * w[ci, co, k]   over all i*stride + k*dilation - crop = o
//     input_grad   gx[n, ci, i] =            sum gy[n, co, o] * w[ci, co, k]
//     weight_grad  gw[ci, co, k] =           sum x[n, ci, i] * gy[n, co, o]
//
// Same bits for any number of threads, batch (but weight_grad), block and memory format. Direct: per target the terms are added in one chain of
// multiply-adds per chunk of channels (channel_chunk in gather.h), taps outer and channels inner, and chunks in order. Two-tap: so is each product,
// and a target is its own product plus the shared one, along d, then h, then w. Col2im: each tap's product of a chunk of channels is a chain, and a
// target adds them by source plane, chunk, tap of h and tap of w. Which of the three runs depends on the layer and the size of an image; of weight_grad,
// on the batch and the stored dtypes as well.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "geometry.h"
#include "isa/isa.h"
#include "memory.h"
#include "threads.h"

namespace tconv3d {

// A stored 5-D array: (batch, channel, d, h, w), or a weight (in, out per group, kd, kh, kw). Strides in elements, any sign.
struct View {
  void* data;
  DType dtype;
  std::array<int64_t, 5> stride;

  int64_t element_size() const { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }
  void* at(int64_t offset) const { return static_cast<char*>(data) + offset * element_size(); }
};

// Panels packed from a weight that its owner promises not to change, kept by the layout that a plan asked for.
class PackedPanels {
 public:
  using Key = std::vector<int64_t>;
  std::shared_ptr<Scratch> find(const Key& key) const;
  void keep(const Key& key, std::shared_ptr<Scratch> panels);

 private:
  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<Scratch>> panels_;
};

// What lies on the lanes and rows of a tile. All give the same bits; `automatic` asks the cost model. `phased` and `depthwise` are `spatial` where they do
// not apply.
enum class Family : int { automatic, spatial, phased, depthwise, channels, rows };

// How products are formed. Each has bits of its own; `automatic` chooses by layer and image size. `two_tap` and `col2im` (forward only) are taken wherever
// they apply, and direct where they do not.
enum class Algorithm : int { automatic, direct, two_tap, col2im };

// TCONV3D_ALGORITHM, else automatic. Throws std::invalid_argument naming the choices.
Algorithm active_algorithm();
void set_active_algorithm(const char* name);

// How each axis forms its products. 0: directly. Else by the two-tap method: 1 + the parity of the pairs' middle samples in the source, + 2 where a
// tap without a partner reads the sample after a middle rather than before. Whoever cuts an input at an odd sample changes 1 and 2, 3 and 4. All axes
// kCol2im: that method.
using Method = std::array<int, 3>;
constexpr Method kDirect{0, 0, 0};
constexpr Method kCol2im{-1, -1, -1};
constexpr int kMostPairing = 4;

struct Options {
  int threads = 1;
  Family family = Family::automatic;  // any but automatic: the direct method
  std::optional<Method> method;       // of forward: what method_of said of the whole that this call is a part of
  PackedPanels* packed = nullptr;
  std::function<bool()> stop;  // polled between tasks; true ends the call with Interrupted
};

// What forward (or, `backward`, input_grad) of float32 or float64 arrays, C-contiguous, would run, and the cycles that the cost model expects.
std::string describe_plan(const Problem&, DType, bool backward, const Options&);

// Likewise of weight_grad.
std::string describe_weight_grad(const Problem&, DType);

// The method that forward takes by itself. Bits depend on it, and it on the size of the image.
Method method_of(const Problem&);

void forward(const Problem&, const View& x, const View& w, const View* bias, const View& y, const Options&);
void input_grad(const Problem&, const View& gy, const View& w, const View& gx, const Options&);
void weight_grad(const Problem&, const View& x, const View& gy, const View& gw, const Options&);
void bias_grad(const Problem&, const View& gy, const View& gb, const Options&);

}  // namespace tconv3d
