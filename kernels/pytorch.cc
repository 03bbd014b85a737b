// SPDX-License-Identifier: Apache-2.0
// PyTorch's way in: calls resolved once, on tensors read by the C table that torch.Tensor carries for DLPack's exchange: 0.07 us for a tensor, where shape,
// strides, address and dispatch keys asked from Python take 1.2.
#include "pytorch.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include <algorithm>

#include "calls.h"

namespace nb = nanobind;

namespace tconv3d {

namespace {

// DLPackExchangeAPI of DLPack 1.3, up to the entry that is used here.
struct ExchangeTable {
  uint32_t major, minor;
  const ExchangeTable* older;
  void* allocator;
  void* managed_from_object;
  void* object_from_managed;
  int (*view_of_object)(PyObject*, nb::dlpack::dltensor*);  // owns nothing; 0, or -1 with an exception set
};

const ExchangeTable* table = nullptr;
PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;
PyObject* is_negative = nullptr;  // torch.Tensor.is_neg

void use_tensors_of(nb::handle tensor, nb::handle parameter) {
  nb::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  auto found = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) throw nb::python_error();
  while (found && found->major != 1) found = found->older;
  if (!found || !found->view_of_object) throw nb::import_error("this PyTorch has no view of tensors by DLPack 1.x; install a tconv3d made for it");
  table = found;
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  is_negative = nb::object(tensor.attr("is_neg")).release().ptr();
}

// A view into zeros that exist as a rule alone, or into a fake tensor, has an address that is no more than its offset. Memory lies lower than this only in
// programs at fixed addresses, whose calls are then resolved anew each time.
constexpr uintptr_t kLeastAddress = uintptr_t(1) << 32;

constexpr uint8_t kFloat = uint8_t(nb::dlpack::dtype_code::Float), kBfloat = uint8_t(nb::dlpack::dtype_code::Bfloat);

nb::dlpack::dtype dlpack_dtype(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return {kFloat, 16, 1};
    case DType::bfloat16:
      return {kBfloat, 16, 1};
    case DType::float32:
      return {kFloat, 32, 1};
    default:
      return {kFloat, 64, 1};
  }
}

using Tensor = nb::dlpack::dltensor;

uintptr_t address(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) + t.byte_offset; }

bool on_cpu(const Tensor& t) { return t.device.device_type == nb::device::cpu::value; }
bool is_aligned(const Tensor& t) { return address(t) % (t.dtype.bits / 8u) == 0; }
bool equal(const int64_t* a, const Shape& b) { return std::equal(b.begin(), b.end(), a); }
bool has(const Tensor& t, const Shape& shape, const Shape& stride) { return t.ndim == 5 && equal(t.shape, shape) && equal(t.strides, stride); }

// One resolved call: everything but the operands.
class TensorCall {
 public:
  TensorCall(const Shape& input, const Shape& weight, const Sizes& output, const Sizes& stride, const Sizes& dilation, const Sizes& crop, int64_t groups,
             DType dtype, const Shape& input_stride, const Shape& weight_stride)
      : problem_(problem_of(input, weight, output, stride, dilation, crop, groups)),
        input_(input_shape(problem_)),
        weight_(weight_shape(problem_)),
        output_(output_shape(problem_)),
        input_stride_(input_stride),
        weight_stride_(weight_stride),
        dtype_(dtype) {
    require(table, "use_tensors_of comes first");
  }

  // Whether these are the operands that the call was resolved for, and plain: neither of a subclass nor negated when read, with memory of their own.
  bool fits(nb::handle input, nb::handle weight, nb::handle bias) const {
    Tensor x, w, b;
    return is_plain(input, x) && has(x, input_, input_stride_) && is_plain(weight, w) && has(w, weight_, weight_stride_) &&
           (bias.is_none() || (is_plain(bias, b) && b.ndim == 1 && b.shape[0] == problem_.out_channels));
  }

  void forward(nb::handle input, nb::handle weight, nb::handle bias, nb::handle output, int threads, PackedPanels* packed) const {
    View vb{};
    if (!bias.is_none()) {
      Tensor b = tensor_of(bias);
      require(b.ndim == 1 && b.shape[0] == problem_.out_channels, "bias has out_channels elements");
      vb = {reinterpret_cast<void*>(address(b)), dtype_, {b.strides[0]}};
    }
    run(Op::forward, problem_, view_of(input, input_), view_of(weight, weight_), bias.is_none() ? nullptr : &vb, view_of(output, output_),
        options_of(threads, Family::automatic, packed));
  }

  void input_grad(nb::handle grad_output, nb::handle weight, nb::handle grad_input, int threads) const {
    run(Op::input_grad, problem_, view_of(grad_output, output_), view_of(weight, weight_), nullptr, view_of(grad_input, input_),
        options_of(threads, Family::automatic, nullptr));
  }

  void weight_grad(nb::handle input, nb::handle grad_output, nb::handle grad_weight, int threads) const {
    run(Op::weight_grad, problem_, view_of(input, input_), view_of(grad_output, output_), nullptr, view_of(grad_weight, weight_),
        options_of(threads, Family::automatic, nullptr));
  }

 private:
  bool is_plain(nb::handle tensor, Tensor& seen) const {
    PyTypeObject* const type = Py_TYPE(tensor.ptr());
    if (type != tensor_type && type != parameter_type) return false;
    if (table->view_of_object(tensor.ptr(), &seen) != 0) {  // of another device or layout
      PyErr_Clear();
      return false;
    }
    if (!on_cpu(seen) || seen.dtype != dlpack_dtype(dtype_) || address(seen) < kLeastAddress || !is_aligned(seen)) return false;
    PyObject* const operand = tensor.ptr();
    const nb::object negative = nb::steal(PyObject_Vectorcall(is_negative, &operand, 1, nullptr));
    if (!negative.is_valid()) throw nb::python_error();
    return negative.ptr() == Py_False;
  }

  // That it is plain was seen before.
  Tensor tensor_of(nb::handle tensor) const {
    Tensor t;
    if (table->view_of_object(tensor.ptr(), &t) != 0) throw nb::python_error();
    require(on_cpu(t) && t.dtype == dlpack_dtype(dtype_), "tensors lie on the CPU and have the dtype of the call");
    require(address(t) != 0 || std::count(t.shape, t.shape + t.ndim, 0) > 0, "tensors have memory");
    if (!is_aligned(t)) throw Unaddressable("the engine takes tensors that lie on a multiple of their elements");
    return t;
  }

  View view_of(nb::handle tensor, const Shape& shape) const {
    const Tensor t = tensor_of(tensor);
    require(t.ndim == 5 && equal(t.shape, shape), "tensors have the shapes of the call");
    View v{reinterpret_cast<void*>(address(t)), dtype_, {}};
    std::copy_n(t.strides, 5, v.stride.begin());
    return v;
  }

  const Problem problem_;
  const Shape input_, weight_, output_, input_stride_, weight_stride_;
  const DType dtype_;
};

}  // namespace

void bind_pytorch(nb::module_& m) {
  m.def("use_tensors_of", &use_tensors_of, nb::arg("tensor"), nb::arg("parameter"), "Names torch.Tensor and torch.nn.Parameter, once, before any TensorCall.");
  nb::class_<TensorCall>(m, "TensorCall", "A resolved call on PyTorch's tensors: everything but the operands. Strides in elements.")
      .def(nb::init<const Shape&, const Shape&, const Sizes&, const Sizes&, const Sizes&, const Sizes&, int64_t, DType, const Shape&, const Shape&>(),
           nb::arg("input_shape"), nb::arg("weight_shape"), nb::arg("output_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("crop_front"),
           nb::arg("groups"), nb::arg("dtype"), nb::arg("input_stride"), nb::arg("weight_stride"))
      .def("fits", &TensorCall::fits, nb::arg("input"), nb::arg("weight"), nb::arg("bias").none(),
           "Whether the operands are those that the call was resolved for, of torch.Tensor itself or Parameter, on the CPU.")
      .def("forward", &TensorCall::forward, nb::arg("input"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("output"), nb::arg("threads"),
           nb::arg("packed").none(), "Writes the transposed convolution into output.")
      .def("input_grad", &TensorCall::input_grad, nb::arg("grad_output"), nb::arg("weight"), nb::arg("grad_input"), nb::arg("threads"),
           "Writes the gradient of the input into grad_input.")
      .def("weight_grad", &TensorCall::weight_grad, nb::arg("input"), nb::arg("grad_output"), nb::arg("grad_weight"), nb::arg("threads"),
           "Writes the gradient of the weight into grad_weight.");
}

}  // namespace tconv3d
