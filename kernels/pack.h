// SPDX-License-Identifier: Apache-2.0
// Moving elements between stored arrays and packed float32/float64 panels. Formulas stand above each function.
//
//   region   [wseg][d][channel][h][pitch]   input of a block of outputs, zero outside the image; read along positions
//   panel    [tap][channel][row or column]  weights of a tile, read once from front to back
//   rows     [position][channel]            input with channels last, read by pointer
#pragma once

#include "isa/isa.h"
#include "vec.h"

namespace tconv3d {
namespace TCONV3D_ISA {

// IEEE binary16 and bfloat16 as integers: plain bit arithmetic that vectorizes on every instruction set. binary16 has instructions of its own on all
// but the smallest (F16C came before AVX2): in integers a rounded vector takes some 20 operations, and float16 ran at 0.6 to 0.8 of float32.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

static inline float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
static inline uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

static inline float widen(float v) { return v; }
static inline double widen(double v) { return v; }
static inline float widen(Brain v) { return bits_to_float(uint32_t(v.bits) << 16); }
// In integers: exponent and fraction move up 13 bits; the product with 2^112 rebiases the exponent and makes subnormals normal. Infinity and NaN keep
// the top exponent.
#if defined(__F16C__)
static inline float widen(Half v) { return _cvtsh_ss(v.bits); }
#elif defined(__aarch64__)
static inline float widen(Half v) {
  __fp16 h;
  __builtin_memcpy(&h, &v, 2);
  return float(h);
}
#else
static inline float widen(Half v) {
  uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  uint32_t scaled = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  uint32_t special = magnitude | 0x7f800000u;
  return bits_to_float((magnitude >= 0x0f800000u ? special : scaled) | uint32_t(v.bits & 0x8000) << 16);
}
#endif

static inline void narrow(float v, float* p) { *p = v; }
static inline void narrow(double v, double* p) { *p = v; }
// Round to nearest, ties to even; a NaN stays a NaN.
static inline void narrow(float v, Brain* p) {
  uint32_t u = float_to_bits(v);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  p->bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}
// In integers, normal results: add half of the last kept bit, as above. Subnormal results: adding 0.5f lets the float adder round at
// 2^-24. 65520 and above round to infinity.
#if defined(__F16C__)
static inline void narrow(float v, Half* p) { p->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__aarch64__)
static inline void narrow(float v, Half* p) {
  const __fp16 h = __fp16(v);
  __builtin_memcpy(p, &h, 2);
}
#else
static inline void narrow(float v, Half* p) {
  uint32_t u = float_to_bits(v), magnitude = u & 0x7fffffffu;
  uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t h = magnitude >= 0x477ff000u ? special : magnitude < 0x38800000u ? subnormal : normal;
  p->bits = uint16_t(h | (u >> 16 & 0x8000u));
}
#endif

// The same of whole vectors.
typedef uint32_t Bits __attribute__((vector_size(TCONV3D_VECTOR_BYTES)));
typedef uint16_t Stored __attribute__((vector_size(TCONV3D_VECTOR_BYTES / 2)));

template <class U>
static inline U choose(U where, U a, U b) {
  return (where & a) | (~where & b);
}
static inline Stored narrow_vector(Vec<float> v, Brain) {
  const Bits u = reinterpret_cast<Bits>(v), rounded = u + 0x7fffu + (u >> 16 & 1), quiet = u | 0x400000u;
#if defined(__AVX2__) && !defined(__AVX512F__)  // 11 instructions, where the compiler makes 16 of the general form
  const __m256i chosen =
      reinterpret_cast<__m256i>(_mm256_blendv_ps(reinterpret_cast<__m256>(rounded), reinterpret_cast<__m256>(quiet), reinterpret_cast<__m256>(v != v)));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  return reinterpret_cast<Stored>(_mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
#else
  return __builtin_convertvector(choose<Bits>(reinterpret_cast<Bits>(v != v), quiet, rounded) >> 16, Stored);
#endif
}
static inline Vec<float> widen_vector(Stored v, Brain) { return reinterpret_cast<Vec<float>>(__builtin_convertvector(v, Bits) << 16); }

#if defined(__AVX512F__)
static inline Stored narrow_vector(Vec<float> v, Half) {
  return reinterpret_cast<Stored>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
static inline Vec<float> widen_vector(Stored v, Half) { return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(v))); }
#elif defined(__F16C__)
static inline Stored narrow_vector(Vec<float> v, Half) {
  return reinterpret_cast<Stored>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
static inline Vec<float> widen_vector(Stored v, Half) { return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(v))); }
#elif defined(__aarch64__)
static inline Stored narrow_vector(Vec<float> v, Half) { return reinterpret_cast<Stored>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))); }
static inline Vec<float> widen_vector(Stored v, Half) { return reinterpret_cast<Vec<float>>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(v))); }
#else
static inline Stored narrow_vector(Vec<float> v, Half) {
  const Bits u = reinterpret_cast<Bits>(v), magnitude = u & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  const Bits subnormal = reinterpret_cast<Bits>(reinterpret_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  const Bits special = choose<Bits>(reinterpret_cast<Bits>(magnitude > 0x7f800000u), Bits{} + 0x7e00u, Bits{} + 0x7c00u);
  const Bits finite = choose<Bits>(reinterpret_cast<Bits>(magnitude < 0x38800000u), subnormal, normal);
  return __builtin_convertvector(choose<Bits>(reinterpret_cast<Bits>(magnitude >= 0x477ff000u), special, finite) | (u >> 16 & 0x8000u), Stored);
}
static inline Vec<float> widen_vector(Stored v, Half) {
  const Bits bits = __builtin_convertvector(v, Bits), magnitude = (bits & 0x7fffu) << 13;
  const Bits scaled = reinterpret_cast<Bits>(reinterpret_cast<Vec<float>>(magnitude) * 0x1p112f);
  return reinterpret_cast<Vec<float>>(choose<Bits>(reinterpret_cast<Bits>(magnitude >= 0x0f800000u), magnitude | 0x7f800000u, scaled) | (bits & 0x8000u) << 16);
}
#endif

// kLanes stored elements.
template <class T, class S>
static inline Vec<T> load_as(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<T>(reinterpret_cast<const T*>(p));
  } else {
    Stored v;
    __builtin_memcpy(&v, p, sizeof v);
    return widen_vector(v, S{});
  }
}

// The first n lanes as stored elements.
template <class T, class S>
static inline void put(S* out, Vec<T> v, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store_part<T>(reinterpret_cast<T*>(out), v, n);
  } else {
    const Stored stored = narrow_vector(v, S{});
    if (n == kLanes<T>)
      __builtin_memcpy(out, &stored, sizeof stored);
    else
      __builtin_memcpy(out, &stored, size_t(n) * sizeof(S));
  }
}

// kLanes of them past the cache.
template <class T, class S>
static inline void put_past_cache(S* out, Vec<T> v) {
  if constexpr (sizeof(S) == sizeof(T))
    store_past_cache(out, v);
  else
    store_past_cache(out, narrow_vector(v, S{}));
}

template <class S>
static inline S read(const void* base, int64_t index) {
  S v;
  __builtin_memcpy(&v, static_cast<const char*>(base) + index * int64_t(sizeof(S)), sizeof(S));
  return v;
}
template <class S, class T>
static inline void write(void* base, int64_t index, T value) {
  S v;
  narrow(value, &v);
  __builtin_memcpy(static_cast<char*>(base) + index * int64_t(sizeof(S)), &v, sizeof(S));
}

// Calls f with a value of the stored type: float16, bfloat16 and float32 for T = float, float64 for T = double.
template <class T, class F>
static inline void with_stored(DType dtype, F f) {
  if constexpr (sizeof(T) == 8) {
    f(double{});
  } else if (dtype == DType::float32) {
    f(float{});
  } else if (dtype == DType::float16) {
    f(Half{});
  } else {
    f(Brain{});
  }
}

template <class T, class S>
static inline void load_run_of(T* __restrict dst, int64_t ds, const void* __restrict src, int64_t ss, int64_t n) {
  int64_t i = 0;
  if (ds == 1 && ss == 1) {
    for (; i + kLanes<T> <= n; i += kLanes<T>) store<T>(dst + i, load_as<T>(static_cast<const S*>(src) + i));
    for (; i < n; ++i) dst[i] = widen(read<S>(src, i));
  } else {
    for (; i < n; ++i) dst[i * ds] = widen(read<S>(src, i * ss));
  }
}

template <class T>
static void load_run(T* dst, int64_t ds, const void* src, int64_t ss, int64_t n, DType dtype) {
  with_stored<T>(dtype, [&](auto s) { load_run_of<T, decltype(s)>(dst, ds, src, ss, n); });
}

// n zeros, or whole vectors of them where that much may be overwritten.
template <class T>
static inline void clear(T* dst, int64_t n, bool whole) {
  int64_t i = 0;
  for (; whole ? i < n : i + kLanes<T> <= n; i += kLanes<T>) store<T>(dst + i, Vec<T>{});
  for (; i < n; ++i) dst[i] = 0;
}

// May a vector end past row r, in the rows behind it, which are loaded later?
template <class T>
static inline bool may_overrun(const RowsLoad<T>& a, int64_t r) {
  return a.pitch == a.width && (a.rows - 1 - r) * a.width >= kLanes<T>;
}

// A row of neighbours between zeros; `whole` as may_overrun() says.
template <class T, class S>
static inline void load_row(T* dst, const void* src, const RowsLoad<T>& a, bool whole) {
  const int64_t left = a.phase[0].left, n = a.phase[0].n, right = a.width - left - n;
  if constexpr (sizeof(S) == sizeof(T)) {
    const T* const from = static_cast<const T*>(src);
    if (n < kLanes<T> && a.width <= kLanes<T>) {
      __builtin_prefetch(from + a.ahead);
      Vec<T> row;
      if (from - left >= a.begin && from - left + kLanes<T> <= a.end) {
        row = load<T>(from - left);
        keep_in_register<T>(row);  // else the compiler makes it a masked load again
        row = keep_between<T>(row, left, left + n);
      } else {
        row = load_between<T>(from, left, left + n);
      }
      store_part<T>(dst, row, whole ? kLanes<T> : a.width);
      return;
    }
  }
  clear(dst, left, whole || n >= kLanes<T>);
  dst += left;
  if constexpr (sizeof(S) == sizeof(T)) {
    const T* const from = static_cast<const T*>(src);
    int64_t i = 0;
    for (; i + kLanes<T> <= n; i += kLanes<T>) {
      __builtin_prefetch(from + a.ahead + i);
      store<T>(dst + i, load<T>(from + i));
    }
    if (i > 0 && i < n)  // the last vector once more, up to the end
      store<T>(dst + n - kLanes<T>, load<T>(from + n - kLanes<T>));
    else
      for (; i < n; ++i) dst[i] = from[i];
  } else {
    load_run_of<T, S>(dst, 1, src, 1, n);
  }
  clear(dst + n, right, whole);
}

// Elements i and on of each phase, out of vectors that hold all phases of a row.
template <class T, int Phases>
static inline __attribute__((always_inline)) void store_turns(const Vec<T>* v, const typename RowsLoad<T>::Phase (&phase)[Phases], int64_t i) {
#pragma GCC unroll 4
  for (int p = 0; p < Phases; ++p) {
    const int64_t n = phase[p].n - i;
    if (n > 0) store_part<T>(phase[p].dst + phase[p].left + i, v[p], n < kLanes<T> ? n : kLanes<T>);
  }
}

// Step vectors of a row whose phases take turns, one vector of each phase.
template <class T, int Step>
static inline __attribute__((always_inline)) void load_vectors(const T* src, int64_t ahead, Vec<T> (&out)[Step]) {
  Vec<T> v[Step];
#pragma GCC unroll 4
  for (int j = 0; j < Step; ++j) {
    __builtin_prefetch(src + ahead + j * kLanes<T>);
    v[j] = load<T>(src + j * kLanes<T>);
    keep_in_register<T>(v[j]);
  }
  unzip<T>(v, out);
}

// Rows of phases that take turns, in whole vectors without asking where a row ends: those that may be overrun, since zeros and the next row come over what
// is too much, or all where rows are whole vectors without zeros. Returns how many rows that were.
template <class T, int Step, int Phases>
static inline int64_t load_turns_whole(const RowsLoad<T>& a, int64_t most) {
  const int64_t read = (most + kLanes<T> - 1) / kLanes<T> * kLanes<T>, pitch = a.pitch, ahead = a.ahead, row_stride = a.row_stride;
  T* to[Phases];
  int64_t n[Phases];
  bool zeros = false, overrun = pitch == a.width;
#pragma GCC unroll 4
  for (int p = 0; p < Phases; ++p) {
    n[p] = a.phase[p].n;
    to[p] = a.phase[p].dst + a.phase[p].left;
    zeros = zeros || n[p] < a.width;
    // One vector of zeros covers the end of a row and the beginning of the next, and no row is stored farther than a vector past its end.
    overrun = overrun && a.width - n[p] <= kLanes<T> && a.phase[p].left + read <= a.width + kLanes<T>;
  }
  const int64_t rows = !zeros && read == most ? a.rows : overrun ? a.rows - (kLanes<T> + pitch - 1) / pitch : 0;
  if (rows > 0 && zeros) {
#pragma GCC unroll 4
    for (int p = 0; p < Phases; ++p) store<T>(a.phase[p].dst, Vec<T>{});
  }
  const T* src = static_cast<const T*>(a.src);
  int64_t r = 0;
  for (; r < rows && src + Step * read <= a.end; ++r, src += row_stride) {
    for (int64_t i = 0; i < most; i += kLanes<T>) {
      Vec<T> v[Step];
      load_vectors<T>(src + Step * i, ahead, v);
#pragma GCC unroll 4
      for (int p = 0; p < Phases; ++p) store<T>(to[p] + i, v[p]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < Phases; ++p) {
      if (zeros) store<T>(to[p] + n[p], Vec<T>{});
      to[p] += pitch;
    }
  }
  return r;
}

// Rows of phases that take turns, on whole vectors as long as they lie in the array. Not under masks: masked loads that miss the caches took up to five
// times as long (15 elements, a stride of 2, out of 12 MB: 5.5 ns a row, 1.9 whole).
template <class T, int Step, int Phases>
static void load_turns(const RowsLoad<T>& a) {
  int64_t most = 0;
#pragma GCC unroll 4
  for (int p = 0; p < Phases; ++p) most = most > a.phase[p].n ? most : a.phase[p].n;
  const int64_t done = load_turns_whole<T, Step, Phases>(a, most);
  typename RowsLoad<T>::Phase phase[Phases];
#pragma GCC unroll 4
  for (int p = 0; p < Phases; ++p) {
    phase[p] = a.phase[p];
    phase[p].dst += done * a.pitch;
  }
  const T* src = static_cast<const T*>(a.src) + done * a.row_stride;
  for (int64_t r = done; r < a.rows; ++r, src += a.row_stride) {
#pragma GCC unroll 4
    for (int p = 0; p < Phases; ++p) clear(phase[p].dst, phase[p].left, false);
    int64_t i = 0;
    for (; i < most && src + Step * (i + kLanes<T>) <= a.end; i += kLanes<T>) {
      Vec<T> v[Step];
      load_vectors<T>(src + Step * i, a.ahead, v);
      store_turns<T, Phases>(v, phase, i);
    }
#pragma GCC unroll 4
    for (int p = 0; p < Phases; ++p) {
      T* const dst = phase[p].dst + phase[p].left;
      for (int64_t j = i; j < phase[p].n; ++j) dst[j] = src[j * Step + p];
      clear(dst + phase[p].n, a.width - phase[p].left - phase[p].n, false);
      phase[p].dst += a.pitch;
    }
  }
}

template <class T, int Step, int Phases = Step>
static inline void load_turns_of(const RowsLoad<T>& a) {
  if (a.phases == Phases)
    load_turns<T, Step, Phases>(a);
  else if constexpr (Phases > 1)
    load_turns_of<T, Step, Phases - 1>(a);
}

// Rows of elements farther apart, one by one.
template <class T, class S>
static inline void load_scattered(T* dst, const void* src, const RowsLoad<T>& a) {
  const int64_t left = a.phase[0].left, n = a.phase[0].n;
  clear(dst, left, false);
  load_run_of<T, S>(dst + left, 1, src, a.stride, n);
  clear(dst + left + n, a.width - left - n, false);
}

// Of each phase p: dst[r * pitch] = left zeros, src[r * row_stride + i * stride + p] for i < n, zeros, for r < rows
template <class T>
static void load_rows(const RowsLoad<T>& a, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    T* const dst = a.phase[0].dst;
    if (a.width == a.phase[0].n && a.pitch == a.width && a.row_stride == a.width && a.stride == 1) {  // whole rows side by side: one of them all
      RowsLoad<T> all;
      all.width = a.rows * a.width;
      all.phase[0] = {dst, 0, all.width};
      all.ahead = a.ahead;
      all.begin = a.begin;
      all.end = a.end;
      return load_row<T, S>(dst, a.src, all, false);
    }
    if constexpr (sizeof(S) == sizeof(T)) {
      if (a.stride == 2) return load_turns_of<T, 2>(a);
      if (a.stride == 3) return load_turns_of<T, 3>(a);
      if (a.stride == 4) return load_turns_of<T, 4>(a);
    }
    const char* src = static_cast<const char*>(a.src);
    for (int64_t r = 0; r < a.rows; ++r, src += a.row_stride * int64_t(sizeof(S)))
      if (a.stride == 1)
        load_row<T, S>(dst + r * a.pitch, src, a, may_overrun(a, r));
      else
        load_scattered<T, S>(dst + r * a.pitch, src, a);
  });
}

template <class T>
static void store_run(void* dst, int64_t ds, const T* src, int64_t ss, int64_t n, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    if (ds == 1 && ss == 1)
      for (int64_t i = 0; i < n; ++i) write<S>(dst, i, src[i]);
    else
      for (int64_t i = 0; i < n; ++i) write<S>(dst, i * ds, src[i * ss]);
  });
}

template <class T>
static void fill_run(void* dst, int64_t ds, T value, int64_t n, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    if (ds == 1)
      for (int64_t i = 0; i < n; ++i) write<S>(dst, i, value);
    else
      for (int64_t i = 0; i < n; ++i) write<S>(dst, i * ds, value);
  });
}

// kLanes positions of `Phases` neighbouring phases, bias added, as Phases * kLanes consecutive elements.
template <class T, int Phases>
static inline void interleave(const T* const* c, int64_t i, T bias, Vec<T> (&out)[Phases]) {
  if constexpr (Phases == 1) {
    out[0] = load<T>(c[0] + i) + bias;
  } else if constexpr (Phases == 3) {
    const Vec<T> x = load<T>(c[0] + i) + bias, y = load<T>(c[1] + i) + bias, z = load<T>(c[2] + i) + bias;
    out[0] = zip3<T, 0>(x, y, z);
    out[1] = zip3<T, 1>(x, y, z);
    out[2] = zip3<T, 2>(x, y, z);
  } else {
    const T *even[Phases / 2], *odd[Phases / 2];
    for (int f = 0; f < Phases / 2; ++f) even[f] = c[2 * f], odd[f] = c[2 * f + 1];
    Vec<T> a[Phases / 2], b[Phases / 2];
    interleave<T, Phases / 2>(even, i, bias, a);
    interleave<T, Phases / 2>(odd, i, bias, b);
    for (int v = 0; v < Phases / 2; ++v) {
      out[2 * v] = zip<T, 0>(a[v], b[v]);
      out[2 * v + 1] = zip<T, 1>(a[v], b[v]);
    }
  }
}

// `elements` of a row whose `Phases` phases are neighbours in order; the last position may lack its last phases. Streamed where whole lines can
// go past the cache. The accumulators are read in whole vectors, past the last position.
template <class T, class S, int Phases>
static inline void store_interleaved(const T* const* c, S* out, int64_t elements, T bias, bool stream) {
  constexpr int64_t kStep = Phases * kLanes<T>;
  int64_t i = 0;
  Vec<T> v[Phases];
  if (stream && uintptr_t(out) % TCONV3D_VECTOR_BYTES == 0)
    for (; Phases * i + kStep <= elements; i += kLanes<T>) {
      interleave<T, Phases>(c, i, bias, v);
      for (int p = 0; p < Phases; ++p) put_past_cache<T, S>(out + Phases * i + p * kLanes<T>, v[p]);
    }
  for (; Phases * i + kStep <= elements; i += kLanes<T>) {
    interleave<T, Phases>(c, i, bias, v);
    for (int p = 0; p < Phases; ++p) put<T, S>(out + Phases * i + p * kLanes<T>, v[p], kLanes<T>);
  }
  int64_t rest = elements - Phases * i;
  if (rest <= 0) return;
  interleave<T, Phases>(c, i, bias, v);
  out += Phases * i;
  for (int p = 0; p < Phases && rest > 0; ++p, out += kLanes<T>, rest -= kLanes<T>) put<T, S>(out, v[p], rest < kLanes<T> ? rest : kLanes<T>);
}

// Rows whose phases are neighbours from `lead` on: `elements` in each row.
template <class T, class S, int Phases>
static void store_neighbours(const RowStore<T>& a, int64_t lead, int64_t elements) {
  const T* c[Phases];
  for (int f = 0; f < Phases; ++f) c[f] = a.c[(lead + f) % Phases];
  S* out = static_cast<S*>(a.out) + a.first[lead];
  for (int64_t r = 0; r < a.rows; ++r, out += a.row_stride) {
    if (a.ahead)
      for (int64_t i = 0; i < elements; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(out + a.ahead + i, 1);
    store_interleaved<T, S, Phases>(c, out, elements, a.bias, a.stream);
    for (int f = 0; f < Phases; ++f) c[f] += a.c_row_stride;
  }
}

// The elements of a row without gaps: where up to four phases follow each other in steps of one, and only the last position may lack phases, the
// last ones. Else 0.
template <class T>
static inline int64_t whole_row(const RowStore<T>& a, int64_t* lead) {
  if (a.phases != a.step || a.out_stride != 1 || a.phases > 4) return 0;
  *lead = 0;
  for (int64_t f = 1; f < a.phases; ++f)
    if (a.first[f] < a.first[*lead]) *lead = f;
  int64_t elements = 0, before = a.count[*lead];
  for (int64_t f = 0; f < a.phases; ++f) {
    const int64_t at = *lead + f < a.phases ? *lead + f : *lead + f - a.phases, count = a.count[at];
    if (a.first[at] != a.first[*lead] + f || count > before || count < a.count[*lead] - 1) return 0;
    elements += count;
    before = count;
  }
  return elements;
}

// Row r: out[r*row_stride + first[f] + i*step] = c[f][r*c_row_stride + i] + bias. Rows without gaps are interleaved on vectors.
template <class T>
static void store_rows(const RowStore<T>& a, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    int64_t lead = 0;
    if (const int64_t elements = whole_row(a, &lead)) {
      if (a.phases == 1) store_neighbours<T, S, 1>(a, lead, elements);
      if (a.phases == 2) store_neighbours<T, S, 2>(a, lead, elements);
      if (a.phases == 3) store_neighbours<T, S, 3>(a, lead, elements);
      if (a.phases == 4) store_neighbours<T, S, 4>(a, lead, elements);
      return;
    }
    const int64_t step = a.step * a.out_stride;
    for (int64_t f = 0; f < a.phases; ++f)
      for (int64_t r = 0; r < a.rows; ++r) {
        const T* c = a.c[f] + r * a.c_row_stride;
        void* out = static_cast<char*>(a.out) + (r * a.row_stride + a.first[f] * a.out_stride) * int64_t(sizeof(S));
        if (step == 1)
          for (int64_t i = 0; i < a.count[f]; ++i) write<S>(out, i, c[i] + a.bias);
        else
          for (int64_t i = 0; i < a.count[f]; ++i) write<S>(out, i * step, c[i] + a.bias);
      }
  });
}

template <class T>
static void store_scattered(void* dst, const int64_t* offset, const T* src, const int64_t* from, int64_t ss, int64_t n, T bias, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    for (int64_t p = 0; p < n; ++p) write<decltype(s)>(dst, offset[p], src[from[p] * ss] + bias);
  });
}

template <class T>
static void store_columns(void* dst, const int64_t* offset, bool contiguous, const T* src, const T* bias, int64_t n, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    if (contiguous)
      for (int64_t m = 0; m < n; ++m) write<S>(dst, offset[0] + m, src[m] + bias[m]);
    else
      for (int64_t m = 0; m < n; ++m) write<S>(dst, offset[m], src[m] + bias[m]);
  });
}

// dst[t][i][m] = src[i*channel_stride + column_offset[m] + tap_offset[t][m]], zero for columns <= m < width
template <class T>
static void pack_weights(const WeightPack<T>& a, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    for (int64_t t = 0; t < a.taps; ++t) {
      const int64_t *tap = a.tap_offset + t * a.columns, *column = a.column_offset;
      const int64_t first = column[0] + tap[0];
      bool contiguous = true;
      for (int64_t m = 1; m < a.columns; ++m) contiguous = contiguous && column[m] + tap[m] == first + m;
      T* to = a.dst + t * a.channels * a.width;
      for (int64_t i = 0; i < a.channels; ++i, to += a.width) {
        const int64_t from = i * a.channel_stride;
        if (contiguous)
          for (int64_t m = 0; m < a.columns; ++m) to[m] = widen(read<S>(a.src, from + first + m));
        else
          for (int64_t m = 0; m < a.columns; ++m) to[m] = widen(read<S>(a.src, from + column[m] + tap[m]));
        for (int64_t m = a.columns; m < a.width; ++m) to[m] = 0;
      }
    }
  });
}

constexpr int kAhead = 8;  // blocks along a row that are fetched ahead: mednext_k5_dw64's weight gradient 28 to 21 ms

// place(j)[i] = src[i * src_stride + j] for `rows` rows i and n <= kLanes columns j, zeros up to i < stored; nullptr leaves a column out.
// `ahead`: elements to what is read soon, fetched meanwhile. For weights that is the next channel: pix2vox_l1, not prepared, 69 to 50 ms.
template <class T, class S, class Place>
static inline void transpose_block(const S* src, int64_t src_stride, int64_t rows, int64_t n, int64_t stored, int64_t ahead, Place place) {
  Vec<T> block[kLanes<T>];
  if (n == kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      // As many streams as rows: more than the hardware's prefetcher follows.
      __builtin_prefetch(src + i * src_stride + ahead);
      block[i] = i < rows ? load_as<T>(src + i * src_stride) : Vec<T>{};
    }
  } else if constexpr (sizeof(S) != sizeof(T)) {
    for (int i = 0; i < kLanes<T>; ++i) {
      T row[kLanes<T>] = {};
      if (i < rows) load_run_of<T, S>(row, 1, src + i * src_stride, 1, n);
      block[i] = load<T>(row);
    }
  } else {
    // The rows that follow show that a whole vector may be read: see load_turns for masked loads.
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      const T* const row = src + i * src_stride;
      block[i] = i >= rows ? Vec<T>{} : src_stride * (rows - 1 - i) + n >= kLanes<T> ? load<T>(row) : load_between<T>(row, 0, n);
    }
  }
  transpose<T>(block);
#pragma GCC unroll 16
  for (int j = 0; j < kLanes<T>; ++j)
    if (j < n)
      if (T* to = place(j)) store_part<T>(to, block[j], stored);
}

// Fewer rows or columns than these are moved element by element: the transposition of a block takes as long for one as for all.
constexpr int kFewRows = 4;

// Columns outermost where they lie farther apart than channels: rows a power of two apart, more than the ways of a cache, throw each other's lines out
// before these are used. Input gradient of pix2vox_l1, two threads: 36 to 30 ms.
template <class T>
static void pack_kernels(const KernelPack<T>& a, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    const auto pack = [&](int64_t i, int64_t m) {
      T* const to = a.dst + i * a.width + m;
      const S* const src = static_cast<const S*>(a.src) + i * a.channel_stride + m * a.column_stride;
      const int64_t columns = a.columns - m < kLanes<T> ? a.columns - m : kLanes<T>, stored = a.width - m < kLanes<T> ? a.width - m : kLanes<T>;
      const auto place = [&](int64_t k) { return a.element_offset[k] < 0 ? nullptr : to + a.element_offset[k]; };
      if constexpr (sizeof(S) == sizeof(T))
        if (a.kernel >= kFewRows) {
          for (int64_t k = 0; k < a.kernel; k += kLanes<T>)
            transpose_block<T>(src + k, a.column_stride, columns, a.kernel - k < kLanes<T> ? a.kernel - k : kLanes<T>, stored, a.channel_stride,
                               [&](int j) { return place(k + j); });
          return;
        }
      for (int64_t k = 0; k < a.kernel; ++k)
        if (T* const panel = place(k))
          for (int64_t c = 0; c < stored; ++c) panel[c] = c < columns ? widen(read<S>(src, c * a.column_stride + k)) : 0;
    };
    if (a.channel_stride < a.column_stride)
      for (int64_t m = 0; m < a.width; m += kLanes<T>)
        for (int64_t i = 0; i < a.channels; ++i) pack(i, m);
    else
      for (int64_t i = 0; i < a.channels; ++i)
        for (int64_t m = 0; m < a.width; m += kLanes<T>) pack(i, m);
  });
}

template <class T>
static void store_positions(const PositionStore<T>& a) {
  for (int64_t m = 0; m < a.columns; m += kLanes<T>) {
    const int64_t count = a.columns - m < kLanes<T> ? a.columns - m : kLanes<T>;
    const Vec<T> bias = load_between<T>(a.bias + m, 0, count);
    T* out = a.out + m;
    for (int64_t p = 0; p < a.n; p += kLanes<T>) {
      Vec<T> rows[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) rows[i] = i < count ? load<T>(a.c + (m + i) * a.ld + p) : Vec<T>{};
      transpose<T>(rows);
      const int64_t positions = a.n - p < kLanes<T> ? a.n - p : kLanes<T>;
      if (positions < kLanes<T>) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes<T>; ++j)
          if (j < positions) store_part<T>(out + j * a.step, rows[j] + bias, count);
      } else if (count == kLanes<T>) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes<T>; ++j) store<T>(out + j * a.step, rows[j] + bias);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes<T>; ++j) store_first<T>(out + j * a.step, rows[j] + bias, count);
      }
      out += kLanes<T> * a.step;
    }
  }
}

template <class T>
static void store_lanes(const PositionStore<T>& a) {
  if (a.stream && a.step == a.columns && a.columns % kLanes<T> == 0 && reinterpret_cast<uintptr_t>(a.out) % sizeof(Vec<T>) == 0) {
    for (int64_t p = 0; p < a.n; ++p)
      for (int64_t m = 0; m < a.columns; m += kLanes<T>) store_past_cache(a.out + p * a.step + m, load<T>(a.c + p * a.ld + m) + load<T>(a.bias + m));
    return;
  }
  for (int64_t p = 0; p < a.n; ++p) {
    T* const out = a.out + p * a.step;
    const T* const c = a.c + p * a.ld;
    int64_t m = 0;
    for (; m + kLanes<T> <= a.columns; m += kLanes<T>) store<T>(out + m, load<T>(c + m) + load<T>(a.bias + m));
    for (; m < a.columns; ++m) out[m] = c[m] + a.bias[m];
  }
}

// dst[p][i] = src[i*channel_stride + p*pos_stride]
template <class T>
static void pack_positions(T* dst, int64_t ld, const void* src, int64_t channel_stride, int64_t channels, int64_t pos_stride, int64_t positions, DType dtype) {
  with_stored<T>(dtype, [&](auto s) {
    using S = decltype(s);
    int64_t p = 0;
    const S* const from = static_cast<const S*>(src);
    if (pos_stride == 1)
      for (; positions - p >= kFewRows; p += kLanes<T>) {
        const int64_t n = positions - p < kLanes<T> ? positions - p : kLanes<T>;
        int64_t i = 0;
        for (; channels - i >= kFewRows; i += kLanes<T>) {
          const int64_t rows = channels - i < kLanes<T> ? channels - i : kLanes<T>;
          const S* const block = from + i * channel_stride + p;
          transpose_block<T>(block, channel_stride, rows, n, rows, kAhead * kLanes<T>, [&](int j) { return dst + (p + j) * ld + i; });
        }
        for (; i < channels; ++i) load_run_of<T, S>(dst + p * ld + i, ld, from + i * channel_stride + p, 1, n);
      }
    for (; p < positions; ++p)
      load_run_of<T, S>(dst + p * ld, 1, static_cast<const char*>(src) + p * pos_stride * int64_t(sizeof(S)), channel_stride, channels);
  });
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
