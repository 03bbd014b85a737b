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

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, positions on the lanes: " + region.describe() + "; " + by({columns_cut}) + " column tiles of " + by({vectors}) + " vectors";
  }
};

// Picks vectors and the number of column tiles for a block, and adds up its cycles.
template <class T>
void price(SpatialPlan<T>& p, const Gather& g, const Work& work, const TileKernels<T>& k, int threads) {
  const double loads = loads_per_vector<T>(k.lanes);
  // A small region stays in the first-level cache.
  const int64_t lane_bytes = double(p.region.size) * sizeof(T) < kFirstLevelBytes ? 0 : k.lanes * int64_t(sizeof(T));
  double best = std::numeric_limits<double>::infinity();
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    int64_t rows = std::min<int64_t>(g.columns, kMaxRows);
    while (rows > 0 && !k.spatial[vectors][rows]) --rows;
    if (rows == 0) continue;
    const int64_t count = ceil_div(g.columns, rows);
    rows = ceil_div(g.columns, count);
    const double visits = double(p.region.runs() * ceil_div(p.region.run, vectors * k.lanes));
    const double accumulators = double(work.row_phases * rows * p.region.run) * sizeof(T), spilled = accumulators > kFirstLevelBytes ? kSpilledVector : 0;
    const double tile = double(work.taps * g.channels) * step_cycles(rows, vectors, loads, lane_bytes) +
                        double(work.combos) * (kTileCall + double(rows * vectors) * (1 + spilled));
    if (visits * tile * double(count) < best) {
      best = visits * tile * double(count);
      p.vectors = vectors;
      p.columns_cut = count;
    }
  }
  const double spill = double(p.region.size) * sizeof(T) > 0.6 * double(cache_bytes()) ? 1.5 : 1.0;
  // Edge blocks hold fewer positions but run nearly as long: count whole blocks.
  const int64_t tasks = p.region.tasks(g);
  const double panels = panel_cycles(double(g.columns * g.channels * work.taps) * sizeof(T));
  p.cycles = parallel_cycles(double(tasks) * (best * spill + panels + transfer_cycles(g, work, p.region)), tasks, threads);
}

template <class T>
class SpatialRun {
 public:
  SpatialRun(const Gather& g, const SpatialPlan<T>& p, const std::vector<ColumnTile>& cut, const Panels& panels, const Kernels& kernels)
      : g_(g), p_(p), cut_(cut), panels_(panels), k_(tiles<T>(kernels)), region_(g, p.region, k_) {
    for (const PanelSet& set : panels.sets()) {
      std::vector<int64_t> offsets(size_t(set.phases.taps));
      for_each_tap(set.phases.members[0], [&](int64_t t, const Tap& d, const Tap& h, const Tap& w) { offsets[size_t(t)] = region_.tap_offset(d, h, w); });
      tap_offsets_.push_back(std::move(offsets));
    }
    row_phases_ = g.axis[2].phases.size();
    ldc_ = ceil_div(p.region.run, p.vectors * k_.lanes) * p.vectors * k_.lanes;
  }

  int64_t scratch_size() const { return odd_lines<T>(p_.region.size) + int64_t(row_phases_) * kMaxRows * ldc_ + slack(k_); }

  void run(int64_t task, T* scratch) const {
    const Block b = region_.block(task);
    T *region = scratch, *c = scratch + odd_lines<T>(p_.region.size);
    region_.pack(b, region);
    for (const ColumnTile& tile : cut_)
      for (size_t first = 0; first < panels_.sets().size(); first += row_phases_) {
        const Combo& combo = panels_.sets()[first].phases.members[0];
        for (int64_t run = 0; run < (p_.region.flat_depth ? 1 : b.size[0]); ++run) {
          for (size_t f = 0; f < row_phases_; ++f) multiply(b, first + f, tile, region + run * p_.region.depth_stride, c + int64_t(f) * tile.width * ldc_);
          region_.store(b, *combo[0], *combo[1], b.group * g_.columns + tile.begin, tile.count, run, c, ldc_, tile.width * ldc_);
        }
      }
  }

 private:
  // c[row][position] of one phase, for the positions of one run.
  void multiply(const Block& b, size_t set_index, const ColumnTile& tile, const T* region, T* c) const {
    const PanelSet& set = panels_.sets()[set_index];
    const auto kernel = k_.spatial[p_.vectors][tile.width];
    const int64_t run = region_.run_length(b);
    SpatialTile<T> job;
    job.tap_offset = tap_offsets_[set_index].data();
    job.taps = set.phases.taps;
    job.weight_offset = nullptr;
    job.weight_step = tile.width;
    job.channel_stride = p_.region.channel_stride;
    job.ldc = ldc_;
    for (int64_t channel = 0; channel < g_.channels; channel += panels_.chunk()) {
      job.weights = panels_.template at<T>(set, b.group, tile, channel);
      job.channels = std::min(panels_.chunk(), g_.channels - channel);
      job.accumulate = channel > 0;
      for (int64_t p = 0; p < run; p += p_.vectors * k_.lanes) {
        job.region = region + channel * p_.region.channel_stride + p;
        job.c = c + p;
        kernel(job);
      }
    }
  }

  const Gather& g_;
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
  std::vector<PanelSet> sets;
  for (const Phase& d : g.axis[0].phases)
    for (const Phase& h : g.axis[1].phases)
      for (const Phase& w : g.axis[2].phases) sets.push_back({{{{&d, &h, &w}}, int64_t(d.taps.size() * h.taps.size() * w.taps.size())}, cut, 0});
  Panels panels(g, std::move(sets), chunk);
  panels.fill<T>(options, kernels);
  const SpatialRun<T> run(g, *this, cut, panels, kernels);
  run_tasks<T>(region.tasks(g), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_spatial(const Gather& g, const PlanContext& context) {
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const Work work = work_of(g);
  return std::make_unique<SpatialPlan<T>>(best_blocks<T, SpatialPlan<T>>(g, k, [&](SpatialPlan<T>& p) { price<T>(p, g, work, k, context.threads); }));
}

template std::unique_ptr<Plan> plan_spatial<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_spatial<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
