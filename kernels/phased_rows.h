// SPDX-License-Identifier: Apache-2.0
// Phased tiles whose rows are stored from the registers, where they lie: for the few multiply-adds of a target that depthwise layers have, sums that are
// written, read again and interleaved took longer than forming them.
#pragma once

#include "pack.h"
#include "tile.h"

namespace tconv3d {
namespace TCONV3D_ISA {

template <class T, int... I>
static inline Vec<T> without_first(Vec<T> v, Indices<I...>) {
  return __builtin_shufflevector(v, v, ((I + 1) % kLanes<T>)...);
}

// Both phases of w, one after the other from out on, in whole vectors. With `lead` the first element of the first vector belongs to no row: the vector is
// turned by one, and its last lane overwritten by the next one.
template <class T, class S, int Vectors>
static inline __attribute__((always_inline)) void store_whole(const Vec<T> (&even)[Vectors], const Vec<T> (&odd)[Vectors], T bias, S* out, bool lead) {
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const Vec<T> x = even[v] + bias, y = odd[v] + bias, first = zip<T, 0>(x, y);
    S* const to = out + 2 * v * kLanes<T> - lead;
    if (v == 0 && lead)
      put<T, S>(out, without_first<T>(first, typename MakeIndices<kLanes<T>>::type{}), kLanes<T>);
    else
      put<T, S>(to, first, kLanes<T>);
    put<T, S>(to + kLanes<T>, zip<T, 1>(x, y), kLanes<T>);
  }
}

// The same past the cache, where a row is whole lines: no vector but for the row's own `elements`.
template <class T, class S, int Vectors>
static inline __attribute__((always_inline)) void store_lines(const Vec<T> (&even)[Vectors], const Vec<T> (&odd)[Vectors], T bias, S* out, int64_t elements) {
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    const Vec<T> x = even[v] + bias, y = odd[v] + bias;
    if (2 * v * kLanes<T> < elements) put_past_cache<T, S>(out + 2 * v * kLanes<T>, zip<T, 0>(x, y));
    if ((2 * v + 1) * kLanes<T> < elements) put_past_cache<T, S>(out + (2 * v + 1) * kLanes<T>, zip<T, 1>(x, y));
  }
}

// What is left of a row, in whole vectors: past its end where it is not streamed.
template <class T, class S, int Vectors>
static inline __attribute__((always_inline)) void store_vectors(const Vec<T> (&even)[Vectors], const Vec<T> (&odd)[Vectors], const PhasedRows<T>& a, int64_t at,
                                                                int64_t left, bool lead) {
  S* const out = static_cast<S*>(a.out) + at;
  if (a.stream)
    store_lines<T, S>(even, odd, a.bias, out, left);
  else
    store_whole<T, S>(even, odd, a.bias, out, lead);
}

// `elements` of a row and no byte past them.
template <class T, int Vectors>
static __attribute__((noinline)) void store_exactly(const Vec<T>* even, const Vec<T>* odd, const PhasedRows<T>& a, int64_t at, int64_t elements, bool lead,
                                                    DType dtype) {
  T sums[2][(Vectors + 1) * kLanes<T>];
  for (int v = 0; v < Vectors; ++v) {
    store<T>(sums[0] + v * kLanes<T>, even[v]);
    store<T>(sums[1] + v * kLanes<T>, odd[v]);
  }
  store<T>(sums[0] + Vectors * kLanes<T>, Vec<T>{});  // read with `lead`, and not stored
  const T* c[2] = {lead ? sums[1] : sums[0], lead ? sums[0] + 1 : sums[1]};
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    store_interleaved<T, S, 2>(c, static_cast<S*>(a.out) + at, elements, a.bias, a.stream);
  });
}

// The row of phase F of h, in whole vectors or exactly. Not by with_stored: its lambda would keep the sums in memory, at 0.54 of the speed.
template <class T, int F, int Phases, int Vectors>
static inline __attribute__((always_inline)) void store_row(const Vec<T> (&acc)[Phases][1][Vectors], const PhasedRows<T>& a, int64_t r, int64_t t, bool whole,
                                                            DType dtype) {
  if (r < a.begin[F] || r >= a.end[F]) return;
  const bool lead = t == 0 && a.lead;
  const int64_t done = 2 * t * Vectors * kLanes<T> + lead, at = a.first + r * a.row_stride + F * a.phase_stride + done, left = a.lead + a.width - done;
  const auto& even = acc[2 * F][0];
  const auto& odd = acc[2 * F + 1][0];
  if (!whole) {
    Vec<T> x[Vectors], y[Vectors];  // in memory, unlike those above
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) x[v] = even[v], y[v] = odd[v];
    store_exactly<T, Vectors>(x, y, a, at, left, lead, dtype);
  } else if (dtype == kAccumulated<T>) {
    store_vectors<T, T>(even, odd, a, at, left, lead);
  } else if constexpr (sizeof(T) == 4) {
    if (dtype == DType::float16)
      store_vectors<T, Half>(even, odd, a, at, left, lead);
    else
      store_vectors<T, Brain>(even, odd, a, at, left, lead);
  }
}

// Rows of phase f of h whose vectors end where other rows of the call, stored later, begin or end.
template <class T, int Vectors>
static inline int64_t overrunning_rows(const PhasedRows<T>& a, int f) {
  int64_t rows = a.rows_follow ? a.end[f] : 0;
  while (rows > 0 && a.first + (rows - 1) * a.row_stride + f * a.phase_stride + 2 * a.tiles * Vectors * kLanes<T> > a.last) --rows;
  return rows;
}

// Tiles of a row from its end to its beginning: where the next row follows in memory and is stored later, the last vectors may end in it.
template <class T, int PhasesH, int Vectors>
static void phased_rows(const PhasedRows<T>& a, DType dtype) {
  constexpr int64_t kStep = Vectors * kLanes<T>;
  const int64_t whole_tiles = (a.lead + a.width) / (2 * kStep);
  int64_t overrunning[PhasesH];
  for (int f = 0; f < PhasesH; ++f) overrunning[f] = overrunning_rows<T, Vectors>(a, f);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t t = a.tiles - 1; t >= 0; --t) {
      Vec<T> acc[PhasesH * 2][1][Vectors] = {};
      const T* const region = a.region + r * a.region_stride + t * kStep;
      if (a.channels == 1)
        phased_steps<T, PhasesH, 2>(acc, a, region, 1);
      else
        phased_steps<T, PhasesH, 2>(acc, a, region, a.channels);
      store_row<T, 0>(acc, a, r, t, t < whole_tiles || r < overrunning[0], dtype);
      if constexpr (PhasesH > 1) store_row<T, 1>(acc, a, r, t, t < whole_tiles || r < overrunning[1], dtype);
    }
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
