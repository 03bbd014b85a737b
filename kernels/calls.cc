// SPDX-License-Identifier: Apache-2.0
#include "calls.h"

#include <algorithm>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace nb = nanobind;

namespace tconv3d {

namespace {

// Takes the GIL by `take`. While the interpreter ends, Python before 3.14 ends a daemon thread that asks for it by pthread_exit, whose unwinding
// through C++ is std::terminate for the whole process: such a thread stays here until the process is gone.
template <class F>
void acquire_gil(F take) {
#if defined(__GLIBCXX__)
  try {
    take();
  } catch (abi::__forced_unwind&) {
    for (;;) ::pause();
  }
#else
  take();
#endif
}

// The thread state that this thread gave up with the GIL.
thread_local PyThreadState* released = nullptr;

// Ctrl-C: Python's signal handlers run between tasks, on the thread that called. The GIL is asked for by the thread state at hand:
// PyGILState_Ensure would look it up, which after the interpreter's end is a read through null (Python 3.11).
bool signalled() {
  acquire_gil([] { PyEval_RestoreThread(released); });
  const bool stop = PyErr_CheckSignals() != 0;
  released = PyEval_SaveThread();
  return stop;
}

template <class F>
void without_gil(F f) {
  released = PyEval_SaveThread();
  const auto restore = [] { acquire_gil([] { PyEval_RestoreThread(released); }); };
  try {
    f();
  } catch (const Interrupted&) {
    restore();
    throw nb::python_error();
  } catch (...) {
    restore();
    throw;
  }
  restore();
}

void advise(const View& y, const Shape& shape) {
  int64_t elements = 1;
  for (size_t a = 0; a < 5; ++a) {
    if (shape[a] == 0 || y.stride[a] < 0) return;
    elements += (shape[a] - 1) * y.stride[a];
  }
  advise_output(y.data, size_t(elements * y.element_size()));
}

}  // namespace

void require(bool ok, const char* what) {
  if (!ok) throw nb::value_error(what);
}

Problem problem_of(const Shape& input, const Shape& weight, const Sizes& output, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
                   int64_t groups) {
  require(groups > 0, "groups is positive");
  Problem p{input[0], groups, weight[0], weight[1] * groups, {}};
  require(input[1] == p.in_channels && p.in_channels % groups == 0, "channels agree");
  for (size_t a = 0; a < 3; ++a) {
    require(stride[a] > 0 && dilation[a] > 0, "stride and dilation are positive");
    p.axis[a] = {input[a + 2], weight[a + 2], stride[a], dilation[a], crop[a], output[a]};
  }
  return p;
}

Shape input_shape(const Problem& p) { return {p.batch, p.in_channels, p.axis[0].input, p.axis[1].input, p.axis[2].input}; }
Shape weight_shape(const Problem& p) { return {p.in_channels, p.out_channels / p.groups, p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}; }
Shape output_shape(const Problem& p) { return {p.batch, p.out_channels, p.axis[0].output, p.axis[1].output, p.axis[2].output}; }

Options options_of(int threads, Family family, PackedPanels* packed) {
  Options o;
  o.threads = threads > 0 ? std::min(threads, kMaxThreads) : get_num_threads();
  o.family = family;
  o.packed = packed;
  o.stop = signalled;
  return o;
}

void run(Op op, const Problem& p, const View& a, const View& b, const View* bias, const View& c, const Options& o) {
  advise(c, op == Op::forward ? output_shape(p) : op == Op::input_grad ? input_shape(p) : weight_shape(p));
  without_gil([&] {
    if (op == Op::forward)
      forward(p, a, b, bias, c, o);
    else if (op == Op::input_grad)
      input_grad(p, a, b, c, o);
    else
      weight_grad(p, a, b, c, o);
  });
}

void run_bias_grad(const Problem& p, const View& gy, const View& gb, const Options& o) {
  without_gil([&] { bias_grad(p, gy, gb, o); });
}

}  // namespace tconv3d
