// SPDX-License-Identifier: Apache-2.0
// Packed weights: which columns share a tile, where each tile's panel lies, and the packing itself.
//
//     panels = [set][group][tile][chunk of channels][tap][channel][column of the tile]
#pragma once

#include "gather.h"

namespace tconv3d {

// Phases that read the same source samples; their columns may share a tile. columns = [m][member] or, with `channels_last`, [member][m]: neighbours in the
// target lie side by side.
struct PhaseSet {
  std::vector<Combo> members;
  int64_t taps;
  bool channels_last;

  // Are the columns in another order than the weights, which have [m][member]?
  bool turned() const { return channels_last && members.size() > 1; }
};

// The columns of a set from one on, counted on without a division for each: each had three, of 20 cycles.
class ColumnWalk {
 public:
  ColumnWalk(const PhaseSet& set, int64_t column, int64_t columns)
      : set_(set),
        members_(int64_t(set.members.size())),
        columns_(columns),
        member_(set.channels_last ? column / columns : column % members_),
        m_(set.channels_last ? column % columns : column / members_) {}

  const Combo& phase() const { return set_.members[size_t(member_)]; }
  int64_t m() const { return m_; }
  void next() {
    int64_t &inner = set_.channels_last ? m_ : member_, &outer = set_.channels_last ? member_ : m_;
    if (++inner < (set_.channels_last ? columns_ : members_)) return;
    inner = 0;
    ++outer;
  }

 private:
  const PhaseSet& set_;
  const int64_t members_, columns_;
  int64_t member_, m_;
};

struct ColumnTile {
  int64_t begin, count;  // columns
  int64_t start, width;  // padded columns, as packed
};

// `columns` cut into `tiles` parts that differ by at most `unit`, each padded to a multiple of `unit`.
std::vector<ColumnTile> cut_columns(int64_t columns, int64_t tiles, int64_t unit);

// Weights packed anew on each call go in slabs of column tiles where they outgrow the caches: fresh memory for 268 MB of panels took three times as long as
// the products.
constexpr int64_t kSlabBytes = int64_t(8) << 20;

// The tiles of one slab of several, packed for themselves.
std::vector<ColumnTile> slab_of(const std::vector<ColumnTile>& tiles, int64_t slab, int64_t slabs);

struct PanelSet {
  PhaseSet phases;
  std::vector<ColumnTile> tiles;
  int64_t base;  // elements before this set

  int64_t padded_columns() const { return tiles.empty() ? 0 : tiles.back().start + tiles.back().width; }
};

// Of parts that are there already: where an allocation fails between the members of a set in braces, GCC 12 destroys the first ones twice.
inline PanelSet panel_set(PhaseSet phases, std::vector<ColumnTile> tiles) { return {std::move(phases), std::move(tiles), 0}; }

// A set for every phase, each cut alike; phases of d, h, w ascending.
std::vector<PanelSet> phase_by_phase(const Gather& g, const std::vector<ColumnTile>& cut);

// What options.packed keeps under `key`, else fresh memory that pack(data) fills.
template <class F>
std::shared_ptr<Scratch> packed_once(const Options& options, const PackedPanels::Key& key, size_t bytes, F pack) {
  if (options.packed)
    if (auto kept = options.packed->find(key)) return kept;
  auto fresh = std::make_shared<Scratch>(bytes);
  pack(fresh->data());
  if (options.packed) options.packed->keep(key, fresh);
  return fresh;
}

class Panels {
 public:
  Panels(const Gather& g, std::vector<PanelSet> sets, int64_t chunk);

  // Packs in parallel, or takes what `options.packed` kept for the same layout.
  template <class T>
  void fill(const Options& options, const Kernels& kernels);

  const std::vector<PanelSet>& sets() const { return sets_; }
  int64_t chunk() const { return chunk_; }
  template <class T>
  const T* at(const PanelSet& set, int64_t group, const ColumnTile& tile, int64_t channel) const {
    return reinterpret_cast<const T*>(data_->data()) + offset(set, group, tile, channel);
  }

 private:
  int64_t offset(const PanelSet& set, int64_t group, const ColumnTile& tile, int64_t channel) const {
    const int64_t depth = g_.channels * set.phases.taps;
    return set.base + group * set.padded_columns() * depth + tile.start * depth + tile.width * set.phases.taps * channel;
  }
  PackedPanels::Key key(int64_t element_size) const;
  template <class T>
  void pack_tile(T* to, const Kernels& kernels, const PanelSet& set, int64_t group, const ColumnTile& tile, int64_t channel) const;
  bool columns_lie_in_rows(const PanelSet& set) const;
  template <class T>
  void pack_rows(T* to, const Kernels& kernels, const PanelSet& set, int64_t group, int64_t channel, int64_t rows) const;
  template <class T>
  void pack_all_kernels(T* to, const Kernels& kernels, int64_t group, size_t tile, int64_t channel) const;
  bool kernels_at_once() const;

  const Gather& g_;
  std::vector<PanelSet> sets_;
  int64_t chunk_, size_;
  std::shared_ptr<Scratch> data_;
};

}  // namespace tconv3d
