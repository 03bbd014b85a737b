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

// Both phases of w, one after the other, in whole vectors. With `lead` the first element belongs to no row: its vector is turned by one, and the last
// lane of it overwritten by the next one.
template <class T, class S, bool PastCache, int Vectors>
static inline __attribute__((always_inline)) void store_whole(const Vec<T> (&even)[Vectors], const Vec<T> (&odd)[Vectors], T bias, S* out, bool lead) {
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v, out += 2 * kLanes<T>) {
    const Vec<T> x = even[v] + bias, y = odd[v] + bias, first = zip<T, 0>(x, y), second = zip<T, 1>(x, y);
    if constexpr (PastCache) {
      store_past_cache<T>(out, first);
      store_past_cache<T>(out + kLanes<T>, second);
      continue;
    } else if (v == 0 && lead) {
      put<T, S>(out + 1, without_first<T>(first, typename MakeIndices<kLanes<T>>::type{}), kLanes<T>);
    } else {
      put<T, S>(out, first, kLanes<T>);
    }
    put<T, S>(out + kLanes<T>, second, kLanes<T>);
  }
}
template <class T, int Vectors>
static inline __attribute__((always_inline)) void store_whole(const Vec<T> (&even)[Vectors], const Vec<T> (&odd)[Vectors], const PhasedRows<T>& a, int64_t at,
                                                              bool lead, DType dtype) {
  if (dtype == kAccumulated<T>) {
    T* const out = static_cast<T*>(a.out) + at;
    if (a.stream)
      store_whole<T, T, true>(even, odd, a.bias, out, lead);
    else
      store_whole<T, T, false>(even, odd, a.bias, out, lead);
  } else if constexpr (sizeof(T) == 4) {
    if (dtype == DType::float16)
      store_whole<T, Half, false>(even, odd, a.bias, static_cast<Half*>(a.out) + at, lead);
    else
      store_whole<T, Brain, false>(even, odd, a.bias, static_cast<Brain*>(a.out) + at, lead);
  }
}

// `elements` of a row and no byte past them.
template <class T, int Vectors>
static __attribute__((noinline)) void store_exactly(const Vec<T>* even, const Vec<T>* odd, const PhasedRows<T>& a, int64_t at, int64_t elements, bool lead,
                                                    DType dtype) {
  T sums[2][(Vectors + 1) * kLanes<T>] = {};
  for (int v = 0; v < Vectors; ++v) {
    store<T>(sums[0] + v * kLanes<T>, even[v]);
    store<T>(sums[1] + v * kLanes<T>, odd[v]);
  }
  const T* c[2] = {lead ? sums[1] : sums[0], lead ? sums[0] + 1 : sums[1]};
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    store_interleaved<T, S, 2>(c, static_cast<S*>(a.out) + at + lead, elements - lead, a.bias, a.stream);
  });
}

// The row of phase F of h, `whole` vectors or no byte past its end.
template <class T, int F, int Phases, int Vectors>
static inline __attribute__((always_inline)) void store_row(const Vec<T> (&acc)[Phases][1][Vectors], const PhasedRows<T>& a, int64_t r, int64_t t, bool whole,
                                                            DType dtype) {
  if (r < a.begin[F] || r >= a.end[F]) return;
  const int64_t at = a.first + r * a.row_stride + F * a.phase_stride + 2 * t * Vectors * kLanes<T>;
  const bool lead = t == 0 && a.lead;
  if (whole) return store_whole<T>(acc[2 * F][0], acc[2 * F + 1][0], a, at, lead, dtype);
  Vec<T> even[Vectors], odd[Vectors];  // in memory, unlike those above
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) even[v] = acc[2 * F][0][v], odd[v] = acc[2 * F + 1][0][v];
  const int64_t left = a.lead + a.width - 2 * t * Vectors * kLanes<T>;
  store_exactly<T, Vectors>(even, odd, a, at, left < 2 * Vectors * kLanes<T> ? left : 2 * Vectors * kLanes<T>, lead, dtype);
}

// Rows of phase f of h whose vectors end before `overrun`.
template <class T, int Vectors>
static inline int64_t overrunning_rows(const PhasedRows<T>& a, int f) {
  int64_t rows = a.end[f];
  while (rows > 0 && a.first + (rows - 1) * a.row_stride + f * a.phase_stride + 2 * a.tiles * Vectors * kLanes<T> > a.overrun) --rows;
  return rows;
}

// Tiles of a row from its end to its beginning: where the next row follows in memory and is stored later, the last vectors may end in it.
template <class T, int PhasesH, int Vectors>
static void phased_rows(const PhasedRows<T>& a, DType dtype) {
  constexpr int64_t kStep = Vectors * kLanes<T>;
  const int64_t whole_tiles = (a.lead + a.width) / (2 * kStep);
  int64_t overrunning[PhasesH];
  for (int f = 0; f < PhasesH; ++f) overrunning[f] = a.overrun ? overrunning_rows<T, Vectors>(a, f) : 0;
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
