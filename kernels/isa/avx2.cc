// SPDX-License-Identifier: Apache-2.0
#define TCONV3D_ISA avx2
#define TCONV3D_VECTOR_BYTES 32
#define TCONV3D_REGISTERS 16
#include "../kernels.h"
