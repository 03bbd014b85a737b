// SPDX-License-Identifier: Apache-2.0
// The samples of a block of positions, channels last, and what the two-tap method makes of them: along w, then h, then d, on whole vectors of channels,
// whatever the shape of the block.
//
//     region = [d][h][w][channel] of the source, then [kind d][kind h][kind w][d][h][w][channel] of each stage
//
// A kind that is a sample alone is not copied: it lies where that sample does.
#pragma once

#include "region.h"
#include "two_tap_axis.h"

namespace tconv3d {

// The samples of an axis that a block holds: source[(first + i)*scale + origin] for 0 <= i < count, where first = step*(position + least shift) + lowest.
struct SampleSpan {
  int64_t origin = 0, scale = 1;
  int64_t unit = 1;  // from sample to sample of a source phase
  int64_t step = 1;  // from position to position
  int64_t lowest = 0, count = 1;

  int64_t at(const Kind& kind, int64_t sample) const { return unit * sample + kind.source_phase - origin; }
};
SampleSpan sample_span(const TransformedAxis& axis, int64_t positions);

// Elements that a block of positions loads, and those that it combines.
struct SampleCounts {
  double loaded, combined;
  double all() const { return loaded + combined; }
};
SampleCounts count_samples(const TransformedAxes& axes, int64_t channels, const std::array<int64_t, 3>& block);

template <class T>
class TwoTapSamples {
 public:
  // Where values lie: that of position (d, h, w) is at[d*stride[0] + h*stride[1] + w*stride[2]].
  struct Place {
    int64_t at = 0;
    std::array<int64_t, 3> stride{};
    size_t grid = 0;
  };

  TwoTapSamples(const Gather& g, const TransformedAxes& axes, const std::array<int64_t, 3>& block, const TileKernels<T>& k);

  int64_t size() const { return size_; }
  // Of a term of each axis, position 0 of the block.
  Place place(const Product::Term& d, const Product::Term& h, const Product::Term& w) const;
  // From a place's first value to that of each position of a block.
  const int64_t* grid(const Place& p) const { return grids_[p.grid].data(); }
  void pack(const Block& b, T* region) const;

 private:
  // to = from + sign * other
  struct Sum {
    Place from;
    int64_t other;
    T sign;
    Place to;
    std::array<int64_t, 3> extent;
  };
  void load(const Block& b, T* to) const;

  const Gather& g_;
  const TransformedAxes& axes_;
  const TileKernels<T>& k_;
  std::array<SampleSpan, 3> spans_;
  std::vector<Place> places_;                // [kind d][kind h][kind w]
  std::vector<std::vector<int64_t>> grids_;  // of all strides that there are
  std::vector<Sum> sums_;                    // stage by stage
  int64_t size_;
};

}  // namespace tconv3d
