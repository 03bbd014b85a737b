// SPDX-License-Identifier: Apache-2.0
#include "panels.h"

namespace tconv3d {

std::shared_ptr<Scratch> PackedPanels::find(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = panels_.find(key);
  return found == panels_.end() ? nullptr : found->second;
}

void PackedPanels::keep(const Key& key, std::shared_ptr<Scratch> panels) {
  std::lock_guard<std::mutex> lock(mutex_);
  panels_.emplace(key, std::move(panels));
}

std::vector<ColumnTile> cut_columns(int64_t columns, int64_t tiles, int64_t unit) {
  std::vector<ColumnTile> cut;
  const int64_t units = ceil_div(columns, unit);
  tiles = std::min(tiles, units);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * units / tiles * unit, last = std::min((t + 1) * units / tiles * unit, columns);
    cut.push_back({first, last - first, first, ceil_div(last - first, unit) * unit});
  }
  return cut;
}

Panels::Panels(const Gather& g, std::vector<PanelSet> sets, int64_t chunk) : g_(g), sets_(std::move(sets)), chunk_(chunk), size_(0) {
  for (PanelSet& set : sets_) {
    set.base = size_;
    size_ += g.groups * set.padded_columns() * g.channels * set.phases.taps;
  }
}

PackedPanels::Key Panels::key(int64_t element_size) const {
  PackedPanels::Key key{element_size, g_.groups, g_.channels, g_.columns, g_.weight_channel, chunk_};
  for (const PanelSet& set : sets_) {
    key.push_back(-1);
    for (const ColumnTile& tile : set.tiles) key.push_back(tile.width);
    for (const Combo& c : set.phases.members)
      for (const Phase* p : c) {
        key.push_back(-2);
        for (const Tap& tap : p->taps) key.push_back(tap.kernel);
      }
  }
  return key;
}

template <class T>
void Panels::fill(const Options& options, const Kernels& kernels) {
  const PackedPanels::Key name = options.packed ? key(sizeof(T)) : PackedPanels::Key{};
  if (options.packed && (data_ = options.packed->find(name))) return;
  data_ = std::make_shared<Scratch>(size_t(size_) * sizeof(T));

  struct Piece {
    const PanelSet* set;
    int64_t group;
    const ColumnTile* tile;
    int64_t channel;
  };
  std::vector<Piece> pieces;
  for (const PanelSet& set : sets_)
    for (int64_t group = 0; group < g_.groups; ++group)
      for (const ColumnTile& tile : set.tiles)
        for (int64_t c = 0; c < g_.channels; c += chunk_) pieces.push_back({&set, group, &tile, c});

  const auto pack = [&](int64_t task, int) {
    const Piece& p = pieces[size_t(task)];
    const int64_t taps = p.set->phases.taps, columns = p.tile->count;
    std::vector<int64_t> column_offset(static_cast<size_t>(columns)), tap_offset(size_t(taps * columns));
    for (int64_t m = 0; m < columns; ++m) {
      const int64_t column = p.tile->begin + m;
      column_offset[size_t(m)] = column % g_.columns * g_.weight_column;
      for_each_tap(p.set->phases.members[size_t(column / g_.columns)], [&](int64_t t, const Tap& d, const Tap& h, const Tap& w) {
        tap_offset[size_t(t * columns + m)] = d.kernel * g_.weight_tap[0] + h.kernel * g_.weight_tap[1] + w.kernel * g_.weight_tap[2];
      });
    }
    WeightPack<T> job;
    job.dst = reinterpret_cast<T*>(data_->data()) + offset(*p.set, p.group, *p.tile, p.channel);
    job.src = g_.weight.at(p.group * g_.weight_group + p.channel * g_.weight_channel);
    job.channel_stride = g_.weight_channel;
    job.channels = std::min(chunk_, g_.channels - p.channel);
    job.column_offset = column_offset.data();
    job.tap_offset = tap_offset.data();
    job.taps = taps;
    job.columns = columns;
    job.width = p.tile->width;
    tiles<T>(kernels).pack_weights(job, g_.weight.dtype);
  };
  // Under 64 Ki elements the hand-over to a second thread costs more than the packing.
  parallel_for(int64_t(pieces.size()), size_ < 65536 ? 1 : options.threads, pack, options.stop);
  if (options.packed) options.packed->keep(name, data_);
}

template void Panels::fill<float>(const Options&, const Kernels&);
template void Panels::fill<double>(const Options&, const Kernels&);

}  // namespace tconv3d
