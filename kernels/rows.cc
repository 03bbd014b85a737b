// SPDX-License-Identifier: Apache-2.0
// Channels out on the vector lanes, neighbouring positions of a row on the rows of the tile, read from the packed region. Every lane computes what is
// stored, and rows leave out the taps that miss the image along d and h: a sixth of all for a kernel of 3 on 14^3, where lanes over positions add a tenth.
#include "panels.h"
#include "region.h"

namespace tconv3d {

namespace {

template <class T>
class RowsPlan : public Plan {
 public:
  RegionPlan region;
  int64_t vectors = 1, columns_cut = 1;

  RowsPlan() { region.rows_apart = true; }

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, channels on the lanes, positions of a row on the rows: " + region.describe() + "; " + by({columns_cut}) + " column tiles of " +
           by({vectors}) + " vectors";
  }
};

constexpr double kTapStart = 6;  // a tap of a tile: its two offsets. With 1 or 3 channels to a tap this family took 1.2 to 1.5 times as long without
// A sum turned to its row of the target, in blocks of whole vectors. At half the price layers with kernel == stride took 1.1 times as long as with positions
// on the lanes (320 to 48 channels, k(1,2,2); of 1200 layers and input gradients 30 change their family, and run 1.15 times as fast in the mean).
constexpr double kTurnedSum = 0.75;
constexpr double kPanelTraffic = 1.5;  // bytes from the second-level cache for each of a panel: the samples of short rows come from there as well
// Panels that outgrow the third-level cache come from memory for each task, which threads share: 3dgan_l2, 33 MB for each of eight tasks, 61 ms where
// the family `channels`, which reads them once, takes 49.
constexpr double kLargePanelsFactor = 2;

struct TapRange {
  int64_t begin, end;
};

// The taps of a phase whose sample for position j lies in the source. Sources rise or fall along the taps, so they are neighbours.
TapRange taps_inside(const AxisPlan& axis, const Phase& phase, int64_t j) {
  TapRange range{0, 0};
  for (int64_t t = 0; t < int64_t(phase.taps.size()); ++t) {
    const int64_t source = source_of(axis, phase.taps[size_t(t)], j);
    if (source < 0 || source >= axis.source_size) continue;
    if (range.end == 0) range.begin = t;
    range.end = t + 1;
  }
  return range;
}

struct Sums {
  std::array<double, 2> d, h;  // taps and positions, over the image
  double taps_w;
};

template <class T>
void price(RowsPlan<T>& p, const Gather& g, const Work& work, const Sums& n, const TileKernels<T>& k, const PlanContext& context) {
  if (p.region.flat_depth || p.region.taps_apart) return;  // layouts against what this family has not
  const double chunks = double(ceil_div(g.channels, context.chunk)), rows_of_tiles = n.d[1] * n.h[1] * double(work.row_phases) * double(p.region.blocks[2]);
  double best = std::numeric_limits<double>::infinity();
  for (int64_t vectors = 1; vectors <= 4; ++vectors) {
    const int64_t count = ceil_div(g.columns, vectors * k.lanes), most = most_rows(k, vectors);
    const double kept =
        double((p.region.by_chunk(g) ? count * work.combos : work.row_phases) * p.region.block[0] * p.region.block[1] * p.region.block[2] * vectors * k.lanes) *
        sizeof(T);
    if (most == 0 || kept + double(p.region.size) * sizeof(T) > double(cache_bytes())) continue;
    const double spilled = kept > kFirstLevelBytes ? kSpilledVector : 0;
    double steps = 0, calls = 0;
    for_each_piece(p.region.block[2], most, [&](int64_t, int64_t rows) {
      steps += step_cycles(rows, vectors, 1, kPanelTraffic * k.lanes * int64_t(sizeof(T))) + kTapStart * chunks / double(g.channels);
      calls += kTileCall + double(rows * vectors) * (1 + spilled);
    });
    const double cycles =
        double(count) * (n.d[0] * n.h[0] * n.taps_w * double(p.region.blocks[2]) * double(g.channels) * steps + rows_of_tiles * chunks * calls);
    if (cycles < best) {
      best = cycles;
      p.vectors = vectors;
      p.columns_cut = count;
    }
  }
  const int64_t tasks = p.region.tasks(g);
  const double transposed =
      rows_of_tiles * double(g.columns) * (kTurnedSum * double(ceil_div(p.region.block[2], k.lanes) * k.lanes) + kRowCall / double(k.lanes));
  const double panel_bytes = double(p.columns_cut * p.vectors * k.lanes * g.channels * work.taps) * sizeof(T);
  const double panels = panel_cycles(panel_bytes) * (panel_bytes < kThirdLevelBytes ? 1 : kLargePanelsFactor);
  p.cycles =
      parallel_cycles(double(g.batch * g.groups) * (best + transposed) + double(tasks) * (panels + transfer_cycles(g, work, p.region)), tasks, context.threads);
}

template <class T>
class RowsRun {
 public:
  RowsRun(const Gather& g, const RowsPlan<T>& p, const std::vector<ColumnTile>& cut, const Panels& panels, const Kernels& kernels)
      : g_(g), p_(p), cut_(cut), panels_(panels), k_(tiles<T>(kernels)), region_(g, p.region, k_) {
    for (const PanelSet& set : panels.sets()) tap_offsets_.push_back(region_.tap_offsets(set.phases.members[0]));
    row_phases_ = int64_t(g.axis[2].phases.size());
    positions_ = p.region.block[0] * p.region.block[1] * p.region.block[2];
    ldc_ = p.region.run + k_.lanes;
  }

  int64_t scratch_size() const { return odd_lines<T>(p_.region.size) + odd_lines<T>(kept_size()) + row_phases_ * widest() * ldc_; }

  void run(int64_t task, T* scratch) const {
    const Block b = region_.block(task);
    T *region = scratch, *c = scratch + odd_lines<T>(p_.region.size), *transposed = c + odd_lines<T>(kept_size());
    std::vector<int64_t> offsets;
    for (int64_t packed = 0; packed < g_.channels; packed += p_.region.channels) {
      const int64_t end = std::min(packed + p_.region.channels, g_.channels);
      region_.pack(b, packed, region);
      for (const ColumnTile& tile : cut_)
        for (int64_t first = 0; first < int64_t(panels_.sets().size()); first += row_phases_) {
          T* const sums = p_.region.by_chunk(g_) ? c + (tile.start * int64_t(panels_.sets().size()) + first * tile.width) * positions_ : c;
          for (int64_t channel = packed; channel < end; channel += panels_.chunk())
            for (int64_t f = 0; f < row_phases_; ++f)
              multiply(b, tile, size_t(first + f), channel, std::min(panels_.chunk(), end - channel), region + (channel - packed) * p_.region.channel_stride,
                       sums + f * positions_ * tile.width, &offsets);
          if (end == g_.channels) store(b, tile, size_t(first), sums, transposed);
        }
    }
  }

 private:
  int64_t widest() const {
    int64_t widest = 0;
    for (const ColumnTile& tile : cut_) widest = std::max(widest, tile.width);
    return widest;
  }
  int64_t kept_size() const {
    return positions_ * (p_.region.by_chunk(g_) ? int64_t(panels_.sets().size()) * (cut_.back().start + cut_.back().width) : row_phases_ * widest());
  }

  // c[d][h][w][column] (+)= the products of a chunk of channels, for one phase of d, h and w. `offsets`: room for those of a row's taps.
  void multiply(const Block& b, const ColumnTile& tile, size_t set_index, int64_t channel, int64_t channels, const T* region, T* c,
                std::vector<int64_t>* offsets) const {
    const PanelSet& set = panels_.sets()[set_index];
    const auto& [d, h, w] = set.phases.members[0];
    const int64_t most = most_rows(k_, tile.width / k_.lanes), taps_w = int64_t(w->taps.size()), plane = int64_t(h->taps.size()) * taps_w;
    SpatialTile<T> job;
    job.weight_step = p_.region.channel_stride;
    job.region = panels_.template at<T>(set, b.group, tile, channel);
    job.channels = channels;
    job.channel_stride = job.ldc = tile.width;
    job.accumulate = channel > 0;
    for (int64_t depth = 0; depth < std::min(b.size[0], d->count - b.from[0]); ++depth) {
      const TapRange in_d = taps_inside(g_.axis[0], *d, b.from[0] + depth);
      for (int64_t row = 0; row < std::min(b.size[1], h->count - b.from[1]); ++row) {
        const TapRange in_h = taps_inside(g_.axis[1], *h, b.from[1] + row);
        offsets->clear();
        for (int64_t td = in_d.begin; td < in_d.end; ++td)
          for (int64_t t = td * plane + in_h.begin * taps_w; t < td * plane + in_h.end * taps_w; ++t) offsets->push_back(t);
        job.taps = int64_t(offsets->size());
        for (size_t t = 0; t < size_t(job.taps); ++t) {
          const int64_t tap = (*offsets)[t];
          (*offsets)[t] = tap * channels * tile.width;
          offsets->push_back(tap_offsets_[set_index][size_t(tap)]);
        }
        job.tap_offset = offsets->data();
        job.weight_offset = offsets->data() + job.taps;
        const T* const from = region + depth * p_.region.depth_stride + row * p_.region.row_stride;
        for_each_piece(b.size[2], most, [&](int64_t position, int64_t rows) {
          job.weights = from + position;
          job.c = c + ((depth * p_.region.block[1] + row) * p_.region.block[2] + position) * tile.width;
          k_.spatial[tile.width / k_.lanes][rows](job);
        });
      }
    }
  }

  // sums[phase w][d][h][w][column] -> transposed[phase w][column][run], plane by plane, and to the target.
  void store(const Block& b, const ColumnTile& tile, size_t first, const T* sums, T* transposed) const {
    const Combo& combo = panels_.sets()[first].phases.members[0];
    for (int64_t depth = 0; depth < b.size[0]; ++depth) {
      for (int64_t f = 0; f < row_phases_; ++f)
        for (int64_t row = 0; row < b.size[1]; ++row)
          k_.pack_positions(transposed + f * tile.width * ldc_ + row * p_.region.pitch, ldc_,
                            sums + (f * positions_ + (depth * p_.region.block[1] + row) * p_.region.block[2]) * tile.width, tile.width, b.size[2], 1,
                            tile.count, kAccumulated<T>);
      region_.store(b, *combo[0], *combo[1], b.group * g_.columns + tile.begin, tile.count, depth, transposed, ldc_, tile.width * ldc_);
    }
  }

  const Gather& g_;
  const RowsPlan<T>& p_;
  const std::vector<ColumnTile>& cut_;
  const Panels& panels_;
  const TileKernels<T>& k_;
  const Region<T> region_;
  int64_t row_phases_, positions_, ldc_;
  std::vector<std::vector<int64_t>> tap_offsets_;
};

template <class T>
void RowsPlan<T>::run(const Gather& g, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const std::vector<ColumnTile> cut = cut_columns(g.columns, columns_cut, tiles<T>(kernels).lanes);
  const auto pack_and_run = [&](const std::vector<ColumnTile>& some, const Options& with) {
    Panels panels(g, phase_by_phase(g, some), chunk);
    panels.fill<T>(with, kernels);
    const RowsRun<T> run(g, *this, some, panels, kernels);
    run_tasks<T>(region.tasks(g), run.scratch_size(), with, [&](int64_t task, T* scratch) { run.run(task, scratch); });
  };
  // Slabs where fresh memory would be cleared for the panels, and the samples, packed again for each slab, are fewer than the weights.
  const int64_t bytes = g.groups * (cut.back().start + cut.back().width) * g.channels * work_of(g).taps * int64_t(sizeof(T));
  const int64_t samples = source_positions(g) * g.groups * g.channels;
  int64_t slabs = ceil_div(ceil_div(bytes, kSlabBytes), options.threads) * options.threads;
  if (options.packed || bytes <= int64_t(kMostIdleScratch) || slabs > int64_t(cut.size()) || samples * int64_t(sizeof(T)) > bytes / slabs) slabs = 1;
  if (slabs < 2 * options.threads) return pack_and_run(cut, options);
  const Options alone;
  parallel_for(slabs, options.threads, [&](int64_t slab, int) { pack_and_run(slab_of(cut, slab, slabs), alone); }, options.stop);
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_rows(const Gather& g, const PlanContext& context) {
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const Work work = work_of(g);
  double taps_w = 0;
  for (const Phase& phase : g.axis[2].phases) taps_w += double(phase.taps.size());
  const Sums sums{sums_inside(g.axis[0]), sums_inside(g.axis[1]), taps_w};
  return std::make_unique<RowsPlan<T>>(best_blocks<T, RowsPlan<T>>(g, context.chunk, k, [&](RowsPlan<T>& p) { price<T>(p, g, work, sums, k, context); }));
}

template std::unique_ptr<Plan> plan_rows<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_rows<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
