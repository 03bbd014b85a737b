// SPDX-License-Identifier: Apache-2.0
// The cost model behind every choice of family, tile and block: machine cycles, rough on purpose. Figures are for AVX2 and AVX-512
// cores with two multiply-adds and two loads a cycle and a multiply-add latency of four.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "memory.h"
#include "threads.h"

namespace tconv3d {

// Bytes a cycle from the second-level cache: 42 on Zen 5 (one row, eight vectors), 28 on Sapphire Rapids, where 4 x 6 vectors ran at 0.6 of 8 x 3.
constexpr double kSecondLevelRate = 36;

// One reduction step of a register tile: multiply-adds, loads (an unaligned vector of a whole cache line touches two), the second-level cache, from
// which the lanes come, or the latency. The last term prefers, among equals, the tile with fewer instructions around its multiply-adds.
inline double step_cycles(int64_t rows, int64_t vectors, double loads_per_vector, double vector_bytes, double latency = 4) {
  const double multiply_adds = double(rows * vectors), loads = double(vectors) * loads_per_vector + double(rows);
  return std::max({0.5 * multiply_adds, 0.5 * loads, double(vectors) * vector_bytes / kSecondLevelRate, latency}) + 0.1 * (loads + 4.0);
}

// Cache lines per unaligned vector load: whole lines nearly always touch two.
template <class T>
double loads_per_vector(int64_t lanes) {
  return lanes * int64_t(sizeof(T)) >= 64 ? 1.8 : 1.3;
}

constexpr double kTileCall = 20;           // entering a tile, and its first loads
constexpr double kRowCall = 14;            // one row packed or stored: a call and its edges
constexpr double kStoreCall = 100;         // the rows of one run and phase stored: the call and its arguments
constexpr double kPlaneCall = 30;          // a plane of one channel packed or stored: likewise
constexpr double kPackedElement = 0.4;     // a contiguous element copied on vectors
constexpr double kTransposedElement = 1;   // an element whose neighbours become strangers
constexpr double kScatteredElement = 1.6;  // an element moved alone

constexpr double kRowVector = 3;       // a vector of a phased tile interleaved and stored from the registers
constexpr double kRowEnd = 60;         // the end of such a row, where no vector may end in the next one
constexpr double kDepthwiseCall = 60;  // entering and leaving a depthwise tile, whose loop is as long

constexpr double kTaskCall = 1500;  // a task's own bookkeeping

constexpr double kFirstLevelBytes = 24576;  // what accumulators or samples may take of 32 to 48 KiB

// A step whose samples come from the second-level cache, since those of all channels of a tile outgrow the first while panels pass: 256 channels by 6 x 2
// vectors, which fit, run 1.1 times as fast as by 4 x 3 (AVX2).
inline double missed_cycles(int64_t channels, int64_t vectors, int64_t vector_bytes) {
  return 1.5 * double(channels * vectors * vector_bytes) > kFirstLevelBytes ? 0.011 * double(vectors * vector_bytes) : 0;
}

constexpr double kThirdLevelBytes = 8e6;  // a share of the third-level cache, of panels or of a copied source

// Reading the panels of a task once: from the second-level cache where they and the region fit, else from the third.
inline double panel_cycles(double bytes) { return bytes / (bytes < 0.5 * double(cache_bytes()) ? 32 : bytes < kThirdLevelBytes ? 8 : 5); }

// Accumulators of one run that outgrow the first-level cache are written to the second and read back: cycles per vector.
constexpr double kSpilledVector = 3;

// Of the second-level cache, for the sums of the column tiles that one pass over the positions serves.
constexpr double kSumsShare = 0.15;
inline int64_t tiles_within(double share, double bytes_of_one, int64_t tiles) {
  return std::clamp<int64_t>(int64_t(share * double(cache_bytes()) / bytes_of_one), 1, tiles);
}

// What the methods cost beside each other: the two-tap method per vector of multiply-adds, per tap and position that a vector's rows are aimed at (layers of
// one to four channels ran at half the direct method's rate without it), per vector of accumulators written, of samples combined and loaded, per target
// stored, and per weight that a block of positions reads; the direct method per vector of multiply-adds, those on samples outside the image, and per weight;
// `packed` per weight summed for a call (fresh memory where many). `gain` is what the two-tap method must promise, `large_gain` where its weights are large.
// Fitted with AVX2 on Zen 3, to all axes of 130 layers in both directions, weights prepared and not: with a gain of 1.22 for all the choice lost 6.5 % forward
// and 9 % backward against the best of up to eight calls of each, a part of it to noise. Of 600 other layers 28 then ran without the method, prepared at 0.88
// of the speed; large weights that are not prepared take up to twice as long with it.
struct TwoTapPrices {
  double multiply = 0.33, aimed = 0.7, written = 4.8, combined = 5.2, loaded = 9.3, stored = 1.06, panels = 0.22, packed = 1.1;
  double direct = 0.46, outside = 0.08, direct_panels = 0.2, gain = 1.08, large_gain = 1.22;
};
constexpr TwoTapPrices kTwoTap;
constexpr double kLargePanel = 2e6;  // elements of packed weights that go to memory and come back
// In the price of a block: a vector combined from the second-level cache, or of shared products added; the pointer to a position's samples.
constexpr double kSampleVector = 3, kSharedVector = 2, kAimedRow = 3;
constexpr double kMostTwoTapBytes = double(int64_t(4) << 20);  // samples of a task, loaded and combined
constexpr double kMostTwoTapPanel = 16e6;  // elements of packed weights, 64 MB: 512 to 512 channels of 5^3 would take 537 MB and read them for each task

// What a method runs and moves for one image and group.
struct MethodWork {
  bool direct;
  double multiply_adds, inside;  // of one channel and column; those of the direct method whose sample lies in the image
  double products, positions;    // accumulators written for a position and column; positions
  double combined, loaded;       // samples for a position and channel
  double targets, sums;          // for a column; packed weights of one channel and column
  double channels, columns;

  double panel() const { return sums * channels * columns; }
  bool large() const { return panel() >= kLargePanel; }
};

// Cycles of one image and group, for the choice between the methods. The choice changes the bits of a result, so it depends on the layer, the size of the
// image and the instruction set alone: not on batch, threads, cache or frozen weights.
inline double method_cycles(const MethodWork& w, int64_t lanes) {
  const TwoTapPrices& price = kTwoTap;
  const double panel = w.panel();
  const bool large = w.large();
  const double packed = price.packed * panel * (large ? 4.5 : 1.5);  // fresh memory: 4.6 cycles an element (tats_up0)
  // A block reads its panels once, and holds so many positions that its samples stay near: few where kinds and channels are many.
  const auto panels = [&](double positions) { return panel * std::max(1.0, w.positions / positions) * (large ? 0.8 : 0.25); };
  if (w.direct) {
    const double multiply = price.direct * w.inside + price.outside * (w.multiply_adds - w.inside);
    return w.channels * w.columns / double(lanes) * multiply + price.direct_panels * panels(256) + packed;
  }
  const double vectors = std::ceil(w.columns / double(lanes)), samples = w.combined + w.loaded;
  const double multiply = vectors * (w.multiply_adds * (price.multiply * w.channels + price.aimed) + price.written * w.products * w.positions);
  const double move =
      w.positions * std::ceil(w.channels / double(lanes)) * (price.combined * w.combined + price.loaded * w.loaded) + price.stored * w.targets * w.columns;
  return multiply + move + price.panels * panels(std::clamp(7.5e5 / (samples * w.channels), 4.0, 256.0)) + packed;
}

// Products of all taps, then col2im, against the direct method: cycles per vector of products that is added to its targets, per sample packed, per target
// stored, and per weight that a plane of samples reads. The factor of the direct method's multiply-adds for M columns is `dense` + `few` / (M + 0.7), since
// a tile of few columns is bound by its loads, `few` in full from `few_channels` on, which outgrow the first-level cache. Columns that leave lanes idle cost
// their share of them, or with positions on the lanes `missed` for each channel. Fitted with AVX2 on Zen 3, to 428 layers of 16 to 2048 channels and at last to
// 304 of 8 to 512 channels and 1 to 48 columns, 52 of which changed their method and run 1.20 times as fast.
struct Col2imPrices {
  double added = 5, packed = 0.17, stored = 5.2, panels = 0.5, dense = 1.1, few = 1.6, few_channels = 32, missed = 0.0015, gain = 1.05;
};
constexpr Col2imPrices kCol2imPrices;

// A thread that has slept takes some 50 microseconds to come: one thread for each so many cycles of work. One of a framework's team comes in a few:
// page_example_1 takes 0.15 ms on one thread and 0.08 on the two of PyTorch's team.
constexpr double kCyclesPerThread = 6e5, kCyclesPerTeamThread = 1.5e5;
// Where somebody else's thread spins on a processor, a second thread comes a time slice of 4 ms late or pauses for one. page_example_2 and
// nnunet_320_320_4 in their turn behind ONNX Runtime: 2.1 and 4.8 ms on two threads, 1.0 and 3.5 on one.
constexpr double kContendedCycles = 1e7;
inline int useful_threads(double cycles, int threads) {
  // First: without a team, looking for one asks the loader, which takes longer than a small call may.
  if (cycles < 2 * kCyclesPerTeamThread) return 1;
  if (has_team(threads)) return threads;  // the team as it is
  if (team_rests() && cycles < kContendedCycles) return 1;
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
