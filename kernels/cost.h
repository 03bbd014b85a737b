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
inline double panel_cycles(double bytes) { return bytes / (bytes < 0.5 * double(cache_bytes()) ? 32 : bytes < 8e6 ? 8 : 5); }

// Accumulators of one run that outgrow the first-level cache are written to the second and read back: cycles per vector.
constexpr double kSpilledVector = 3;
constexpr double kFirstLevelBytes = 24576;  // what the accumulators may take of 32 to 48 KiB

// The two-tap method: cycles per vector of transformed samples and of products, with the smaller blocks and shorter stores that they bring. Measured
// on psmnet_conv6 and gwcnet_conv5 as what a call takes beside its tiles.
constexpr double kTransformedVector = 16;
constexpr double kSharedVector = 12;
constexpr double kMostTwoTapBytes = double(int64_t(4) << 20);  // transformed samples of a task
constexpr double kMostTwoTapPanel = 16e6;  // elements of packed weights, 64 MB: 512 to 512 channels of 5^3 would take 537 MB and read them for each task
constexpr double kTwoTapGain = 1.05;       // what it must promise over the direct method to be taken

// Cycles of one image and group, for the choice between the methods. The choice changes the bits of a result, so it depends on the layer and the
// size of the image alone: not on batch, threads, cache or frozen weights.
inline double two_tap_cycles(double terms, double products, double kinds, double sums_of_taps, double positions, double channels, double columns,
                             bool transforms) {
  const double vectors = positions / 16, panel = sums_of_taps * channels * columns;
  const double multiply = 0.55 * terms * channels * columns * vectors;
  // Each task reads the panels, and holds so many positions that its transformed samples stay in the caches.
  const double task = transforms ? std::clamp(2e6 / (kinds * channels * 4), 32.0, 256.0) : 256.0;
  const double panels = panel * std::max(1.0, positions / task) * (panel < 2e6 ? 0.25 : 0.8);
  if (!transforms) return multiply + panels;
  const double packed = panel * (panel < 2e6 ? 1.5 : 4.5);  // fresh memory: 4.6 cycles an element (tats_up0)
  return multiply + panels + packed + vectors * (kTransformedVector * kinds * channels + kSharedVector * products * columns);
}

// A thread that has slept takes some 50 microseconds to come: one thread for each so many cycles of work. One of a framework's team comes in a few:
// page_example_1 takes 0.15 ms on one thread and 0.08 on the two of PyTorch's team.
constexpr double kCyclesPerThread = 6e5, kCyclesPerTeamThread = 1.5e5;
inline int useful_threads(double cycles, int threads, bool team) {
  if (team) return cycles < 2 * kCyclesPerTeamThread ? 1 : threads;  // the team as it is
  return std::clamp(int(std::min(cycles / kCyclesPerThread, double(threads))), 1, threads);
}

// Tasks handed to threads one by one: the last round may leave threads idle, and a thread that is late (another process, a page fault) costs
// part of a task.
inline double parallel_cycles(double cycles, int64_t tasks, int threads) {
  if (tasks == 0) return 0;
  const int64_t workers = std::min<int64_t>(tasks, threads), rounds = (tasks + workers - 1) / workers;
  return cycles / double(tasks) * (double(rounds) + (workers > 1 ? 0.3 : 0.0));
}

}  // namespace tconv3d
