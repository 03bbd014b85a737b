// SPDX-License-Identifier: Apache-2.0
#include "panels.h"

namespace tconv3d {

namespace {

constexpr int64_t kMostRowsAtOnce = 32;  // packed by one task
constexpr int64_t kRowsAhead = 2;        // fetched: more would meet in the same sets of the caches, a power of two apart

}  // namespace

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

std::vector<ColumnTile> slab_of(const std::vector<ColumnTile>& tiles, int64_t slab, int64_t slabs) {
  const int64_t count = int64_t(tiles.size());
  std::vector<ColumnTile> part(tiles.begin() + slab * count / slabs, tiles.begin() + (slab + 1) * count / slabs);
  for (size_t t = part.size(); t-- > 0;) part[t].start -= part[0].start;
  return part;
}

std::vector<PanelSet> phase_by_phase(const Gather& g, const std::vector<ColumnTile>& cut) {
  std::vector<PanelSet> sets;
  for (const Phase& d : g.axis[0].phases)
    for (const Phase& h : g.axis[1].phases)
      for (const Phase& w : g.axis[2].phases) {
        PhaseSet phase{{{&d, &h, &w}}, int64_t(d.taps.size() * h.taps.size() * w.taps.size()), false};
        sets.push_back(panel_set(std::move(phase), cut));
      }
  return sets;
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
    key.push_back(set.phases.turned() ? -3 : -1);
    for (const ColumnTile& tile : set.tiles) key.push_back(tile.width);
    for (const Combo& c : set.phases.members)
      for (const Phase* p : c) {
        key.push_back(-2);
        for (const Tap& tap : p->taps) key.push_back(tap.kernel);
      }
  }
  return key;
}

// True where every set is one phase, all are cut alike, and a kernel's elements are contiguous: then one pass over the weights fills the panels
// of all sets. Sets pass by set would read each cache line of a large weight once per phase.
bool Panels::kernels_at_once() const {
  const auto same_cut = [&](const PanelSet& set) {
    return set.tiles.size() == sets_[0].tiles.size() &&
           std::equal(set.tiles.begin(), set.tiles.end(), sets_[0].tiles.begin(),
                      [](const ColumnTile& a, const ColumnTile& b) { return a.begin == b.begin && a.width == b.width; });
  };
  for (const PanelSet& set : sets_)
    if (set.phases.members.size() != 1 || !same_cut(set)) return false;
  return has_dense_kernel(g_);
}

template <class T>
void Panels::pack_all_kernels(T* to, const Kernels& kernels, int64_t group, size_t tile_index, int64_t channel) const {
  const ColumnTile& tile = sets_[0].tiles[tile_index];
  const int64_t channels = std::min(chunk_, g_.channels - channel), volume = g_.weight_kernel[0] * g_.weight_kernel[1] * g_.weight_kernel[2];
  std::vector<int64_t> element_offset(size_t(volume), -1);
  for (const PanelSet& set : sets_)
    for_each_tap(set.phases.members[0], [&](int64_t t, const Tap& d, const Tap& h, const Tap& w) {
      element_offset[size_t(kernel_element(g_, d, h, w))] = offset(set, group, tile, channel) + t * channels * tile.width;
    });
  const KernelPack<T> job{to,
                          g_.weight.at(group * g_.weight_group + channel * g_.weight_channel + tile.begin * g_.weight_column),
                          g_.weight_channel,
                          channels,
                          g_.weight_column,
                          tile.count,
                          tile.width,
                          volume,
                          element_offset.data()};
  tiles<T>(kernels).pack_kernels(job, g_.weight.dtype);
}

template <class T>
void Panels::pack_tile(T* to, const Kernels& kernels, const PanelSet& set, int64_t group, const ColumnTile& tile, int64_t channel) const {
  const int64_t taps = set.phases.taps, columns = tile.count;
  std::vector<int64_t> column_offset(static_cast<size_t>(columns)), tap_offset(size_t(taps * columns));
  ColumnWalk column(set.phases, tile.begin, g_.columns);
  for (int64_t m = 0; m < columns; ++m, column.next()) {
    column_offset[size_t(m)] = column.m() * g_.weight_column;
    for_each_tap(column.phase(),
                 [&](int64_t t, const Tap& d, const Tap& h, const Tap& w) { tap_offset[size_t(t * columns + m)] = kernel_element(g_, d, h, w); });
  }
  const WeightPack<T> job{to + offset(set, group, tile, channel),
                          g_.weight.at(group * g_.weight_group + channel * g_.weight_channel),
                          g_.weight_channel,
                          std::min(chunk_, g_.channels - channel),
                          column_offset.data(),
                          tap_offset.data(),
                          taps,
                          columns,
                          tile.width};
  tiles<T>(kernels).pack_weights(job, g_.weight.dtype);
}

// True where a channel's row of the weights holds all columns of the set and no more: a tap for each phase, as with kernel == stride.
bool Panels::columns_lie_in_rows(const PanelSet& set) const {
  if (set.phases.taps != 1 || g_.weight_column != int64_t(set.phases.members.size())) return false;
  bool in_order = true;
  int64_t member = 0;
  for (const Combo& combo : set.phases.members)
    for_each_tap(combo, [&](int64_t, const Tap& d, const Tap& h, const Tap& w) { in_order = in_order && kernel_element(g_, d, h, w) == member++; });
  return in_order;
}

// `rows` rows of such a set from `channel` on, for all tiles: tile by tile, a line or two of each row would be read, each from memory, and again for the
// next tile (512 to 512 channels, 1^3 to 4^3, not prepared: 46 to 27 ms on one thread). [m][member] in the weights; turned where the set wants [member][m].
template <class T>
void Panels::pack_rows(T* to, const Kernels& kernels, const PanelSet& set, int64_t group, int64_t channel, int64_t rows) const {
  const TileKernels<T>& k = tiles<T>(kernels);
  const int64_t chunk = channel / chunk_ * chunk_, end = std::min({channel + rows, chunk + chunk_, g_.channels});
  if (set.tiles.empty()) return;  // in a slab of more tiles than the set has
  const int64_t members = int64_t(set.phases.members.size());
  const int64_t first = set.tiles.front().begin / g_.columns, last = ceil_div(set.tiles.back().begin + set.tiles.back().count, g_.columns);
  std::vector<T> turned(size_t(set.phases.turned() ? (last - first) * g_.columns : 0));
  for (; channel < end; ++channel) {
    const int64_t row = group * g_.weight_group + channel * g_.weight_channel;
    if (!turned.empty()) k.pack_positions(turned.data(), g_.columns, g_.weight.at(row + first), members, g_.columns, 1, last - first, g_.weight.dtype);
    for (const ColumnTile& tile : set.tiles) {
      T* const panel = to + offset(set, group, tile, chunk) + (channel - chunk) * tile.width;
      const int64_t from = row + tile.begin;
      if (channel + kRowsAhead < g_.channels)
        for (int64_t m = 0; m < tile.count; m += 64 / g_.weight.element_size()) __builtin_prefetch(g_.weight.at(from + kRowsAhead * g_.weight_channel + m));
      if (turned.empty())
        k.load_run(panel, 1, g_.weight.at(from), 1, tile.count, g_.weight.dtype);
      else
        std::copy_n(turned.data() + tile.begin - first * g_.columns, tile.count, panel);
      std::fill(panel + tile.count, panel + tile.width, T(0));
    }
  }
}

template <class T>
void Panels::fill(const Options& options, const Kernels& kernels) {
  constexpr size_t kAllTiles = size_t(-1);
  struct Piece {
    const PanelSet* set;  // null: all sets
    int64_t group;
    size_t tile;  // or kAllTiles: rows
    int64_t channel;
  };
  std::vector<Piece> pieces;
  const auto add = [&](const PanelSet* set) {
    for (int64_t group = 0; group < g_.groups; ++group)
      for (size_t tile = 0; tile < (set ? *set : sets_[0]).tiles.size(); ++tile)
        for (int64_t c = 0; c < g_.channels; c += chunk_) pieces.push_back({set, group, tile, c});
  };
  const int64_t rows = std::clamp<int64_t>(ceil_div(g_.groups * g_.channels, 2 * options.threads), 1, kMostRowsAtOnce);
  const auto add_rows = [&](const PanelSet& set) {
    for (int64_t group = 0; group < g_.groups; ++group)
      for (int64_t chunk = 0; chunk < g_.channels; chunk += chunk_)
        for (int64_t c = chunk; c < std::min(chunk + chunk_, g_.channels); c += rows) pieces.push_back({&set, group, kAllTiles, c});
  };
  data_ = packed_once(options, options.packed ? key(sizeof(T)) : PackedPanels::Key{}, size_t(size_) * sizeof(T), [&](char* data) {
    if (kernels_at_once()) {
      add(nullptr);
    } else {
      for (const PanelSet& set : sets_) {
        if (columns_lie_in_rows(set))
          add_rows(set);
        else
          add(&set);
      }
    }
    T* const to = reinterpret_cast<T*>(data);
    const auto pack = [&](int64_t task, int) {
      const Piece& p = pieces[size_t(task)];
      if (p.tile == kAllTiles)
        pack_rows<T>(to, kernels, *p.set, p.group, p.channel, rows);
      else if (p.set)
        pack_tile<T>(to, kernels, *p.set, p.group, p.set->tiles[p.tile], p.channel);
      else
        pack_all_kernels<T>(to, kernels, p.group, p.tile, p.channel);
    };
    // Under 64 Ki elements the hand-over to a second thread costs more than the packing.
    parallel_for(int64_t(pieces.size()), size_ < 65536 ? 1 : options.threads, pack, options.stop);
  });
}

template void Panels::fill<float>(const Options&, const Kernels&);
template void Panels::fill<double>(const Options&, const Kernels&);

}  // namespace tconv3d
