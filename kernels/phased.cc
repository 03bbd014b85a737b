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
  bool whole_rows = false;    // tiles along a row, stored from the registers

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, positions on the lanes, phases on the rows: " + region.describe() + "; tiles of " + by({2 * phases_h * columns, vectors}) + " vectors" +
           (whole_rows ? ", stored as rows" : "");
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
  const int64_t lane_bytes = second_level_bytes(p.region, k);
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

// Rows are stored from the registers where they are whole and all channels are summed in one chunk.
bool stores_rows(const RegionPlan& r, const Gather& g, const PlanContext& context) {
  const bool channels_last = context.target_is_rows && g.groups * g.columns > 1;
  return !channels_last && !r.flat_depth && !r.taps_apart && r.block[2] == g.axis[2].positions && g.channels <= context.chunk;
}

// All rows of a block, stored. A tile does not wait for the one before: no latency.
template <class T>
double rows_cycles(const PhasedPlan<T>& p, const Gather& g, const TileKernels<T>& k, int64_t vectors) {
  const double loads = loads_per_vector<T>(k.lanes);
  const int64_t lane_bytes = second_level_bytes(p.region, k);
  const double tiles = double(ceil_div(p.region.block[2], vectors * k.lanes));
  double row = 0, calls = 0;  // through all phases
  for (const Phase& d : g.axis[0].phases)
    for (const auto& h : h_groups(g, p.phases_h)) {
      calls += kStoreCall;
      row += tiles * (kTileCall + kRowVector * double(2 * p.phases_h * vectors));
      if (g.axis[1].target_step != p.phases_h) row += kRowEnd;
      for_each_step(d, h, g.axis[2].phases, [&](const Tap&, size_t, size_t, int rows_h, int rows_w) {
        row += tiles * double(g.channels) * step_cycles(rows_h * rows_w, vectors, loads, lane_bytes, 0);
      });
    }
  return double(g.columns * p.region.block[0]) * (double(p.region.block[1]) * row + calls);
}

template <class T>
void price(PhasedPlan<T>& p, const Gather& g, const Work& work, const TileKernels<T>& k, const PlanContext& context) {
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
  best += transfer_cycles(g, work, p.region);
  const bool rows = stores_rows(p.region, g, context);
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    if (!rows || !k.phased_rows[p.phases_h][vectors]) continue;
    const double cycles = rows_cycles<T>(p, g, k, vectors) + packing_cycles(g, p.region);
    if (cycles < best) {
      best = cycles;
      p.whole_rows = true;
      p.columns = 1;
      p.vectors = vectors;
    }
  }
  const int64_t tasks = p.region.tasks(g);
  const double panels = panel_cycles(double(g.columns * g.channels * work.taps) * sizeof(T));
  p.cycles = parallel_cycles(double(tasks) * (best + panels), tasks, context.threads);
}

// One tile's phases: of d, and of h together.
template <class T>
struct PhaseGroup {
  const Phase* d;
  std::vector<const Phase*> h;
  std::vector<PhasedStep> steps;
  std::vector<int64_t> kernel, column;  // [step][row h][row w][column]: offsets of the tap's weight, and of the column's
  int64_t rows, first_row;              // rows of all its steps, and of the groups before it
};

template <class T>
class PhasedRun {
 public:
  PhasedRun(const Gather& g, const PhasedPlan<T>& p, int64_t chunk, const Kernels& kernels)
      : g_(g), p_(p), chunk_(chunk), k_(tiles<T>(kernels)), region_(g, p.region, k_) {
    whole_rows_ = p.whole_rows && g.target.stride[4] == 1;
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
    if (whole_rows_) {
      for (int64_t column = 0; column < g_.columns; ++column)
        for (int64_t run = 0; run < b.size[0]; ++run)
          for (const PhaseGroup<T>& group : groups_) form_rows(b, group, column, run, region + run * p_.region.depth_stride);
      return;
    }
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
    PhaseGroup<T> group{&d, std::move(h), {}, {}, {}, 0, rows_};
    const std::vector<Phase>& w = g_.axis[2].phases;
    for_each_step(d, group.h, w, [&](const Tap& td, size_t th, size_t tw, int rows_h, int rows_w) {
      group.steps.push_back({region_.tap_offset(td, group.h[0]->taps[th], w[0].taps[tw]), rows_h, rows_w});
      group.rows += rows_h * rows_w;
      for (int fh = 0; fh < rows_h; ++fh)
        for (int fw = 0; fw < rows_w; ++fw)
          for (int64_t m = 0; m < p_.columns; ++m) {
            group.kernel.push_back(kernel_element(g_, td, group.h[size_t(fh)]->taps[th], w[size_t(fw)].taps[tw]));
            group.column.push_back(m * g_.weight_column);
          }
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
        WeightPack<T> job;
        job.dst = to + panel(group, tile, phases, channel);
        job.src = g_.weight.at(group * g_.weight_group + channel * g_.weight_channel + tile * p_.columns * g_.weight_column);
        job.channel_stride = g_.weight_channel;
        job.channels = std::min(chunk_, g_.channels - channel);
        job.taps = 1;
        job.tap_offset = phases.kernel.data();
        job.column_offset = phases.column.data();
        const auto pack = [&](int64_t rows) {
          job.columns = job.width = rows * p_.columns;
          k.pack_weights(job, g_.weight.dtype);
          job.dst += job.channels * job.width;
          job.tap_offset += job.width;
          job.column_offset += job.width;
        };
        if (job.channels == 1)  // the rows of all steps lie one behind the other
          pack(phases.rows);
        else
          for (const PhasedStep& step : phases.steps) pack(step.rows_h * step.rows_w);
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

  // Do the rows of a plane lie one behind the other in the target, and are stored so?
  bool rows_follow() const {
    const AxisPlan& h = g_.axis[1];
    return g_.target.stride[3] == g_.axis[2].target_size && h.target_step == p_.phases_h;
  }
  // And those of all planes of a block?
  bool planes_follow() const {
    return rows_follow() && g_.target.stride[2] == g_.target.stride[3] * g_.axis[1].target_size && p_.region.blocks[1] == 1 && g_.axis[0].covered &&
           g_.axis[1].covered;
  }

  // The rows of one plane of positions, stored.
  void form_rows(const Block& b, const PhaseGroup<T>& group, int64_t column, int64_t run, const T* region) const {
    const View& target = g_.target;
    const AxisPlan &ad = g_.axis[0], &ah = g_.axis[1], &aw = g_.axis[2];
    const int64_t jd = b.from[0] + run, channel = b.group * g_.columns + column;
    if (jd < group.d->begin || jd >= group.d->count) return;
    PhasedRows<T> job;
    job.weights = reinterpret_cast<const T*>(panels_->data()) + panel(b.group, column, group, 0);
    job.region = region;
    job.steps = group.steps.data();
    job.step_count = int64_t(group.steps.size());
    job.channels = g_.channels;
    job.channel_stride = p_.region.channel_stride;
    job.region_stride = p_.region.row_stride;
    job.rows = b.size[1];
    job.tiles = ceil_div(aw.positions, p_.vectors * k_.lanes);
    job.out = target.data;
    const int64_t image = b.image * target.stride[0] + channel * target.stride[1];
    const int64_t plane = image + (group.d->first + jd * ad.target_step) * target.stride[2];
    job.first = plane + (group.h[0]->first + b.from[1] * ah.target_step) * target.stride[3] + aw.phases[0].first;
    job.row_stride = ah.target_step * target.stride[3];
    job.phase_stride = target.stride[3];
    job.lead = -aw.phases[0].first;
    job.width = aw.target_size;
    job.rows_follow = rows_follow();
    job.last = planes_follow() ? image + std::min((b.from[0] + b.size[0]) * ad.target_step, ad.target_size) * target.stride[2]
                               : plane + std::min(group.h[0]->first + (b.from[1] + b.size[1]) * ah.target_step, ah.target_size) * target.stride[3];
    for (size_t f = 0; f < group.h.size(); ++f) {
      job.begin[f] = std::max<int64_t>(0, group.h[f]->begin - b.from[1]);
      job.end[f] = std::min(b.size[1], group.h[f]->count - b.from[1]);
    }
    job.bias = 0;
    if (g_.bias) k_.load_run(&job.bias, 1, g_.bias->at(channel * g_.bias->stride[0]), 1, 1, g_.bias->dtype);
    job.stream = region_.past_cache() && job.lead == 0;
    k_.phased_rows[p_.phases_h][p_.vectors](job, target.dtype);
  }

  const Gather& g_;
  const PhasedPlan<T>& p_;
  const int64_t chunk_;
  const TileKernels<T>& k_;
  const Region<T> region_;
  std::vector<PhaseGroup<T>> groups_;
  int64_t rows_ = 0, ldc_;
  bool whole_rows_;
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
      price<T>(q, g, work, k, context);
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
