// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nanobind/nanobind.h>

namespace tconv3d {

// Adds the class of calls on PyTorch's tensors to the module.
void bind_pytorch(nanobind::module_& m);

}  // namespace tconv3d
