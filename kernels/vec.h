// SPDX-License-Identifier: Apache-2.0
// The only SIMD types of the library: GCC/Clang vector extensions, one width per instruction set.
// Included by isa/*.cc alone (through kernels.h), each with its own TCONV3D_ISA and TCONV3D_VECTOR_BYTES, so that every
// symbol lives in a namespace of its own. No std:: code here: a weak symbol compiled for AVX-512 may be linked for all.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tconv3d {
namespace TCONV3D_ISA {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(TCONV3D_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = TCONV3D_VECTOR_BYTES / int(sizeof(T));

// memcpy compiles to one unaligned load or store, and is defined for any alignment.
template <class T>
static inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
static inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Keeps the compiler from reading v from memory anew at each use: a vector over two cache lines takes two loads each time. Tiles of three rows ran
// at 100 GFLOP/s where four, which the compiler loads once by itself, reached 238.
template <class T>
static inline void keep_in_register(Vec<T>& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// A vector, or half of one, to an aligned address without bringing the line into the cache first; a plain store where there is none.
template <class V>
static inline void store_past_cache(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_ps(static_cast<float*>(p), reinterpret_cast<__m512>(v));
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_ps(static_cast<float*>(p), reinterpret_cast<__m256>(v));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_ps(static_cast<float*>(p), reinterpret_cast<__m128>(v));
#endif
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes, 0 < n <= kLanes, and no byte past them.
template <class T>
static inline void store_first(T* p, Vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), reinterpret_cast<__m512>(v));
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), reinterpret_cast<__m512d>(v));
#elif defined(__AVX2__)
  // In halves: a masked store is some 40 operations on Zen 2 and 3 (mednext_k3_dw512 took 1.13 times as long).
  if constexpr (sizeof(T) == 4) {
    __m128 part = _mm256_castps256_ps128(reinterpret_cast<__m256>(v));
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(reinterpret_cast<__m256>(v), 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  } else {
    __m128d part = _mm256_castpd256_pd128(reinterpret_cast<__m256d>(v));
    if (n & 2) {
      _mm_storeu_pd(p, part);
      part = _mm256_extractf128_pd(reinterpret_cast<__m256d>(v), 1);
      p += 2;
    }
    if (n & 1) _mm_store_sd(p, part);
  }
#else
  T buffer[kLanes<T>];
  store<T>(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
#endif
}

// p[-begin] and on, zero but for the lanes begin <= i < end, outside of which nothing is read; 0 <= begin < end <= kLanes.
template <class T>
static inline Vec<T> load_between(const T* p, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
  if constexpr (sizeof(T) == 4)
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(__mmask16(mask), p - begin));
  else
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_pd(__mmask8(mask), p - begin));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return reinterpret_cast<Vec<T>>(_mm256_maskload_ps(
        p - begin, _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(int(begin)), lane), _mm256_cmpgt_epi32(_mm256_set1_epi32(int(end)), lane))));
  } else {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return reinterpret_cast<Vec<T>>(_mm256_maskload_pd(
        p - begin, _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(begin), lane), _mm256_cmpgt_epi64(_mm256_set1_epi64x(end), lane))));
  }
#else
  T buffer[kLanes<T>] = {};
  for (int64_t i = begin; i < end; ++i) buffer[i] = p[i - begin];
  return load<T>(buffer);
#endif
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

// v where begin <= lane < end, else zero
template <class T, int... I>
static inline Vec<T> keep_lanes(Vec<T> v, int64_t begin, int64_t end, Indices<I...>) {
  using Lanes = decltype(v < v);
  using Lane = decltype(Lanes{}[0] + 0);
  const Lanes lane{I...};
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Lanes>(v) & (lane >= Lane(begin)) & (lane < Lane(end)));
}
template <class T>
static inline Vec<T> keep_between(Vec<T> v, int64_t begin, int64_t end) {
  return keep_lanes<T>(v, begin, end, typename MakeIndices<kLanes<T>>::type{});
}

// store_first where n may be kLanes.
template <class T>
static inline void store_part(T* p, Vec<T> v, int64_t n) {
  if (n == kLanes<T>)
    store<T>(p, v);
  else
    store_first<T>(p, v, n);
}

// Half 0 or 1 of a0 b0 a1 b1 ...: two phases of a row become neighbours.
template <class T, int Half, int... I>
static inline Vec<T> zip_half(Vec<T> a, Vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (Half * (kLanes<T> / 2) + I / 2 + (I % 2) * kLanes<T>)...);
}
template <class T, int Half>
static inline Vec<T> zip(Vec<T> a, Vec<T> b) {
  return zip_half<T, Half>(a, b, typename MakeIndices<kLanes<T>>::type{});
}

// Vector V of a0 b0 c0 a1 b1 c1 ...: first a and b in their places, then c between them.
template <class T, int V, int... I>
static inline Vec<T> zip3_vector(Vec<T> a, Vec<T> b, Vec<T> c, Indices<I...>) {
  constexpr int kFrom = V * kLanes<T>;
  const Vec<T> ab = __builtin_shufflevector(a, b, ((kFrom + I) / 3 + ((kFrom + I) % 3 == 1 ? kLanes<T> : 0))...);
  return __builtin_shufflevector(ab, c, ((kFrom + I) % 3 == 2 ? kLanes<T> + (kFrom + I) / 3 : I)...);
}
template <class T, int V>
static inline Vec<T> zip3(Vec<T> a, Vec<T> b, Vec<T> c) {
  return zip3_vector<T, V>(a, b, c, typename MakeIndices<kLanes<T>>::type{});
}

// rows[i][j] -> rows[j][i] for kLanes rows: log2(kLanes) rounds of zips of rows half a block apart.
template <class T>
static inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes<T>; round *= 2) {
    Vec<T> next[kLanes<T>];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes<T> / 2; ++i) {
      next[2 * i] = zip<T, 0>(rows[i], rows[i + kLanes<T> / 2]);
      next[2 * i + 1] = zip<T, 1>(rows[i], rows[i + kLanes<T> / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) rows[i] = next[i];
  }
}

// Every second element of the 2 * kLanes elements in (a, b): the inverse of zip.
template <class T, int Odd, int... I>
static inline Vec<T> every_second(Vec<T> a, Vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + Odd)...);
}
template <class T>
static inline void unzip(const Vec<T> (&v)[2], Vec<T> (&out)[2]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Whole halves first: 4 shuffles, 2 of them across halves, for 6 and 4.
  if constexpr (sizeof(T) == 4) {
    const __m256 a = reinterpret_cast<__m256>(v[0]), b = reinterpret_cast<__m256>(v[1]);
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    out[0] = reinterpret_cast<Vec<T>>(_mm256_shuffle_ps(low, high, 0x88));
    out[1] = reinterpret_cast<Vec<T>>(_mm256_shuffle_ps(low, high, 0xdd));
    return;
  }
#endif
  const typename MakeIndices<kLanes<T>>::type lanes{};
  out[0] = every_second<T, 0>(v[0], v[1], lanes);
  out[1] = every_second<T, 1>(v[0], v[1], lanes);
}

// Every third element of (a, b, c) from element First on: first those of a and b.
template <class T, int First, int... I>
static inline Vec<T> every_third(Vec<T> a, Vec<T> b, Vec<T> c, Indices<I...>) {
  constexpr int kTwo = 2 * kLanes<T>;
  const Vec<T> ab = __builtin_shufflevector(a, b, (3 * I + First < kTwo ? 3 * I + First : 0)...);
  return __builtin_shufflevector(ab, c, (3 * I + First < kTwo ? I : 3 * I + First - kLanes<T>)...);
}
template <class T>
static inline void unzip(const Vec<T> (&v)[3], Vec<T> (&out)[3]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Halves of the three that belong together first: 8 operations, one of them across halves, for 18 and 12.
  if constexpr (sizeof(T) == 4) {
    const __m256 a = reinterpret_cast<__m256>(v[0]), b = reinterpret_cast<__m256>(v[1]), c = reinterpret_cast<__m256>(v[2]);
    const __m256 first = _mm256_blend_ps(a, b, 0xf0), second = _mm256_permute2f128_ps(a, c, 0x21), third = _mm256_blend_ps(b, c, 0xf0);
    const __m256 xy = _mm256_shuffle_ps(second, third, 0x9e), yz = _mm256_shuffle_ps(first, second, 0x49);
    out[0] = reinterpret_cast<Vec<T>>(_mm256_shuffle_ps(first, xy, 0x8c));
    out[1] = reinterpret_cast<Vec<T>>(_mm256_shuffle_ps(yz, xy, 0xd8));
    out[2] = reinterpret_cast<Vec<T>>(_mm256_shuffle_ps(yz, third, 0xcd));
    return;
  }
#endif
  const typename MakeIndices<kLanes<T>>::type lanes{};
  out[0] = every_third<T, 0>(v[0], v[1], v[2], lanes);
  out[1] = every_third<T, 1>(v[0], v[1], v[2], lanes);
  out[2] = every_third<T, 2>(v[0], v[1], v[2], lanes);
}

// Every fourth: every second one twice.
template <class T>
static inline void unzip(const Vec<T> (&v)[4], Vec<T> (&out)[4]) {
  Vec<T> low[2], high[2], even[2], odd[2];
  unzip<T>({v[0], v[1]}, low);
  unzip<T>({v[2], v[3]}, high);
  unzip<T>({low[0], high[0]}, even);
  unzip<T>({low[1], high[1]}, odd);
  out[0] = even[0], out[1] = odd[0], out[2] = even[1], out[3] = odd[1];
}

}  // namespace TCONV3D_ISA
}  // namespace tconv3d
