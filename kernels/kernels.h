// SPDX-License-Identifier: Apache-2.0
// Everything that is compiled once per instruction set, and the table that hands it to the portable code.
#pragma once

#include "pack.h"
#include "phased_rows.h"
#include "tile.h"
#include "transform.h"

namespace tconv3d {
namespace TCONV3D_ISA {

// Accumulators, one register per lane vector and one for the broadcast. A single row needs no register for its lanes:
// they are memory operands.
constexpr bool spatial_fits(int rows, int vectors) { return rows == 1 ? vectors + 2 <= TCONV3D_REGISTERS : rows * vectors + vectors + 1 <= TCONV3D_REGISTERS; }

template <class T, int Vectors, int Rows>
struct FillRows {
  static void fill(TileKernels<T>& k) {
    if constexpr (spatial_fits(Rows, Vectors)) k.spatial[Vectors][Rows] = spatial_tile<T, Rows, Vectors>;
    if constexpr (Rows <= kMaxPointerRows && spatial_fits(Rows, Vectors)) k.pointer[Vectors][Rows] = pointer_tile<T, Rows, Vectors>;
    FillRows<T, Vectors, Rows - 1>::fill(k);
  }
};
template <class T, int Vectors>
struct FillRows<T, Vectors, 0> {
  static void fill(TileKernels<T>&) {}
};

template <class T, int PhasesH, int Columns, int Vectors>
static void fill_phased(TileKernels<T>& k) {
  if constexpr (spatial_fits(PhasesH * 2 * Columns, Vectors)) k.phased[PhasesH][Columns][Vectors] = phased_tile<T, PhasesH, 2, Columns, Vectors>;
}
template <class T, int Vectors>
static void fill_phased(TileKernels<T>& k) {
  fill_phased<T, 1, 1, Vectors>(k);
  fill_phased<T, 1, 2, Vectors>(k);
  fill_phased<T, 2, 1, Vectors>(k);
  fill_phased<T, 2, 2, Vectors>(k);
  if constexpr (spatial_fits(2, Vectors)) k.phased_rows[1][Vectors] = phased_rows<T, 1, Vectors>;
  if constexpr (spatial_fits(4, Vectors)) k.phased_rows[2][Vectors] = phased_rows<T, 2, Vectors>;
}

template <class T, int Vectors>
static void fill_vectors(TileKernels<T>& k) {
  FillRows<T, Vectors, kMaxRows>::fill(k);
  fill_phased<T, Vectors>(k);
}

template <class T, int Taps, int Vectors>
struct FillLanes {
  static void fill(TileKernels<T>& k) {
    if constexpr (spatial_fits(Taps, Vectors)) k.lane_product[Taps][Vectors] = lane_product<T, Taps, Vectors>;
    FillLanes<T, Taps - 1, Vectors>::fill(k);
  }
};
template <class T, int Vectors>
struct FillLanes<T, 0, Vectors> {
  static void fill(TileKernels<T>& k) { FillLanes<T, kMaxLaneTaps, Vectors - 1>::fill(k); }
};
template <class T>
struct FillLanes<T, kMaxLaneTaps, 0> {
  static void fill(TileKernels<T>&) {}
};

template <class T, int Rows, int Taps>
struct FillProducts {
  static void fill(TileKernels<T>& k) {
    if constexpr (spatial_fits(Taps, Rows)) k.position_product[Rows][Taps] = position_product<T, Rows, Taps>;
    FillProducts<T, Rows, Taps - 1>::fill(k);
  }
};
template <class T, int Rows>
struct FillProducts<T, Rows, 0> {
  static void fill(TileKernels<T>& k) { FillProducts<T, Rows - 1, kMaxProductTaps>::fill(k); }
};
template <class T>
struct FillProducts<T, 0, kMaxProductTaps> {
  static void fill(TileKernels<T>&) {}
};

template <class T>
static void fill_tiles(TileKernels<T>& k) {
  k.lanes = kLanes<T>;
  fill_vectors<T, 1>(k);
  fill_vectors<T, 2>(k);
  fill_vectors<T, 3>(k);
  fill_vectors<T, 4>(k);
  fill_vectors<T, 6>(k);
  fill_vectors<T, 8>(k);
  FillLanes<T, kMaxLaneTaps, kMaxLaneVectors>::fill(k);
  FillProducts<T, kMaxProductRows, kMaxProductTaps>::fill(k);
  k.combine_rows = combine_rows<T>;
  k.add_runs = add_runs<T>;
  k.add_rows = add_rows<T>;
  k.half_sums = half_sums<T>;
  k.add_shared = add_shared<T>;
  k.load_run = load_run<T>;
  k.load_rows = load_rows<T>;
  k.store_run = store_run<T>;
  k.fill_run = fill_run<T>;
  k.store_rows = store_rows<T>;
  k.store_scattered = store_scattered<T>;
  k.store_columns = store_columns<T>;
  k.store_positions = store_positions<T>;
  k.store_lanes = store_lanes<T>;
  k.pack_weights = pack_weights<T>;
  k.pack_kernels = pack_kernels<T>;
  k.pack_positions = pack_positions<T>;
}

Kernels table() {
  Kernels k = {};
#define TCONV3D_STRING(x) TCONV3D_STRING_(x)
#define TCONV3D_STRING_(x) #x
  k.name = TCONV3D_STRING(TCONV3D_ISA);
  fill_tiles<float>(k.f32);
  fill_tiles<double>(k.f64);
  return k;
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
