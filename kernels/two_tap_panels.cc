// SPDX-License-Identifier: Apache-2.0
#include "two_tap_panels.h"

namespace tconv3d {

namespace {

// f(list, place in the list, sum) for the terms of an axis, list by list.
template <class F>
void for_each_sum(const TransformedAxis& axis, F f) {
  for (size_t list = 0; list < axis.lists.size(); ++list)
    for (size_t i = 0; i < axis.lists[list].size(); ++i) f(list, int64_t(i), axis.lists[list][i]);
}

// dst[i] = the sum of runs of n elements, one for each tap of the kernel.
template <class T>
void sum_runs(T* dst, const T* taps, int64_t tap_stride, const TapSum& sum, int64_t n, const TileKernels<T>& k) {
  const T *first = taps + sum.first * tap_stride, *second = sum.second < 0 ? nullptr : taps + sum.second * tap_stride;
  if (sum.third < 0)
    k.add_runs(dst, first, second, n);
  else
    k.half_sums(dst, first, second, T(sum.sign), taps + sum.third * tap_stride, n);
}

}  // namespace

TwoTapPanels::TwoTapPanels(const Gather& g, const TransformedAxes& axes, const std::vector<ColumnTile>& tiles, int64_t chunk)
    : g_(g), axes_(axes), tiles_(tiles), chunk_(chunk), terms_(0), padded_columns_(tiles.empty() ? 0 : tiles.back().start + tiles.back().width) {
  for (const auto& d : axes[0].lists)
    for (const auto& h : axes[1].lists)
      for (const auto& w : axes[2].lists) {
        start_.push_back(terms_);
        terms_ += int64_t(d.size() * h.size() * w.size());
      }
}

PackedPanels::Key TwoTapPanels::key(int64_t element_size) const {
  PackedPanels::Key key{-4, element_size, g_.groups, g_.channels, g_.columns, g_.weight_channel, chunk_};
  for (const ColumnTile& tile : tiles_) key.push_back(tile.width);
  for (const TransformedAxis& axis : axes_) {
    key.push_back(-1);
    for (const auto& list : axis.lists) {
      key.push_back(-2);
      for (const TapSum& sum : list) key.insert(key.end(), {sum.first, sum.second, sum.third, sum.sign});
    }
  }
  return key;
}

int64_t TwoTapPanels::scratch_size() const {
  int64_t width = 0;
  for (const ColumnTile& tile : tiles_) width = std::max(width, tile.width);
  const auto& kernel = g_.weight_kernel;
  const int64_t h = axes_[1].terms(), w = axes_[2].terms();
  return (kernel[0] * kernel[1] * kernel[2] + kernel[0] * kernel[1] * w + kernel[0] * h * w) * width * std::min(chunk_, g_.channels);
}

// to[kernel element][channel][column]
template <class T>
void TwoTapPanels::pack_taps(T* to, const TileKernels<T>& k, int64_t group, const ColumnTile& tile, int64_t channel) const {
  const int64_t channels = std::min(chunk_, g_.channels - channel), volume = g_.weight_kernel[0] * g_.weight_kernel[1] * g_.weight_kernel[2];
  const void* const src = g_.weight.at(group * g_.weight_group + channel * g_.weight_channel + tile.begin * g_.weight_column);
  if (has_dense_kernel(g_)) {
    std::vector<int64_t> element_offset(static_cast<size_t>(volume));
    for (int64_t e = 0; e < volume; ++e) element_offset[size_t(e)] = e * channels * tile.width;
    k.pack_kernels({to, src, g_.weight_channel, channels, g_.weight_column, tile.count, tile.width, volume, element_offset.data()}, g_.weight.dtype);
    return;
  }
  std::vector<int64_t> column_offset(static_cast<size_t>(tile.count)), tap_offset;
  for (int64_t m = 0; m < tile.count; ++m) column_offset[size_t(m)] = m * g_.weight_column;
  for (int64_t d = 0; d < g_.weight_kernel[0]; ++d)
    for (int64_t h = 0; h < g_.weight_kernel[1]; ++h)
      for (int64_t w = 0; w < g_.weight_kernel[2]; ++w)
        tap_offset.insert(tap_offset.end(), size_t(tile.count), d * g_.weight_tap[0] + h * g_.weight_tap[1] + w * g_.weight_tap[2]);
  k.pack_weights({to, src, g_.weight_channel, channels, column_offset.data(), tap_offset.data(), volume, tile.count, tile.width}, g_.weight.dtype);
}

// The sums along w, then h, then d; those along d go to their places in the panels.
template <class T>
void TwoTapPanels::pack_unit(T* to, T* scratch, const TileKernels<T>& k, int64_t group, const ColumnTile& tile, int64_t channel) const {
  const int64_t n = std::min(chunk_, g_.channels - channel) * tile.width;
  const auto& kernel = g_.weight_kernel;
  const int64_t terms_h = axes_[1].terms(), terms_w = axes_[2].terms();
  T* const taps = scratch;
  T* const along_w = taps + kernel[0] * kernel[1] * kernel[2] * n;
  T* const along_h = along_w + kernel[0] * kernel[1] * terms_w * n;
  pack_taps(taps, k, group, tile, channel);
  for (int64_t row = 0; row < kernel[0] * kernel[1]; ++row) {
    T *dst = along_w + row * terms_w * n, *src = taps + row * kernel[2] * n;
    for_each_sum(axes_[2], [&](size_t, int64_t, const TapSum& s) {
      sum_runs(dst, src, n, s, n, k);
      dst += n;
    });
  }
  const int64_t row = terms_w * n, plane = terms_h * row;
  for (int64_t d = 0; d < kernel[0]; ++d) {
    T *dst = along_h + d * plane, *src = along_w + d * kernel[1] * row;
    for_each_sum(axes_[1], [&](size_t, int64_t, const TapSum& s) {
      sum_runs(dst, src, row, s, row, k);
      dst += row;
    });
  }
  T* const panels = to + unit(group, tile, channel);
  for_each_sum(axes_[0], [&](size_t list_d, int64_t term_d, const TapSum& s) {
    const T* from = along_h;
    for_each_sum(axes_[1], [&](size_t list_h, int64_t term_h, const TapSum&) {
      for_each_sum(axes_[2], [&](size_t list_w, int64_t term_w, const TapSum&) {
        const int64_t size_h = int64_t(axes_[1].lists[list_h].size()), size_w = int64_t(axes_[2].lists[list_w].size());
        sum_runs(panels + (start(list_d, list_h, list_w) + (term_d * size_h + term_h) * size_w + term_w) * n, from, plane, s, n, k);
        from += n;
      });
    });
  });
}

template <class T>
void TwoTapPanels::fill(const Options& options, const Kernels& kernels) {
  const size_t bytes = size_t(terms_ * g_.groups * padded_columns_ * g_.channels) * sizeof(T);
  data_ = packed_once(options, options.packed ? key(sizeof(T)) : PackedPanels::Key{}, bytes, [&](char* data) {
    const int64_t chunks = ceil_div(g_.channels, chunk_), tiles_count = int64_t(tiles_.size());
    run_tasks<T>(g_.groups * tiles_count * chunks, scratch_size(), options, [&](int64_t task, T* scratch) {
      pack_unit(reinterpret_cast<T*>(data), scratch, tiles<T>(kernels), task / (tiles_count * chunks), tiles_[size_t(task / chunks % tiles_count)],
                task % chunks * chunk_);
    });
  });
}

template void TwoTapPanels::fill<float>(const Options&, const Kernels&);
template void TwoTapPanels::fill<double>(const Options&, const Kernels&);

}  // namespace tconv3d
