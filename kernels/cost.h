// SPDX-License-Identifier: Apache-2.0
// The cost model behind every choice of family, tile and block: machine cycles, rough on purpose. Figures are for AVX2 and AVX-512
// cores with two multiply-adds and two loads a cycle and a multiply-add latency of four.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"

namespace tconv3d {

// One reduction step of a register tile: multiply-adds, loads (an unaligned vector of a whole cache line touches two), the second-level cache, from
// which the lanes come (28 bytes a cycle: 4 x 6 vectors of 64 bytes ran at 0.6 of 8 x 3), or the latency. The last term prefers, among
// equals, the tile with fewer instructions around its multiply-adds.
inline double step_cycles(int64_t rows, int64_t vectors, double loads_per_vector, int64_t vector_bytes) {
  const double multiply_adds = double(rows * vectors), loads = double(vectors) * loads_per_vector + double(rows);
  return std::max({0.5 * multiply_adds, 0.5 * loads, double(vectors * vector_bytes) / 28, 4.0}) + 0.1 * (loads + 4.0);
}

// Cache lines per unaligned vector load: whole lines nearly always touch two.
template <class T>
double loads_per_vector(int64_t lanes) {
  return lanes * int64_t(sizeof(T)) >= 64 ? 1.8 : 1.3;
}

constexpr double kTileCall = 20;           // entering a tile, and its first loads
constexpr double kRowCall = 14;            // one row packed or stored: a call and its edges
constexpr double kPackedElement = 0.4;     // a contiguous element copied on vectors
constexpr double kScatteredElement = 1.6;  // an element moved alone

constexpr double kTaskCall = 1500;  // a task's own bookkeeping

// Reading the panels of a task once: from the second-level cache where they and the region fit, else from the third.
inline double panel_cycles(double bytes) { return bytes / (bytes < 0.5 * double(cache_bytes()) ? 32 : 8); }

// Accumulators of one run that outgrow the first-level cache are written to the second and read back: cycles per vector.
constexpr double kSpilledVector = 3;
constexpr double kFirstLevelBytes = 24576;  // what the accumulators may take of 32 to 48 KiB

// Tasks handed to threads one by one: the last round may leave threads idle, and a thread that is late (another process, a page fault) costs
// part of a task.
inline double parallel_cycles(double cycles, int64_t tasks, int threads) {
  if (tasks == 0) return 0;
  const int64_t workers = std::min<int64_t>(tasks, threads), rounds = (tasks + workers - 1) / workers;
  return cycles / double(tasks) * (double(rounds) + (workers > 1 ? 0.3 : 0.0));
}

}  // namespace tconv3d
