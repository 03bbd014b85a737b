// SPDX-License-Identifier: Apache-2.0
// The additions of the two-tap method (two_tap_axis.h), before and after its products, and of col2im.
#pragma once

#include "isa/isa.h"
#include "vec.h"

namespace tconv3d {
namespace TCONV3D_ISA {

// f(i, n): whole vectors at i, then one of n < kLanes elements.
template <class T, class F>
static inline __attribute__((always_inline)) void for_each_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) f(i, int64_t(kLanes<T>));
  if (i < n) f(i, n - i);
}

// `Vectors` at once: rows of one to four vectors, around which a loop would take longer than the additions.
template <class T, int Vectors>
static void combine_short_rows(T* dst, int64_t dst_pitch, const T* a, const T* b, T factor, int64_t src_pitch, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, dst += dst_pitch, a += src_pitch) {
    Vec<T> sum[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[v] = load<T>(a + v * kLanes<T>);
    if (b) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[v] += factor * load<T>(b + v * kLanes<T>);
      b += src_pitch;
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store<T>(dst + v * kLanes<T>, sum[v]);
  }
}

// dst[r*dst_pitch + i] = a[r*src_pitch + i] + factor * b[r*src_pitch + i], a power of two, or a alone where b is null
template <class T>
static void combine_rows(T* dst, int64_t dst_pitch, const T* a, const T* b, T factor, int64_t src_pitch, int64_t rows, int64_t n) {
  if (rows > 1) {
    if (n == kLanes<T>) return combine_short_rows<T, 1>(dst, dst_pitch, a, b, factor, src_pitch, rows);
    if (n == 2 * kLanes<T>) return combine_short_rows<T, 2>(dst, dst_pitch, a, b, factor, src_pitch, rows);
    if (n == 3 * kLanes<T>) return combine_short_rows<T, 3>(dst, dst_pitch, a, b, factor, src_pitch, rows);
    if (n == 4 * kLanes<T>) return combine_short_rows<T, 4>(dst, dst_pitch, a, b, factor, src_pitch, rows);
  }
  for (int64_t r = 0; r < rows; ++r, dst += dst_pitch, a += src_pitch) {
    if (b) {
      for_each_vector<T>(n, [&](int64_t i, int64_t m) { store_part<T>(dst + i, load<T>(a + i) + factor * load<T>(b + i), m); });
      b += src_pitch;
    } else {
      for_each_vector<T>(n, [&](int64_t i, int64_t m) { store_part<T>(dst + i, load<T>(a + i), m); });
    }
  }
}

// dst[i] = a[i] + b[i], or a alone where b is null
template <class T>
static void add_runs(T* dst, const T* a, const T* b, int64_t n) {
  if (b)
    for_each_vector<T>(n, [&](int64_t i, int64_t m) { store_part<T>(dst + i, load<T>(a + i) + load<T>(b + i), m); });
  else
    for_each_vector<T>(n, [&](int64_t i, int64_t m) { store_part<T>(dst + i, load<T>(a + i), m); });
}

template <class T>
static void add_rows(const RowsAdd<T>& a) {
  for (int64_t m = 0; m < a.columns; ++m) {
    T* dst = a.dst + m * a.dst_column;
    const T* src = a.src + m * a.src_column;
    for (int64_t r = 0; r < a.rows; ++r, dst += a.dst_pitch, src += a.src_pitch)
      for_each_vector<T>(a.n, [&](int64_t i, int64_t n) { store_part<T>(dst + i, load<T>(dst + i) + load<T>(src + i), n); });
  }
}

// dst[i] = (a[i] + sign * b[i] + c[i]) / 2, sign 1 or -1
template <class T>
static void half_sums(T* dst, const T* a, const T* b, T sign, const T* c, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t m) { store_part<T>(dst + i, T(0.5) * (load<T>(a + i) + load<T>(c + i) + sign * load<T>(b + i)), m); });
}

// first[i] += sum[i] + difference[i], second[i] += sum[i] - difference[i]; a null `difference` is zero.
template <class T>
static void add_shared(T* first, T* second, const T* sum, const T* difference, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t m) {
    const Vec<T> s = load<T>(sum + i);
    const Vec<T> d = difference ? load<T>(difference + i) : Vec<T>{};
    store_part<T>(first + i, load<T>(first + i) + (s + d), m);
    store_part<T>(second + i, load<T>(second + i) + (s - d), m);
  });
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
