// SPDX-License-Identifier: Apache-2.0
#define TCONV3D_ISA avx512
#define TCONV3D_VECTOR_BYTES 64
#define TCONV3D_REGISTERS 32
#include "../kernels.h"
