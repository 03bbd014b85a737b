// SPDX-License-Identifier: Apache-2.0
// Python's way in: nanobind's functions on NumPy arrays, never converted. bfloat16 arrives as uint16, its bits.
// Everything that a person can get wrong was refused in Python already; the checks here keep memory safe whatever arrives.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "calls.h"
#include "pytorch.h"
#include "start.h"

namespace nb = nanobind;

namespace tconv3d {

namespace {

[[noreturn]] void refuse() {
  throw Unaddressable(
      "the engine takes NumPy arrays of float16, bfloat16 (as uint16), float32 and float64, aligned, in native byte order and, where written, writable");
}

constexpr char kNativeOrder = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';

// A NumPy array, held while the engine works on it. Through the buffer protocol: by DLPack, nanobind's own way, each takes 0.4 us longer.
class Array {
 public:
  enum class Access { read, write };

  Array(nb::handle array, Access access) {
    const int flags = PyBUF_FORMAT | PyBUF_STRIDES | (access == Access::write ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(array.ptr(), &held_.view, flags) != 0) {
      if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError))
        throw nb::python_error();
      PyErr_Clear();
      refuse();
    }
    const Py_buffer& v = held_.view;
    std::string_view format(v.format ? v.format : "");
    if (!format.empty() && (format[0] == kNativeOrder || format[0] == '=')) format.remove_prefix(1);  // zarr's arrays name their order
    if (format == "f")
      dtype_ = DType::float32;
    else if (format == "d" || (format == "g" && v.itemsize == Py_ssize_t(sizeof(double))))  // long double on Apple silicon
      dtype_ = DType::float64;
    else if (format == "e")
      dtype_ = DType::float16;
    else if (format == "H")
      dtype_ = DType::bfloat16;
    else
      refuse();
    bool aligned = v.len == 0 || reinterpret_cast<uintptr_t>(v.buf) % size_t(v.itemsize) == 0;
    for (int a = 0; a < v.ndim; ++a) aligned = aligned && v.strides[a] % v.itemsize == 0;
    if (!aligned) refuse();
  }

  size_t ndim() const { return size_t(held_.view.ndim); }
  int64_t shape(size_t axis) const { return held_.view.shape[axis]; }
  int64_t stride(size_t axis) const { return held_.view.strides[axis] / held_.view.itemsize; }
  void* data() const { return held_.view.buf; }
  DType dtype() const { return dtype_; }

 private:
  struct Held {
    Py_buffer view{};
    Held() = default;
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() { PyBuffer_Release(&view); }  // of none, nothing
  };

  Held held_;
  DType dtype_;
};

View view_of(const Array& a, size_t rank) {
  if (a.ndim() != rank) throw nb::value_error("the engine takes arrays of rank 5, and rank 1 for a bias");
  View v{a.data(), a.dtype(), {}};
  for (size_t i = 0; i < rank; ++i) v.stride[i] = a.stride(i);
  return v;
}

Shape shape_of(const Array& a) {
  require(a.ndim() == 5, "input, weight and output have rank 5");
  return {a.shape(0), a.shape(1), a.shape(2), a.shape(3), a.shape(4)};
}

Problem problem_of_arrays(const Array& x, const Array& w, const Array& y, const Sizes& stride, const Sizes& dilation, const Sizes& crop, int64_t groups) {
  const Shape out = shape_of(y);
  const Problem p = problem_of(shape_of(x), shape_of(w), {out[2], out[3], out[4]}, stride, dilation, crop, groups);
  require(out[1] == p.out_channels && out[0] == p.batch, "batch and channels agree");
  require(x.dtype() == w.dtype() && x.dtype() == y.dtype(), "input, weight and output have one dtype");
  return p;
}

// Tensors of MindSpore come as addresses: importing one through the buffer protocols costs 20 times as much. The caller has checked device, dtype,
// shapes and lifetime.
View view_at(uintptr_t data, const Shape& stride, DType dtype) { return {reinterpret_cast<void*>(data), dtype, stride}; }

// An uninitialized C-contiguous array whose memory comes from the output pool and returns to it with the last view of the array.
nb::object empty(const std::vector<int64_t>& shape, const std::string& name) {
  const nb::dlpack::dtype dtype = name == "float64" ? nb::dtype<double>() : name == "float32" ? nb::dtype<float>() : nb::dtype<uint16_t>();
  size_t bytes = dtype.bits / 8;
  for (int64_t n : shape) {
    require(n >= 0 && !__builtin_mul_overflow(bytes, size_t(n), &bytes), "sizes are not negative and fit 64 bits");
  }
  auto owned = std::make_unique<Buffer>(acquire_output(bytes));
  Buffer* const buffer = owned.release();
  nb::capsule owner(buffer, [](void* p) noexcept {
    release_output(*static_cast<Buffer*>(p));
    delete static_cast<Buffer*>(p);
  });
  std::vector<size_t> sizes(shape.begin(), shape.end());
  return nb::cast(nb::ndarray<nb::numpy>(buffer->data, sizes.size(), sizes.data(), owner, nullptr, dtype));
}

void py_forward(nb::handle input, nb::handle weight, nb::handle bias, nb::handle output, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
                int64_t groups, int threads, PackedPanels* packed, Family family, const std::optional<Method>& method) {
  const Array x(input, Array::Access::read), w(weight, Array::Access::read), y(output, Array::Access::write);
  const Problem p = problem_of_arrays(x, w, y, stride, dilation, crop, groups);
  std::optional<Array> b;
  View vb{};
  if (!bias.is_none()) {
    b.emplace(bias, Array::Access::read);
    vb = view_of(*b, 1);
    require(b->shape(0) == p.out_channels && vb.dtype == x.dtype(), "bias has out_channels elements of the input's dtype");
  }
  Options o = options_of(threads, family, packed);
  if (method && *method != kCol2im)
    for (int pairing : *method) require(pairing >= 0 && pairing <= kMostPairing, "a method comes from method_of");
  o.method = method;
  run(Op::forward, p, view_of(x, 5), view_of(w, 5), b ? &vb : nullptr, view_of(y, 5), o);
}

void py_input_grad(nb::handle grad_output, nb::handle weight, nb::handle grad_input, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
                   int64_t groups, int threads, PackedPanels* packed, Family family) {
  const Array gy(grad_output, Array::Access::read), w(weight, Array::Access::read), gx(grad_input, Array::Access::write);
  const Problem p = problem_of_arrays(gx, w, gy, stride, dilation, crop, groups);
  run(Op::input_grad, p, view_of(gy, 5), view_of(w, 5), nullptr, view_of(gx, 5), options_of(threads, family, packed));
}

void py_weight_grad(nb::handle input, nb::handle grad_output, nb::handle grad_weight, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
                    int64_t groups, int threads) {
  const Array x(input, Array::Access::read), gy(grad_output, Array::Access::read), gw(grad_weight, Array::Access::write);
  const Problem p = problem_of_arrays(x, gw, gy, stride, dilation, crop, groups);
  run(Op::weight_grad, p, view_of(x, 5), view_of(gy, 5), nullptr, view_of(gw, 5), options_of(threads, Family::automatic, nullptr));
}

void py_bias_grad(nb::handle grad_output, nb::handle grad_bias, int threads) {
  const Array gy(grad_output, Array::Access::read), gb(grad_bias, Array::Access::write);
  require(gy.ndim() == 5 && gb.ndim() == 1 && gb.shape(0) == gy.shape(1) && gy.dtype() == gb.dtype(),
          "grad_output has rank 5, grad_bias one element per channel");
  Problem p{gy.shape(0), 1, 1, gy.shape(1), {}};
  for (size_t a = 0; a < 3; ++a) p.axis[a] = {1, 1, 1, 1, 0, gy.shape(a + 2)};
  run_bias_grad(p, view_of(gy, 5), view_of(gb, 1), options_of(threads, Family::automatic, nullptr));
}

// A resolved layer call on addresses; `op` names the operation.
void run_at(Op op, DType dtype, std::array<uintptr_t, 3> data, Shape stride0, Shape stride1, Shape stride2, uintptr_t bias, const Shape& input,
            const Shape& weight, const Sizes& output_size, const Sizes& stride, const Sizes& dilation, const Sizes& crop, int64_t groups, int threads) {
  const Problem p = problem_of(input, weight, output_size, stride, dilation, crop, groups);
  const View vb{reinterpret_cast<void*>(bias), dtype, {1}};
  run(op, p, view_at(data[0], stride0, dtype), view_at(data[1], stride1, dtype), bias ? &vb : nullptr, view_at(data[2], stride2, dtype),
      options_of(threads, Family::automatic, nullptr));
}

}  // namespace

NB_MODULE(_core, m) {
  // While no other thread can be here: a fork in the middle of a first call would leave the child waiting for what that call was making.
  start_engine();
  try {
    active_kernels();
  } catch (const std::invalid_argument&) {
    // A TCONV3D_ISA that names nothing: the first call says so.
  }
  nb::exception<Unaddressable>(m, "Unaddressable", PyExc_TypeError);
  m.doc() = "The compiled engine of tconv3d. Use tconv3d itself: this module's functions take arguments that were checked already.";
  nb::class_<PackedPanels>(m, "PackedPanels", "Packed weights, kept by the layout that each plan asked for.").def(nb::init<>());
  nb::enum_<Family>(m, "Family", "What lies on the lanes and rows of a register tile; all give the same bits.")
      .value("automatic", Family::automatic)
      .value("spatial", Family::spatial)
      .value("phased", Family::phased)
      .value("depthwise", Family::depthwise)
      .value("rows", Family::rows)
      .value("channels", Family::channels);

  m.def("forward", &py_forward, nb::arg("input"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("output"), nb::arg("stride"), nb::arg("dilation"),
        nb::arg("crop_front"), nb::arg("groups"), nb::arg("threads") = 0, nb::arg("packed").none() = nb::none(), nb::arg("family") = Family::automatic,
        nb::arg("method").none() = nb::none(), "Writes the transposed convolution into output.");
  m.def(
      "method_of",
      [](const Shape& input_shape, const Shape& weight_shape, const Sizes& output_size, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
         int64_t groups) { return method_of(problem_of(input_shape, weight_shape, output_size, stride, dilation, crop, groups)); },
      nb::arg("input_shape"), nb::arg("weight_shape"), nb::arg("output_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("crop_front"), nb::arg("groups"),
      "How forward would form the products of each axis: 0 directly, -1 (all axes) by col2im, else the two-tap method, 1 + the parity of its "
      "pairs, + 2 for the other side.");
  m.def("input_grad", &py_input_grad, nb::arg("grad_output"), nb::arg("weight"), nb::arg("grad_input"), nb::arg("stride"), nb::arg("dilation"),
        nb::arg("crop_front"), nb::arg("groups"), nb::arg("threads") = 0, nb::arg("packed").none() = nb::none(), nb::arg("family") = Family::automatic,
        "Writes the gradient of the input into grad_input.");
  m.def("weight_grad", &py_weight_grad, nb::arg("input"), nb::arg("grad_output"), nb::arg("grad_weight"), nb::arg("stride"), nb::arg("dilation"),
        nb::arg("crop_front"), nb::arg("groups"), nb::arg("threads") = 0, "Writes the gradient of the weight into grad_weight.");
  m.def("bias_grad", &py_bias_grad, nb::arg("grad_output"), nb::arg("grad_bias"), nb::arg("threads") = 0,
        "Writes the sum of grad_output over batch and space into grad_bias.");

  nb::enum_<DType>(m, "DType", "Stored element types.")
      .value("float16", DType::float16)
      .value("bfloat16", DType::bfloat16)
      .value("float32", DType::float32)
      .value("float64", DType::float64);
  nb::enum_<Op>(m, "Op", "Operations of run_at.").value("forward", Op::forward).value("input_grad", Op::input_grad).value("weight_grad", Op::weight_grad);
  m.def("run_at", &run_at, nb::arg("op"), nb::arg("dtype"), nb::arg("data"), nb::arg("stride0"), nb::arg("stride1"), nb::arg("stride2"), nb::arg("bias"),
        nb::arg("input_shape"), nb::arg("weight_shape"), nb::arg("output_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("crop_front"),
        nb::arg("groups"), nb::arg("threads") = 0, "The operations on addresses and strides (in elements), for tensors of MindSpore.");
  bind_pytorch(m);
  m.def("empty", &empty, nb::arg("shape"), nb::arg("dtype"), "An uninitialized array (float32, float64, or uint16 for 16-bit types) from the output pool.");
  m.def("output_pool_limit", &output_pool_limit, "Bytes that may lie idle in the output pool.");
  m.def("release_idle_memory", &release_idle_memory, "Frees the idle buffers that the engine keeps for the next call.");
  m.def(
      "describe_plan",
      [](const Shape& input_shape, const Shape& weight_shape, const Sizes& output_size, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
         int64_t groups, bool float64, bool backward, int threads) {
        const Problem p = problem_of(input_shape, weight_shape, output_size, stride, dilation, crop, groups);
        return describe_plan(p, float64 ? DType::float64 : DType::float32, backward, options_of(threads, Family::automatic, nullptr));
      },
      nb::arg("input_shape"), nb::arg("weight_shape"), nb::arg("output_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("crop_front"), nb::arg("groups"),
      nb::arg("float64") = false, nb::arg("backward") = false, nb::arg("threads") = 0,
      "What forward, or with `backward` input_grad, would run: method, tiles, blocks, expected cycles.");
  m.def(
      "describe_weight_grad",
      [](const Shape& input_shape, const Shape& weight_shape, const Sizes& output_size, const Sizes& stride, const Sizes& dilation, const Sizes& crop,
         int64_t groups, DType dtype) {
        const Problem p = problem_of(input_shape, weight_shape, output_size, stride, dilation, crop, groups);
        return describe_weight_grad(p, dtype);
      },
      nb::arg("input_shape"), nb::arg("weight_shape"), nb::arg("output_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("crop_front"), nb::arg("groups"),
      nb::arg("dtype") = DType::float32, "What weight_grad of arrays of one dtype would run.");
  m.def("get_num_threads", &get_num_threads, "Threads that a call uses.");
  m.def("set_num_threads", &set_num_threads, nb::arg("n"), "Sets the threads that a call uses, 1 to 256.");
  m.def(
      "instruction_sets",
      [] {
        std::vector<std::string> names;
        for (int i = 0; available_isa(i); ++i) names.emplace_back(available_isa(i));
        return names;
      },
      "Instruction sets that this build and this machine have, best first.");
  m.def("active_instruction_set", [] { return std::string(active_kernels().name); }, "The instruction set in use.");
  m.def("set_instruction_set", [](const std::string& name) { set_active_kernels(name.c_str()); }, nb::arg("name"), "Chooses an instruction set by name.");
  m.def(
      "active_algorithm",
      [] {
        const char* const names[] = {"automatic", "direct", "two_tap", "col2im"};
        return std::string(names[int(active_algorithm())]);
      },
      "How products are formed: automatic, direct, two_tap or col2im.");
  m.def("set_algorithm", [](const std::string& name) { set_active_algorithm(name.c_str()); }, nb::arg("name"), "Chooses how products are formed, by name.");
  m.def("cache_bytes", &cache_bytes, "Second-level cache per core, in bytes, as the block sizes see it.");
}

}  // namespace tconv3d
