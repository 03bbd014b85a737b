// SPDX-License-Identifier: Apache-2.0
// The cost model behind every choice of family, tile and block: machine cycles, rough on purpose. Figures are for AVX2 and AVX-512
// cores with two multiply-adds and two loads a cycle and a multiply-add latency of four.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tconv3d {

// One reduction step of a register tile. An unaligned vector of a whole cache line touches two. The last term prefers, among equals, the
// tile with fewer instructions around its multiply-adds.
inline double step_cycles(int64_t rows, int64_t vectors, double loads_per_vector) {
  const double multiply_adds = double(rows * vectors), loads = double(vectors) * loads_per_vector + double(rows);
  return std::max({0.5 * multiply_adds, 0.5 * loads, 4.0}) + 0.1 * (loads + 4.0);
}

// Cache lines per unaligned vector load: whole lines nearly always touch two.
template <class T>
double loads_per_vector(int64_t lanes) { return lanes * int64_t(sizeof(T)) >= 64 ? 1.8 : 1.3; }

constexpr double kTileCall = 20;       // entering a tile, and its first loads
constexpr double kRowCall = 14;        // one row packed or stored: a call and its edges
constexpr double kPackedElement = 0.4;  // a contiguous element copied on vectors
constexpr double kScatteredElement = 1.6;  // an element moved alone

// Tasks handed to threads one by one: the last round may leave threads idle.
inline double parallel_cycles(double cycles, int64_t tasks, int threads) {
  if (tasks == 0) return 0;
  const int64_t workers = std::min<int64_t>(tasks, threads), rounds = (tasks + workers - 1) / workers;
  return cycles * double(rounds) / double(tasks);
}

}  // namespace tconv3d
