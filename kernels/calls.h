// SPDX-License-Identifier: Apache-2.0
// A call from Python, whatever its arrays came as: what keeps memory safe, the options, and the run without the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <stdexcept>

#include "engine.h"

namespace tconv3d {

using Sizes = std::array<int64_t, 3>;
using Shape = std::array<int64_t, 5>;

// An operand that the engine cannot read or write where it lies: a TypeError of its own, by which Python knows that nothing has begun.
struct Unaddressable : std::invalid_argument {
  using invalid_argument::invalid_argument;
};

// nanobind::value_error otherwise.
void require(bool ok, const char* what);

Problem problem_of(const Shape& input, const Shape& weight, const Sizes& output, const Sizes& stride, const Sizes& dilation, const Sizes& crop, int64_t groups);

Shape input_shape(const Problem& p);
Shape weight_shape(const Problem& p);
Shape output_shape(const Problem& p);

Options options_of(int threads, Family family, PackedPanels* packed);

// Arrays in the order source, weight, target of forward: (input, weight, output), of input_grad (grad_output, weight, grad_input), of weight_grad
// (input, grad_output, grad_weight).
enum class Op : int { forward, input_grad, weight_grad };

// One operation, without the GIL while it runs. Throws nanobind::python_error for an exception that a signal handler raised.
void run(Op op, const Problem& p, const View& a, const View& b, const View* bias, const View& c, const Options& o);
void run_bias_grad(const Problem& p, const View& gy, const View& gb, const Options& o);

}  // namespace tconv3d
