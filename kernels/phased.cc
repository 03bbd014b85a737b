// SPDX-License-Identifier: Apache-2.0
// Positions on the vector lanes, phases on the rows: for one or two columns (channels out per group), where a tile of columns alone would load a
// vector for every multiply-add or two. Forward only, stride 2 and no dilation along w (and h).
#include "panels.h"
#include "region.h"

namespace tconv3d {

namespace {

template <class T>
class PhasedPlan : public Plan {
 public:
  std::array<AxisPlan, 3> axis;
  RegionPlan region;
  int64_t phases_h = 1, columns = 1, vectors = 1;
  int64_t tiles_at_once = 1;  // column tiles that one pass over the positions serves

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, positions on the lanes, phases on the rows: " + region.describe() + "; tiles of " + by({2 * phases_h * columns, vectors}) + " vectors";
  }
};

bool aligns(const Axis& a) { return a.stride == 2 && a.dilation == 1 && a.kernel >= 2; }

// The axes with w (and h) cut into phases that share their samples.
std::array<AxisPlan, 3> aligned(const Problem& p, const Gather& g, int64_t phases_h) {
  return {g.axis[0], phases_h == 2 ? aligned_forward_axis(p.axis[1]) : g.axis[1], aligned_forward_axis(p.axis[2])};
}

// Steps of one phase of d (and, with phases_h == 1, of h): taps ascending, channels inside. f(d tap, h taps of the first phase, ...) gives
// each step's taps: the first phases reach it, `rows_h` x `rows_w` of them.
template <class F>
void for_each_step(const Phase& d, const std::vector<const Phase*>& h, const std::vector<Phase>& w, F f) {
  for (const Tap& td : d.taps)
    for (size_t th = 0; th < h[0]->taps.size(); ++th)
      for (size_t tw = 0; tw < w[0].taps.size(); ++tw) {
        int rows_h = 0, rows_w = 0;
        for (const Phase* p : h) rows_h += th < p->taps.size();
        for (const Phase& p : w) rows_w += tw < p.taps.size();
        f(td, th, tw, rows_h, rows_w);
      }
}

// The h phases that one tile holds: all of them, or each alone.
std::vector<std::vector<const Phase*>> h_groups(const Gather& g, int64_t phases_h) {
  std::vector<std::vector<const Phase*>> groups;
  for (const Phase& h : g.axis[1].phases) {
    if (groups.empty() || phases_h == 1) groups.emplace_back();
    groups.back().push_back(&h);
  }
  return groups;
}

// One tile of so many vectors through all phases.
template <class T>
double tile_cycles(const PhasedPlan<T>& p, const Gather& g, const TileKernels<T>& k, int64_t columns, int64_t vectors) {
  const double loads = loads_per_vector<T>(k.lanes);
  // A small region stays in the first-level cache.
  const int64_t lane_bytes = double(p.region.size) * sizeof(T) < kFirstLevelBytes ? 0 : k.lanes * int64_t(sizeof(T));
  const double accumulators = double(p.phases_h * 2 * columns * p.region.run) * sizeof(T), spilled = accumulators > kFirstLevelBytes ? kSpilledVector : 0;
  const double missed = g.columns > columns ? missed_cycles(g.channels, vectors, lane_bytes) : 0;
  double cycles = 0;
  for (const Phase& d : g.axis[0].phases)
    for (const auto& h : h_groups(g, p.phases_h)) {
      cycles += kTileCall + double(vectors * columns * p.phases_h * 2) * (1 + spilled);
      for_each_step(d, h, g.axis[2].phases, [&](const Tap&, size_t, size_t, int rows_h, int rows_w) {
        cycles += double(g.channels) * (step_cycles(rows_h * rows_w * columns, vectors, loads, lane_bytes) + missed);
      });
    }
  return cycles;
}

template <class T>
void price(PhasedPlan<T>& p, const Gather& g, const Work& work, const TileKernels<T>& k, int threads) {
  double best = std::numeric_limits<double>::infinity();
  for (int64_t columns = 1; columns <= 2 && g.columns % columns == 0; ++columns)
    for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
      if (!k.phased[p.phases_h][columns][vectors]) continue;
      const double run = run_cycles(k, vectors, p.region.run, [&](int64_t held) { return tile_cycles<T>(p, g, k, columns, held); });
      const double cycles = run * double(p.region.runs() * (g.columns / columns));
      if (cycles < best) {
        best = cycles;
        p.columns = columns;
        p.vectors = vectors;
        p.tiles_at_once = tiles_within(kSumsShare, double(p.phases_h * 2 * columns * p.region.run) * sizeof(T), g.columns / columns);
      }
    }
  const int64_t tasks = p.region.tasks(g);
  const double panels = panel_cycles(double(g.columns * g.channels * work.taps) * sizeof(T));
  p.cycles = parallel_cycles(double(tasks) * (best + panels + transfer_cycles(g, work, p.region)), tasks, threads);
}

// One tile's phases: of d, and of h together.
template <class T>
struct PhaseGroup {
  const Phase* d;
  std::vector<const Phase*> h;
  std::vector<PhasedStep> steps;
  std::vector<int64_t> kernel;  // [step][row h][row w]: offset of the tap's weight
  int64_t rows, first_row;      // rows of all its steps, and of the groups before it
};

template <class T>
class PhasedRun {
 public:
  PhasedRun(const Gather& g, const PhasedPlan<T>& p, int64_t chunk, const Kernels& kernels)
      : g_(g), p_(p), chunk_(chunk), k_(tiles<T>(kernels)), region_(g, p.region, k_) {
    ldc_ = ceil_div(p.region.run, p.vectors * k_.lanes) * p.vectors * k_.lanes;
    for (const Phase& d : g.axis[0].phases)
      for (auto& h : h_groups(g, p.phases_h)) add_group(d, std::move(h));
  }

  void pack_weights(const Options& options, const Kernels& kernels) {
    PackedPanels::Key key{-3, int64_t(sizeof(T)), p_.phases_h, p_.columns, g_.groups, g_.channels, g_.columns, chunk_};
    for (const PhaseGroup<T>& group : groups_) {
      key.push_back(-1);
      for (const PhasedStep& step : group.steps) key.insert(key.end(), {step.rows_h, step.rows_w});
      key.insert(key.end(), group.kernel.begin(), group.kernel.end());
    }
    const int64_t size = g_.groups * g_.columns * g_.channels * rows_;
    panels_ = packed_once(options, key, size_t(size) * sizeof(T), [&](char* to) {
      const int64_t tiles_per_group = g_.columns / p_.columns;
      parallel_for(
          g_.groups * tiles_per_group, size < 65536 ? 1 : options.threads,
          [&](int64_t task, int) { pack_tile(reinterpret_cast<T*>(to), task / tiles_per_group, task % tiles_per_group, tiles<T>(kernels)); }, options.stop);
    });
  }

  int64_t scratch_size() const { return odd_lines<T>(p_.region.size) + p_.phases_h * 2 * p_.tiles_at_once * p_.columns * ldc_ + slack(k_); }

  void run(int64_t task, T* scratch) const {
    const Block b = region_.block(task);
    T *region = scratch, *c = scratch + odd_lines<T>(p_.region.size);
    region_.pack(b, 0, region);
    const int64_t tiles = g_.columns / p_.columns;
    for (int64_t tile = 0; tile < tiles; tile += p_.tiles_at_once) {
      const int64_t last = std::min(tile + p_.tiles_at_once, tiles), columns = (last - tile) * p_.columns;
      for (const PhaseGroup<T>& group : groups_)
        for (int64_t run = 0; run < (p_.region.flat_depth ? 1 : b.size[0]); ++run) {
          multiply(b, group, tile, last, region + run * p_.region.depth_stride, c);
          for (size_t h = 0; h < group.h.size(); ++h)
            region_.store(b, *group.d, *group.h[h], b.group * g_.columns + tile * p_.columns, columns, run, c + int64_t(h) * 2 * columns * ldc_, ldc_,
                          columns * ldc_);
        }
    }
  }

 private:
  void add_group(const Phase& d, std::vector<const Phase*> h) {
    PhaseGroup<T> group{&d, std::move(h), {}, {}, 0, rows_};
    const std::vector<Phase>& w = g_.axis[2].phases;
    for_each_step(d, group.h, w, [&](const Tap& td, size_t th, size_t tw, int rows_h, int rows_w) {
      group.steps.push_back({region_.tap_offset(td, group.h[0]->taps[th], w[0].taps[tw]), rows_h, rows_w});
      group.rows += rows_h * rows_w;
      for (int fh = 0; fh < rows_h; ++fh)
        for (int fw = 0; fw < rows_w; ++fw)
          group.kernel.push_back(td.kernel * g_.weight_tap[0] + group.h[size_t(fh)]->taps[th].kernel * g_.weight_tap[1] +
                                 w[size_t(fw)].taps[tw].kernel * g_.weight_tap[2]);
    });
    rows_ += group.rows;
    groups_.push_back(std::move(group));
  }

  // panels = [group of channels][tile][phase group][chunk][step][channel][row h][row w][column]
  int64_t panel(int64_t group, int64_t tile, const PhaseGroup<T>& phases, int64_t channel) const {
    return ((group * (g_.columns / p_.columns) + tile) * rows_ * g_.channels + phases.first_row * g_.channels + phases.rows * channel) * p_.columns;
  }

  void pack_tile(T* to, int64_t group, int64_t tile, const TileKernels<T>& k) const {
    for (const PhaseGroup<T>& phases : groups_)
      for (int64_t channel = 0; channel < g_.channels; channel += chunk_) {
        const int64_t channels = std::min(chunk_, g_.channels - channel);
        T* dst = to + panel(group, tile, phases, channel);
        size_t kernel = 0;
        for (const PhasedStep& step : phases.steps) {
          const int64_t rows = step.rows_h * step.rows_w;
          std::vector<int64_t> column_offset, tap_offset;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t m = 0; m < p_.columns; ++m) {
              column_offset.push_back((tile * p_.columns + m) * g_.weight_column);
              tap_offset.push_back(phases.kernel[kernel + size_t(r)]);
            }
          kernel += size_t(rows);
          const WeightPack<T> job{dst,
                                  g_.weight.at(group * g_.weight_group + channel * g_.weight_channel),
                                  g_.weight_channel,
                                  channels,
                                  column_offset.data(),
                                  tap_offset.data(),
                                  1,
                                  rows * p_.columns,
                                  rows * p_.columns};
          k.pack_weights(job, g_.weight.dtype);
          dst += channels * rows * p_.columns;
        }
      }
  }

  // c[phase h][phase w][column][position] of column tiles `first` to `last`. Positions outermost: their samples stay in the first-level cache while
  // panel after panel passes.
  void multiply(const Block& b, const PhaseGroup<T>& group, int64_t first, int64_t last, const T* region, T* c) const {
    const T* panels = reinterpret_cast<const T*>(panels_->data());
    PhasedTile<T> job;
    job.steps = group.steps.data();
    job.step_count = int64_t(group.steps.size());
    job.channel_stride = p_.region.channel_stride;
    job.ldc = ldc_;
    job.phase_stride = (last - first) * p_.columns * ldc_;
    for (int64_t channel = 0; channel < g_.channels; channel += chunk_) {
      job.channels = std::min(chunk_, g_.channels - channel);
      job.accumulate = channel > 0;
      for_each_tile(k_, p_.vectors, region_.run_length(b), [&](int64_t position, int64_t vectors) {
        job.region = region + channel * p_.region.channel_stride + position;
        job.weights = panels + panel(b.group, first, group, channel);
        job.c = c + position;
        for (int64_t tile = first; tile < last; ++tile) {
          k_.phased[p_.phases_h][p_.columns][vectors](job);
          job.weights += rows_ * g_.channels * p_.columns;
          job.c += p_.columns * ldc_;
        }
      });
    }
  }

  const Gather& g_;
  const PhasedPlan<T>& p_;
  const int64_t chunk_;
  const TileKernels<T>& k_;
  const Region<T> region_;
  std::vector<PhaseGroup<T>> groups_;
  int64_t rows_ = 0, ldc_;
  std::shared_ptr<Scratch> panels_;
};

template <class T>
void PhasedPlan<T>::run(const Gather& plain, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const Gather g = with_axes(plain, axis);
  PhasedRun<T> run(g, *this, chunk, kernels);
  run.pack_weights(options, kernels);
  run_tasks<T>(region.tasks(g), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_phased(const Problem& problem, const Gather& plain, const PlanContext& context) {
  auto best = std::make_unique<PhasedPlan<T>>();
  if (!aligns(problem.axis[2])) return best;
  // Channels last are stored by transpositions, a tile's columns at a time: two took 116 ms where eight took 75 (nnunet_64_32_64).
  if (context.target_is_rows && (plain.columns > 2 || plain.groups > 1)) return best;
  const TileKernels<T>& k = tiles<T>(context.kernels);
  for (int64_t phases_h = 1; phases_h <= 1 + aligns(problem.axis[1]); ++phases_h) {
    std::array<AxisPlan, 3> axis = aligned(problem, plain, phases_h);
    const Gather g = with_axes(plain, axis);
    const Work work = work_of(g);
    auto p = best_blocks<T, PhasedPlan<T>>(g, g.channels, k, [&](PhasedPlan<T>& q) {
      q.phases_h = phases_h;
      price<T>(q, g, work, k, context.threads);
    });
    if (p.cycles < best->cycles) {
      *best = std::move(p);
      best->axis = std::move(axis);
    }
  }
  return best;
}

template std::unique_ptr<Plan> plan_phased<float>(const Problem&, const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_phased<double>(const Problem&, const Gather&, const PlanContext&);

}  // namespace tconv3d
