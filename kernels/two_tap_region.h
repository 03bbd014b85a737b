// SPDX-License-Identifier: Apache-2.0
// The transformed samples of a block of positions:
//
//     region = [kind d][kind h][kind w][channel][d][h][w]
//
// Without a halo where no product reaches past its own position (k4 s2, k3 s1): then a block of any shape fills the lanes.
#pragma once

#include "region.h"
#include "two_tap_panels.h"

namespace tconv3d {

template <class T>
class TwoTapRegion {
 public:
  TwoTapRegion(const Gather& g, const TransformedAxes& axes, const std::array<int64_t, 3>& block, const TileKernels<T>& k);

  int64_t size() const { return kind_stride_ * kinds(0) * kinds(1) * kinds(2) + slack(k_); }
  int64_t scratch_size() const { return rows_size_ + planes_size_ + raw_size_; }
  int64_t channel_stride() const { return channel_stride_; }
  int64_t pitch() const { return length_[2]; }
  int64_t plane() const { return length_[1] * length_[2]; }
  // Of a term of each axis, for position 0 and channel 0.
  int64_t offset(const Product::Term& d, const Product::Term& h, const Product::Term& w) const;

  // `scratch` holds scratch_size() elements.
  void pack(const Block& b, T* region, T* scratch) const;

 private:
  // Source samples that the kinds of one source phase read: s[step*(q0 + least_shift) + at + t], 0 <= t < count.
  struct Source {
    int64_t phase, at, count;
  };
  struct Span {
    int64_t begin, end, source;  // of `count`, what lies inside the image, and its first index in the source
  };
  int64_t kinds(size_t a) const { return int64_t(axes_[a].kinds.size()); }
  Span span(size_t a, const Source& s, int64_t from) const;
  size_t source_of(size_t a, const Kind& kind) const;
  void transform_rows(const Block& b, const View& source, int64_t origin, T* rows, T* raw) const;
  void transform_plane(T* plane, const T* rows) const;

  const Gather& g_;
  const TransformedAxes& axes_;
  const TileKernels<T>& k_;
  const Extent<T> source_;
  std::array<int64_t, 3> length_;
  std::array<std::vector<Source>, 3> sources_;
  std::array<int64_t, 3> samples_{};  // of all sources of an axis
  int64_t channel_stride_, kind_stride_, raw_pitch_, raw_size_, rows_size_, planes_size_;
};

}  // namespace tconv3d
