// SPDX-License-Identifier: Apache-2.0
#define TCONV3D_ISA base
#define TCONV3D_VECTOR_BYTES 16
#define TCONV3D_REGISTERS 16
#include "../kernels.h"
