// SPDX-License-Identifier: Apache-2.0
// THE micro-kernel: a register tile of rows x vectors. One multiply-add per lane and reduction step, in a fixed order,
// written as a*b+c and contracted to one FMA (-ffp-contract=fast), so that a tail and a full lane have the same bits.
#pragma once

#include "isa/isa.h"
#include "vec.h"

namespace tconv3d {
namespace TCONV3D_ISA {

template <class T, int Rows, int Vectors, bool Accumulate>
static inline void write_tile(Vec<T> (&acc)[Rows][Vectors], T* c, int64_t ldc) {
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      T* p = c + r * ldc + v * kLanes<T>;
      store<T>(p, Accumulate ? load<T>(p) + acc[r][v] : acc[r][v]);
    }
}

template <class T, int Rows, int Vectors>
static inline void write_tile(Vec<T> (&acc)[Rows][Vectors], T* c, int64_t ldc, bool accumulate) {
  if (accumulate)
    write_tile<T, Rows, Vectors, true>(acc, c, ldc);
  else
    write_tile<T, Rows, Vectors, false>(acc, c, ldc);
}

template <class T, int Rows, int Vectors>
static inline __attribute__((always_inline)) void spatial_steps(Vec<T> (&acc)[Rows][Vectors], const SpatialTile<T>& a, int64_t channels) {
  const T* w = a.weights;
  for (int64_t t = 0; t < a.taps; ++t) {
    const T* x = a.region + a.tap_offset[t];
    if (a.weight_offset) w = a.weights + a.weight_offset[t];
    for (int64_t i = 0; i < channels; ++i, x += a.channel_stride, w += a.weight_step) {
      Vec<T> lane[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        lane[v] = load<T>(x + v * kLanes<T>);
        if constexpr (Rows > 1) keep_in_register<T>(lane[v]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) acc[r][v] += w[r] * lane[v];
    }
  }
}

// Positions on the lanes:  c[r][p] (+)= sum over taps t, channels i of  weights[t][i][r] * region[tap_offset[t] + i*channel_stride + p]
// The weight gradient runs it with positions as the `channels` of the reduction and channels on the lanes.
template <class T, int Rows, int Vectors>
static void spatial_tile(const SpatialTile<T>& a) {
  Vec<T> acc[Rows][Vectors] = {};
  // Depthwise layers: a tap is one step, and a loop around it took as long.
  if (Rows == 1 && a.channels == 1)
    spatial_steps<T>(acc, a, 1);
  else
    spatial_steps<T>(acc, a, a.channels);
  write_tile<T, Rows, Vectors>(acc, a.c, a.ldc, a.accumulate);
}

template <class T, int RowsH, int RowsW, int PhasesW, int Phases, int Columns, int Vectors>
static inline __attribute__((always_inline)) const T* phased_step(Vec<T> (&acc)[Phases][Columns][Vectors], const T* w, const T* x, int64_t channels,
                                                                  int64_t channel_stride) {
  for (int64_t i = 0; i < channels; ++i, x += channel_stride, w += RowsH * RowsW * Columns) {
    Vec<T> lane[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      lane[v] = load<T>(x + v * kLanes<T>);
      if constexpr (RowsH * RowsW * Columns > 1) keep_in_register<T>(lane[v]);
    }
#pragma GCC unroll 2
    for (int h = 0; h < RowsH; ++h)
#pragma GCC unroll 2
      for (int f = 0; f < RowsW; ++f)
#pragma GCC unroll 2
        for (int m = 0; m < Columns; ++m)
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) acc[h * PhasesW + f][m][v] += w[(h * RowsW + f) * Columns + m] * lane[v];
  }
  return w;
}

template <class T, int PhasesH, int PhasesW, int Phases, int Columns, int Vectors>
static inline __attribute__((always_inline)) void phased_steps(Vec<T> (&acc)[Phases][Columns][Vectors], const PhasedSamples<T>& a, const T* region,
                                                               int64_t channels) {
  const T* w = a.weights;
  for (int64_t s = 0; s < a.step_count; ++s) {
    const PhasedStep& step = a.steps[s];
    const T* x = region + step.offset;
    if (step.rows_h == PhasesH && step.rows_w == PhasesW)
      w = phased_step<T, PhasesH, PhasesW, PhasesW>(acc, w, x, channels, a.channel_stride);
    else if (step.rows_h == PhasesH)
      w = phased_step<T, PhasesH, 1, PhasesW>(acc, w, x, channels, a.channel_stride);
    else if (step.rows_w == PhasesW)
      w = phased_step<T, 1, PhasesW, PhasesW>(acc, w, x, channels, a.channel_stride);
    else
      w = phased_step<T, 1, 1, PhasesW>(acc, w, x, channels, a.channel_stride);
  }
}

// Positions on the lanes, the phases of one or two axes on the rows: one load of a sample serves every phase that it reaches. For few columns.
//     c[fh][fw][m][p] (+)= sum over steps with rows_h > fh and rows_w > fw, channels i of  weights[step][i][fh][fw][m] * region[offset + i*channel_stride + p]
template <class T, int PhasesH, int PhasesW, int Columns, int Vectors>
static void phased_tile(const PhasedTile<T>& a) {
  Vec<T> acc[PhasesH * PhasesW][Columns][Vectors] = {};
  if (a.channels == 1)
    phased_steps<T, PhasesH, PhasesW>(acc, a, a.region, 1);
  else
    phased_steps<T, PhasesH, PhasesW>(acc, a, a.region, a.channels);
  T* c = a.c;
  // Read once: the stores might change `a`, for all that the compiler knows.
  const int64_t ldc = a.ldc, phase_stride = a.phase_stride;
  const bool accumulate = a.accumulate;
#pragma GCC unroll 4
  for (int f = 0; f < PhasesH * PhasesW; ++f, c += phase_stride) write_tile<T, Columns, Vectors>(acc[f], c, ldc, accumulate);
}

// Channels on the lanes, any set of rows:  c[r][m] (+)= sum over segments t, steps i of  rows[t][r][i*row_step] * lanes[lane_offset[t] + i*lane_step + m]
template <class T, int Rows, int Vectors>
static void pointer_tile(const PointerTile<T>& a) {
  Vec<T> acc[Rows][Vectors] = {};
  for (int64_t t = 0; t < a.segments; ++t) {
    const T* row[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) row[r] = a.rows[t * Rows + r];
    const T* x = a.lanes + a.lane_offset[t];
    // A segment's rows are short streams that the hardware sees too late: 54 against 68 ms for the input gradient of tats_up0.
    if (a.steps >= 32 && t + 1 < a.segments) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
        for (int line = 0; line < 4; ++line) __builtin_prefetch(reinterpret_cast<const char*>(a.rows[(t + 1) * Rows + r]) + 64 * line);
    }
    int64_t at = 0;
    for (int64_t i = 0; i < a.steps; ++i, x += a.lane_step, at += a.row_step) {
      Vec<T> lane[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        lane[v] = load<T>(x + v * kLanes<T>);
        if constexpr (Rows > 1) keep_in_register<T>(lane[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) acc[r][v] += row[r][at] * lane[v];
    }
  }
  write_tile<T, Rows, Vectors>(acc, a.c, a.ldc, a.accumulate);
}

// Both operands on the lanes, taps (of the weight gradient) or positions (forward, input gradient) on the rows: depthwise layers, channels side by side.
//     c[t][m] (+)= bias[m] + sum over segments s, steps i of  a[a_offset[s] + i*a_step + m] * b[b_offset[s] + i*b_step + t*b_tap + m]
template <class T, int Taps, int Vectors>
static void lane_product(const LaneProduct<T>& a) {
  Vec<T> acc[Taps][Vectors] = {};
  for (int64_t s = 0; s < a.segments; ++s) {
    const T *x = a.a + a.a_offset[s], *y = a.b + a.b_offset[s];
    for (int64_t i = 0; i < a.steps; ++i, x += a.a_step, y += a.b_step) {
      Vec<T> lane[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        lane[v] = load<T>(x + v * kLanes<T>);
        if constexpr (Taps > 1) keep_in_register<T>(lane[v]);
      }
      const T* at = y;
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t, at += a.b_tap)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) acc[t][v] += lane[v] * load<T>(at + v * kLanes<T>);
    }
  }
  if (a.bias)
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[t][v] = acc[t][v] + load<T>(a.bias + v * kLanes<T>);
  write_tile<T, Taps, Vectors>(acc, a.c, a.ldc, a.accumulate);
}

template <class T, int Rows, int Taps>
static inline __attribute__((always_inline)) void product_step(Vec<T> (&acc)[Rows][Taps], const Vec<T> (&row)[Rows], const Vec<T>& tap, int t) {
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) acc[r][t] += row[r] * tap;
}

// Positions on the lanes of both operands, and the sums stay there:
//     sums[r][t][lane] += sum over lines d, positions p of that lane of  rows[r*row_stride + d*row_line + p] * taps[tap_offset[t] + d*tap_line + p]
template <class T, int Rows, int Taps>
static void position_product(const PositionProduct<T>& a) {
  Vec<T> acc[Rows][Taps] = {};
  const T *first = a.rows, *taps[Taps];
  const int64_t stride = a.row_stride, whole = a.positions / kLanes<T> * kLanes<T>, left = a.positions - whole;
#pragma GCC unroll 8
  for (int t = 0; t < Taps; ++t) taps[t] = a.taps + a.tap_offset[t];
  for (int64_t d = 0; d < a.lines; ++d, first += a.row_line) {
    for (int64_t p = 0; p < whole; p += kLanes<T>) {
      Vec<T> row[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        row[r] = load<T>(first + r * stride + p);
        if constexpr (Taps > 1) keep_in_register<T>(row[r]);
      }
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) {
        Vec<T> tap = load<T>(taps[t] + p);
        if constexpr (Rows > 1) keep_in_register<T>(tap);
        product_step<T, Rows, Taps>(acc, row, tap, t);
      }
    }
    if (left > 0) {
      Vec<T> row[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) row[r] = load_between<T>(first + r * stride + whole, 0, left);
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) product_step<T, Rows, Taps>(acc, row, load_between<T>(taps[t] + whole, 0, left), t);
    }
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t) taps[t] += a.tap_line;
  }
  T* const sums = a.sums;
  const int64_t ld = a.sums_row;
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t) {
      T* const to = sums + r * ld + t * kLanes<T>;
      store<T>(to, load<T>(to) + acc[r][t]);
    }
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
