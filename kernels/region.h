// SPDX-License-Identifier: Apache-2.0
// The packed input of a block of positions, and the way back: rows of accumulators to rows of the target. Shared by the families that pack a block,
// whatever they put on the vector lanes; the two-tap method and col2im take the way back.
//
//     region = [w segment][d][channel][h][pitch]        or, planes flat, [w segment][channel][d][h][pitch]
//                                                       or, for tiles along one row, [w segment][d][h][channel][pitch]
//
// Positions of several rows (and flat planes) form one run over the region, halo included, so that short rows still fill the lanes; the lanes
// over the halo compute nothing that stays.
#pragma once

#include <limits>

#include "cost.h"
#include "gather.h"

namespace tconv3d {

struct RegionPlan {
  std::array<int64_t, 3> block{}, blocks{};
  std::array<AxisPacking, 3> packing;
  bool taps_apart = false;  // a copy of the rows for each distinct tap along w, so that runs have no halo there
  bool flat_depth = false;  // planes of the block lie one behind the other for each channel: one run over all of them
  bool rows_apart = false;  // the channels of a row lie one behind the other: no run over several rows, but a tile's samples are one stream
  int64_t channels = 0;     // packed at once
  int64_t pitch = 0, row_stride = 0, depth_stride = 0, channel_stride = 0, segment_stride = 0, size = 0;
  int64_t run = 0;  // positions of one run

  int64_t runs() const { return flat_depth ? 1 : block[0]; }
  // The sums of all columns and phases of a block are kept while the channels pass chunk by chunk: large blocks of many channels.
  bool by_chunk(const Gather& g) const { return channels < g.channels; }
  std::string describe() const {
    return "blocks of " + by({block[0], block[1], block[2]}) + " positions and " + std::to_string(channels) + " channels, " + std::to_string(run) +
           " in a run" + (taps_apart ? " without halo" : "");
  }
  int64_t tasks(const Gather& g) const { return g.batch * g.groups * blocks[0] * blocks[1] * blocks[2]; }
};

// A task's share of the positions.
struct Block {
  int64_t image, group;
  std::array<int64_t, 3> from, size;
};

// An odd number of cache lines: planes a power of two apart would share the same cache sets.
template <class T>
int64_t odd_lines(int64_t elements) {
  const int64_t line = 64 / int64_t(sizeof(T));
  return (ceil_div(elements, line) | 1) * line;
}

// Elements that a tile may read past the last position.
template <class T>
int64_t slack(const TileKernels<T>& k) {
  return int64_t(kMaxVectors) * k.lanes;
}

// Bytes of a vector that a tile reads from the second-level cache; a small region stays in the first.
template <class T>
int64_t second_level_bytes(const RegionPlan& p, const TileKernels<T>& k) {
  return double(p.size) * sizeof(T) < kFirstLevelBytes ? 0 : k.lanes * int64_t(sizeof(T));
}

// Rows of the tallest tile of so many vectors, at most `limit`; 0 where there is none.
template <class T>
int64_t most_rows(const TileKernels<T>& k, int64_t vectors, int64_t limit = kMaxRows) {
  int64_t rows = std::min<int64_t>(limit, kMaxRows);
  while (rows > 0 && !k.spatial[vectors][rows]) --rows;
  return rows;
}

// Vectors of a run's last tile, for the positions that are left.
template <class T>
int64_t last_vectors(const TileKernels<T>& k, int64_t positions) {
  int64_t vectors = ceil_div(positions, k.lanes);
  while (!k.spatial[vectors][1]) ++vectors;  // not every number is compiled
  return vectors;
}

// f(position, vectors) for the tiles of a run: so many vectors each, the last one as many as hold what is left.
template <class T, class F>
void for_each_tile(const TileKernels<T>& k, int64_t vectors, int64_t run, F f) {
  int64_t position = 0;
  for (; position + vectors * k.lanes <= run; position += vectors * k.lanes) f(position, vectors);
  if (position < run) f(position, last_vectors(k, run - position));
}

// Cycles of them all, where one tile takes cycles(vectors).
template <class T, class F>
double run_cycles(const TileKernels<T>& k, int64_t vectors, int64_t run, F cycles) {
  const int64_t whole = run / (vectors * k.lanes), left = run % (vectors * k.lanes);
  return (whole ? double(whole) * cycles(vectors) : 0) + (left ? cycles(last_vectors(k, left)) : 0);
}

// The part of a segment that lies inside the image: packed coordinates begin <= t < end, from source sample `source` on.
struct Inside {
  int64_t begin, end, source;
};

template <class T>
class Region {
 public:
  Region(const Gather& g, const RegionPlan& p, const TileKernels<T>& k);

  Block block(int64_t task) const;
  int64_t run_length(const Block& b) const { return (b.size[1] - 1) * p_.pitch + b.size[2] + (p_.flat_depth ? (b.size[0] - 1) * p_.depth_stride : 0); }
  int64_t tap_offset(const Tap& d, const Tap& h, const Tap& w) const;
  std::vector<int64_t> tap_offsets(const Combo& combo) const;
  // The plan's number of channels from `channel` on, or as many as there are.
  void pack(const Block& b, int64_t channel, T* region) const;

  // Rows of one (d, h) phase for `columns` channels from `channel` on, from c[column * column_stride + w phase * phase_stride + position]; `run` is the
  // plane of the block unless planes are flat.
  void store(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t column_stride,
             int64_t phase_stride) const;
  bool past_cache() const { return stream_; }  // are results stored so?

  // To a channels-last target from c[w phase * phase_stride + position*ld + column], planes flat.
  void store_lanes(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, const T* c, int64_t ld, int64_t phase_stride) const {
    store_positions(b, d, h, channel, columns, 0, c, ld, phase_stride, ld, k_.store_lanes);
  }

 private:
  void store_rows(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t column_stride,
                  int64_t phase_stride) const;
  void store_positions(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t ld,
                       int64_t phase_stride, int64_t position_stride, void (*store)(const PositionStore<T>&)) const;
  void clear_rows(T* to, int64_t rows) const;
  // The rows of one phase along w, or of several that take turns in the source and are loaded together.
  struct TurnRows {
    int64_t phases;
    std::array<int64_t, kMaxTurns> segment;
    std::array<Inside, kMaxTurns> inside;
  };
  std::vector<TurnRows> turn_rows(const Block& b) const;
  void pack_plane(T* to, const TurnRows& phase, bool outside, int64_t rows, const Inside& h, const void* from) const;
  void pack_channels_last(const Block& b, int64_t channel, T* region) const;
  int64_t packed_channels(int64_t channel) const { return std::min(p_.channels, g_.channels - channel); }
  template <class F>
  void for_each_segment(size_t axis, const Block& b, F f) const;

  const Gather& g_;
  const RegionPlan& p_;
  const TileKernels<T>& k_;
  const Extent<T> source_;
  bool stream_;
};

struct Work {
  int64_t taps, combos, row_phases;
};
Work work_of(const Gather& g);

// Cycles of a task besides its tiles: packing, and both packing and storing.
double packing_cycles(const Gather& g, const RegionPlan& p);
double transfer_cycles(const Gather& g, const Work& work, const RegionPlan& p);

template <class T>
void lay_out(RegionPlan& p, const Gather& g, const TileKernels<T>& k);

std::array<std::vector<int64_t>, 3> block_sizes(const Gather& g, int64_t lanes);

constexpr double kCutRows = 1.06;  // the hardware fetches the second half of a row ahead, for nobody: gcnet_deconv5 97 to 82 ms on whole ones

// Tries block sizes, with all channels packed at once or `chunk` of them; price(plan) sets the cycles of all tasks together.
template <class T, class Plan, class Price>
Plan best_blocks(const Gather& g, int64_t chunk, const TileKernels<T>& k, Price price) {
  Plan best;
  const auto sizes = block_sizes(g, k.lanes);
  for (int64_t w : sizes[2]) {
    for (int64_t h : sizes[1])
      for (int64_t d : sizes[0])
        for (int layout = 0; layout < (chunk < g.channels ? 8 : 4); ++layout) {
          Plan p;
          p.region.block = {d, h, w};
          p.region.flat_depth = layout & 1;
          p.region.taps_apart = layout & 2;
          p.region.channels = layout & 4 ? chunk : g.channels;
          if (p.region.flat_depth && d == 1) continue;
          lay_out<T>(p.region, g, k);
          const bool smallest = d == sizes[0].back() && h == sizes[1].back() && w == sizes[2].back();
          if ((p.region.size * int64_t(sizeof(T)) > int64_t(cache_bytes()) || p.region.run > 8192) && !smallest) continue;
          price(p);
          if (w != sizes[2].front()) p.cycles *= kCutRows;
          if (p.cycles < best.cycles) best = std::move(p);
        }
    // Whole rows unless even one of them outgrows half of the cache.
    if (best.cycles < std::numeric_limits<double>::infinity() && w == sizes[2].front() && best.region.size * int64_t(sizeof(T)) < int64_t(cache_bytes()) / 2)
      break;
  }
  return best;
}

}  // namespace tconv3d
