// SPDX-License-Identifier: Apache-2.0
// Packed weights of the two-tap method: sums of taps, one panel for each combination of the axes' lists.
//
//     panels = [group][tile][chunk of channels][list d][list h][list w][term d][term h][term w][channel][column of the tile]
#pragma once

#include "panels.h"
#include "two_tap_axis.h"

namespace tconv3d {

class TwoTapPanels {
 public:
  TwoTapPanels(const Gather& g, const TransformedAxes& axes, const std::vector<ColumnTile>& tiles, int64_t chunk);

  // Packs in parallel, or takes what `options.packed` kept for the same layout.
  template <class T>
  void fill(const Options& options, const Kernels& kernels);

  int64_t chunk() const { return chunk_; }
  template <class T>
  const T* at(int64_t group, const ColumnTile& tile, int64_t channel, size_t list_d, size_t list_h, size_t list_w) const {
    const int64_t channels = std::min(chunk_, g_.channels - channel);
    return reinterpret_cast<const T*>(data_->data()) + unit(group, tile, channel) + start(list_d, list_h, list_w) * channels * tile.width;
  }

 private:
  int64_t unit(int64_t group, const ColumnTile& tile, int64_t channel) const {
    return terms_ * (group * padded_columns_ * g_.channels + tile.start * g_.channels + tile.width * channel);
  }
  int64_t start(size_t d, size_t h, size_t w) const { return start_[(d * axes_[1].lists.size() + h) * axes_[2].lists.size() + w]; }
  PackedPanels::Key key(int64_t element_size) const;
  template <class T>
  void pack_taps(T* to, const TileKernels<T>& k, int64_t group, const ColumnTile& tile, int64_t channel) const;
  template <class T>
  void pack_unit(T* to, T* scratch, const TileKernels<T>& k, int64_t group, const ColumnTile& tile, int64_t channel) const;
  int64_t scratch_size() const;

  const Gather& g_;
  const TransformedAxes& axes_;
  const std::vector<ColumnTile>& tiles_;
  int64_t chunk_, terms_, padded_columns_;
  std::vector<int64_t> start_;  // [list d][list h][list w], in terms
  std::shared_ptr<Scratch> data_;
};

}  // namespace tconv3d
