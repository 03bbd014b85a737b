// SPDX-License-Identifier: Apache-2.0
// Positions on the vector lanes, channels out on the rows. A task packs the source region of a block of positions, runs the register tile over
// (columns x positions) for every phase straight from the region, and stores each target row once, its phases interleaved.
#include "panels.h"
#include "region.h"

namespace tconv3d {

namespace {

template <class T>
class SpatialPlan : public Plan {
 public:
  RegionPlan region;
  int64_t vectors = 1, columns_cut = 1;
  int64_t groups_at_once = 1;  // packed and stored together
  int64_t tiles_at_once = 1;   // column tiles that one pass over the positions serves

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, positions on the lanes: " + region.describe() + "; " + by({columns_cut}) + " column tiles of " + by({vectors}) + " vectors";
  }
};

// The operation as packing and storing see it: several groups as one.
Gather joined(const Gather& g, int64_t groups) {
  Gather r = with_axes(g, g.axis);
  r.groups /= groups;
  r.channels *= groups;
  r.columns *= groups;
  return r;
}

// With channels last, groups of few channels share cache lines: as many as fill a vector go together, all columns of each in one tile. Alone they
// took 81 ms where channels first take 11 (mednext_k5_dw64).
template <class T>
int64_t groups_at_once(const Gather& g, const TileKernels<T>& k, const PlanContext& context) {
  if (!context.source_is_rows || !context.target_is_rows || g.channels >= k.lanes || g.columns > 4) return 1;
  int64_t groups = 1;
  for (int64_t n = 2; n <= g.groups && n * g.channels <= k.lanes; ++n)
    if (g.groups % n == 0) groups = n;
  return groups;
}

// Picks vectors and the number of column tiles for a block, and adds up its cycles.
template <class T>
void price(SpatialPlan<T>& p, const Gather& g, const Work& work, const TileKernels<T>& k, const PlanContext& context) {
  const bool by_chunk = p.region.by_chunk(g);
  const double chunks = double(ceil_div(g.channels, context.chunk));
  const double loads = loads_per_vector<T>(k.lanes);
  const int64_t lane_bytes = second_level_bytes(p.region, k);
  double best = std::numeric_limits<double>::infinity();
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    int64_t rows = most_rows(k, vectors, g.columns);
    if (rows == 0) continue;
    const int64_t count = ceil_div(g.columns, rows);
    if (p.groups_at_once > 1 && count > 1) continue;
    rows = ceil_div(g.columns, count);
    const double kept = double((by_chunk ? work.combos * g.columns * p.region.runs() : work.row_phases * rows) * p.region.run) * sizeof(T);
    if (by_chunk && kept + double(p.region.size) * sizeof(T) > double(cache_bytes())) continue;
    const double spilled = kept > kFirstLevelBytes ? kSpilledVector : 0;
    const double missed = count > 1 ? missed_cycles(std::min(g.channels, context.chunk), vectors, lane_bytes) : 0;
    const double run = run_cycles(k, vectors, p.region.run, [&](int64_t held) {
      return double(work.taps * g.channels) * (step_cycles(rows, held, loads, lane_bytes) + missed) +
             chunks * double(work.combos) * (kTileCall + double(rows * held) * (1 + spilled));
    });
    const double cycles = run * double(p.region.runs() * count);
    if (cycles < best) {
      best = cycles;
      p.vectors = vectors;
      p.columns_cut = count;
      const double sums = double(work.row_phases * rows * p.region.run) * sizeof(T);
      p.tiles_at_once = by_chunk ? count : tiles_within(kSumsShare, sums, count);
    }
  }
  const double spill = double(p.region.size) * sizeof(T) > 0.6 * double(cache_bytes()) ? 1.5 : 1.0;
  // Edge blocks hold fewer positions but run nearly as long: count whole blocks.
  const Gather r = joined(g, p.groups_at_once);
  const int64_t tasks = p.region.tasks(r);
  const double panels = panel_cycles(double(r.columns * g.channels * work.taps) * sizeof(T));
  p.cycles = parallel_cycles(double(tasks) * (double(p.groups_at_once) * best * spill + panels + transfer_cycles(r, work, p.region)), tasks, context.threads);
}

template <class T>
class SpatialRun {
 public:
  SpatialRun(const Gather& g, const SpatialPlan<T>& p, const std::vector<ColumnTile>& cut, const Panels& panels, const Kernels& kernels)
      : g_(g), joined_(joined(g, p.groups_at_once)), p_(p), cut_(cut), panels_(panels), k_(tiles<T>(kernels)), region_(joined_, p.region, k_) {
    for (const PanelSet& set : panels.sets()) tap_offsets_.push_back(region_.tap_offsets(set.phases.members[0]));
    row_phases_ = g.axis[2].phases.size();
    ldc_ = ceil_div(p.region.run, p.vectors * k_.lanes) * p.vectors * k_.lanes;
  }

  int64_t scratch_size() const {
    int64_t rows = 0;
    for (size_t tile = 0; tile < cut_.size(); tile += size_t(p_.tiles_at_once)) rows = std::max(rows, columns(tile));
    const int64_t kept = p_.region.by_chunk(g_) ? int64_t(panels_.sets().size()) * g_.columns * p_.region.runs()
                                                : int64_t(row_phases_) * (p_.groups_at_once > 1 ? joined_.columns : rows);
    return odd_lines<T>(p_.region.size) + kept * ldc_ + slack(k_);
  }
  int64_t tasks() const { return p_.region.tasks(joined_); }

  void run(int64_t task, T* scratch) const {
    const Block b = region_.block(task);
    T *region = scratch, *c = scratch + odd_lines<T>(p_.region.size);
    if (!p_.region.by_chunk(g_)) {
      region_.pack(b, 0, region);
      for_each_row_set(b, [&](size_t tile, size_t first, int64_t run) {
        multiply(b, tile, first, run, 0, g_.channels, region, c);
        store(b, tile, first, run, c);
      });
      return;
    }
    const int64_t runs = p_.region.runs(), sets = int64_t(panels_.sets().size());
    const auto kept = [&](size_t tile, size_t first, int64_t run) {
      return c + (cut_[tile].start * sets * runs + (int64_t(first) * runs + run * int64_t(row_phases_)) * columns(tile)) * ldc_;
    };
    for (int64_t channel = 0; channel < g_.channels; channel += p_.region.channels) {
      region_.pack(b, channel, region);
      for_each_row_set(b, [&](size_t tile, size_t first, int64_t run) {
        multiply(b, tile, first, run, channel, std::min(channel + p_.region.channels, g_.channels), region, kept(tile, first, run));
      });
    }
    for_each_row_set(b, [&](size_t tile, size_t first, int64_t run) { store(b, tile, first, run, kept(tile, first, run)); });
  }

 private:
  // Column tiles from `tile` on that go together, and their columns.
  size_t last(size_t tile) const { return std::min(tile + size_t(p_.tiles_at_once), cut_.size()); }
  int64_t columns(size_t tile) const { return cut_[last(tile) - 1].start + cut_[last(tile) - 1].width - cut_[tile].start; }

  // f(the first of the column tiles that go together, the first of the sets of a phase of d and h, run)
  template <class F>
  void for_each_row_set(const Block& b, F f) const {
    for (size_t tile = 0; tile < cut_.size(); tile += size_t(p_.tiles_at_once))
      for (size_t first = 0; first < panels_.sets().size(); first += row_phases_)
        for (int64_t run = 0; run < (p_.region.flat_depth ? 1 : b.size[0]); ++run) f(tile, first, run);
  }

  // c[phase w][group][column][position] of one run; `region` holds the channels from `begin` on. Positions outermost: their samples stay in the
  // first-level cache while panel after panel passes.
  void multiply(const Block& b, size_t first_tile, size_t first, int64_t run, int64_t begin, int64_t end, const T* region, T* c) const {
    SpatialTile<T> job;
    job.weight_offset = nullptr;
    job.channel_stride = p_.region.channel_stride;
    job.ldc = ldc_;
    for (int64_t channel = begin; channel < end; channel += panels_.chunk()) {
      job.channels = std::min(panels_.chunk(), end - channel);
      job.accumulate = channel > 0;
      const T* const samples = region + run * p_.region.depth_stride + (channel - begin) * p_.region.channel_stride;
      for_each_tile(k_, p_.vectors, region_.run_length(b), [&](int64_t position, int64_t vectors) {
        for (size_t f = 0; f < row_phases_; ++f) {
          const PanelSet& set = panels_.sets()[first + f];
          job.tap_offset = tap_offsets_[first + f].data();
          job.taps = set.phases.taps;
          for (int64_t i = 0; i < p_.groups_at_once; ++i) {
            job.region = samples + i * g_.channels * p_.region.channel_stride + position;
            job.c = c + (int64_t(f) * p_.groups_at_once + i) * columns(first_tile) * ldc_ + position;
            for (size_t t = first_tile; t < last(first_tile); ++t) {
              const ColumnTile& tile = cut_[t];
              job.weights = panels_.template at<T>(set, b.group * p_.groups_at_once + i, tile, channel);
              job.weight_step = tile.width;
              k_.spatial[vectors][tile.width](job);
              job.c += tile.width * ldc_;
            }
          }
        }
      });
    }
  }

  void store(const Block& b, size_t tile, size_t first, int64_t run, const T* c) const {
    const Combo& combo = panels_.sets()[first].phases.members[0];
    region_.store(b, *combo[0], *combo[1], b.group * joined_.columns + cut_[tile].begin, p_.groups_at_once * columns(tile), run, c, ldc_,
                  p_.groups_at_once * columns(tile) * ldc_);
  }

  const Gather& g_;
  const Gather joined_;
  const SpatialPlan<T>& p_;
  const std::vector<ColumnTile>& cut_;
  const Panels& panels_;
  const TileKernels<T>& k_;
  const Region<T> region_;
  size_t row_phases_;
  int64_t ldc_;
  std::vector<std::vector<int64_t>> tap_offsets_;
};

template <class T>
void SpatialPlan<T>::run(const Gather& g, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const std::vector<ColumnTile> cut = cut_columns(g.columns, columns_cut, 1);
  Panels panels(g, phase_by_phase(g, cut), chunk);
  panels.fill<T>(options, kernels);
  const SpatialRun<T> run(g, *this, cut, panels, kernels);
  run_tasks<T>(run.tasks(), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_spatial(const Gather& g, const PlanContext& context) {
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const Work work = work_of(g);
  const int64_t at_once = groups_at_once<T>(g, k, context);
  return std::make_unique<SpatialPlan<T>>(
      best_blocks<T, SpatialPlan<T>>(joined(g, at_once), at_once > 1 ? g.channels * at_once : context.chunk, k, [&](SpatialPlan<T>& p) {
        p.groups_at_once = at_once;
        price<T>(p, g, work, k, context);
      }));
}

template std::unique_ptr<Plan> plan_spatial<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_spatial<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
