// SPDX-License-Identifier: Apache-2.0
// One matrix product and a scatter: taps and channels out together are the columns of the product, source positions its other side, and the products of a
// tap are added to the targets that it reaches (col2im). A sample passes through the register tile once for all taps, so the tile stays full for few
// channels out and reads its samples from the first-level cache. A task walks the source planes of its targets in order: each is packed once, without
// halo along w, and only the targets that are still open are kept. Forward only.
#include "panels.h"
#include "region.h"

namespace tconv3d {

namespace {

// Channels packed and summed in one chain, in equal parts: 128 of a plane of rows fit the second-level cache. It fixes the bits.
int64_t equal_chunk(int64_t channels) {
  channels = std::max<int64_t>(channels, 1);  // none: only asked for its price
  return ceil_div(channels, ceil_div(channels, 128));
}

// A tap of an axis and the phase of the targets that it reaches.
struct PhaseTap {
  size_t phase;
  Tap tap;
};

std::vector<PhaseTap> taps_of(const AxisPlan& axis) {
  std::vector<PhaseTap> taps;
  for (size_t f = 0; f < axis.phases.size(); ++f)
    for (const Tap& tap : axis.phases[f].taps) taps.push_back({f, tap});
  std::sort(taps.begin(), taps.end(), [](const PhaseTap& a, const PhaseTap& b) { return a.tap.kernel < b.tap.kernel; });
  return taps;
}

// Source samples that targets j of a phase read lie from j + least to j + most.
struct Reach {
  int64_t least, most;
  int64_t extra() const { return most - least; }
};

Reach reach_of(const std::vector<Tap>& taps) {
  Reach r{taps[0].offset, taps[0].offset};
  for (const Tap& tap : taps) r = {std::min(r.least, tap.offset), std::max(r.most, tap.offset)};
  return r;
}

Reach reach_of(const AxisPlan& axis) {
  Reach all{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
  for (const Phase& phase : axis.phases) {
    if (phase.taps.empty()) continue;
    const Reach r = reach_of(phase.taps);
    all = {std::min(all.least, r.least), std::max(all.most, r.most)};
  }
  return all;
}

template <class T>
class Col2imPlan : public Plan {
 public:
  // Of a task: positions along d and h, and channels out.
  int64_t depth = 1, rows = 1, columns = 1;
  int64_t tiles = 1, vectors = 1;  // column tiles of a row of taps

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "col2im, taps and channels out as columns: blocks of " + by({depth, rows}) + " planes and rows and " + by({columns}) + " channels out; " +
           by({tiles}) + " column tiles of " + by({vectors}) + " vectors";
  }
};

// Sizes of a task's scratch, in elements.
template <class T>
struct Col2imLayout {
  RegionPlan source, target;  // a packed plane of a chunk of channels; a target plane
  int64_t ld_products, products, plane, slots;

  Col2imLayout(const Gather& g, const Col2imPlan<T>& p, const TileKernels<T>& k) {
    const int64_t width = g.axis[2].source_size;
    source.channels = equal_chunk(g.channels);
    source.block = {1, std::min(p.rows + reach_of(g.axis[1]).extra(), g.axis[1].source_size), width};
    for (AxisPacking& packing : source.packing) packing.segments = {{0, 0, 0}};
    source.pitch = source.row_stride = width;
    source.channel_stride = odd_lines<T>(source.block[1] * width);
    source.depth_stride = source.segment_stride = source.channels * source.channel_stride;
    source.size = source.segment_stride + slack(k);
    target.pitch = g.axis[2].positions;
    ld_products = ceil_div(p.rows * width, k.lanes) * k.lanes + p.vectors * k.lanes;
    products = p.columns * int64_t(taps_of(g.axis[2]).size()) * ld_products;
    plane = int64_t(g.axis[1].phases.size() * g.axis[2].phases.size()) * p.columns * p.rows * target.pitch;
    slots = 0;
    for (const Phase& phase : g.axis[0].phases) slots += slots_of(p, phase);
  }
  static int64_t slots_of(const Col2imPlan<T>& p, const Phase& phase) { return std::min(reach_of(phase.taps).extra() + 1, p.depth); }
  int64_t size() const { return odd_lines<T>(source.size) + products + slots * plane; }
};

template <class T>
void price(Col2imPlan<T>& p, const Gather& g, const TileKernels<T>& k, int threads) {
  const int64_t taps_w = int64_t(taps_of(g.axis[2]).size()), row_taps = int64_t(taps_of(g.axis[0]).size() * taps_of(g.axis[1]).size());
  const int64_t columns = p.columns * taps_w, width = g.axis[2].source_size, run = p.rows * width;
  const double chunks = double(ceil_div(g.channels, equal_chunk(g.channels))), loads = loads_per_vector<T>(k.lanes);
  double best = std::numeric_limits<double>::infinity();
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    int64_t rows = most_rows(k, vectors, columns);
    if (rows == 0) continue;
    const int64_t count = ceil_div(columns, rows);
    rows = ceil_div(columns, count);
    const double missed = missed_cycles(equal_chunk(g.channels), vectors, k.lanes * int64_t(sizeof(T)));
    const double cycles = double(count) * run_cycles(k, vectors, run, [&](int64_t held) {
                            return double(g.channels) * (step_cycles(rows, held, loads, 0) + missed) + chunks * (kTileCall + 2 * double(rows * held));
                          });
    if (cycles < best) {
      best = cycles;
      p.vectors = vectors;
      p.tiles = count;
    }
  }
  const Col2imLayout<T> layout(g, p, k);
  const double vectors_w = double(ceil_div(width, k.lanes)), phases_h = double(g.axis[1].phases.size()), phases_w = double(g.axis[2].phases.size());
  const double added = chunks * double(columns * p.rows) * (4 + 2 * vectors_w);
  const double planes = double(std::min(p.depth + reach_of(g.axis[0]).extra(), g.axis[0].source_size));
  const double packed = planes * double(g.channels) * (kPlaneCall + double(layout.source.block[1]) * (kRowCall + kPackedElement * double(width)));
  const double stored = double(p.depth) * double(g.axis[0].phases.size()) * phases_h *
                        (kStoreCall + double(p.columns) * (kPlaneCall + double(p.rows) * (kRowCall + 0.7 * phases_w * double(layout.target.pitch))));
  const double panels = planes * panel_cycles(double(columns * row_taps * g.channels) * sizeof(T));
  const int64_t tasks = g.batch * g.groups * ceil_div(g.columns, p.columns) * ceil_div(g.axis[0].positions, p.depth) * ceil_div(g.axis[1].positions, p.rows);
  const double task = double(p.depth * row_taps) * (best + added) + packed + stored + panels + kTaskCall;
  p.cycles = parallel_cycles(double(tasks) * task, tasks, threads);
}

template <class T>
class Col2imRun {
 public:
  Col2imRun(const Gather& g, const Col2imPlan<T>& p, const Kernels& kernels)
      : g_(g),
        p_(p),
        k_(tiles<T>(kernels)),
        layout_(g, p, k_),
        source_(g, layout_.source, k_),
        target_(g, layout_.target, k_),
        h_reach_(reach_of(g.axis[1])),
        taps_{taps_of(g.axis[0]), taps_of(g.axis[1]), taps_of(g.axis[2])} {
    for (size_t a = 0; a < 3; ++a)
      for (const PhaseTap& t : taps_[a]) alone_[a].push_back({0, 0, {t.tap}});
    int64_t slot = 0;
    for (const Phase& phase : g.axis[0].phases) {
      first_slot_.push_back(slot);
      slot += layout_.slots_of(p, phase);
    }
    pieces_ = ceil_div(g.columns, p.columns);
    const int64_t members = int64_t(taps_[2].size());
    for (int64_t i = 0; i < pieces_; ++i) {
      const int64_t begin = i * p.columns, count = std::min(p.columns, g.columns - begin);
      first_tile_.push_back(cut_.size());
      for (ColumnTile tile : cut_columns(count * members, p.tiles, 1)) {
        tile.begin = tile.start = tile.begin + begin * members;
        cut_.push_back(tile);
      }
    }
    first_tile_.push_back(cut_.size());
  }

  // For each tap of d and h a set: its columns are [channel out][tap of w].
  std::vector<PanelSet> sets() const {
    std::vector<PanelSet> sets;
    for (const Phase& d : alone_[0])
      for (const Phase& h : alone_[1]) {
        PhaseSet set{{}, 1, false};
        for (const Phase& w : alone_[2]) set.members.push_back({&d, &h, &w});
        sets.push_back(panel_set(std::move(set), cut_));
      }
    return sets;
  }

  int64_t tasks() const { return g_.batch * g_.groups * blocks(0) * blocks(1) * pieces_; }
  int64_t scratch_size() const { return layout_.size() + slack(k_); }

  void run(int64_t task, const Panels& panels, T* scratch) const {
    Task t;
    t.piece = size_t(task % pieces_);
    task /= pieces_;
    t.block.from = {task / blocks(1) % blocks(0) * p_.depth, task % blocks(1) * p_.rows, 0};
    t.block.size = {std::min(p_.depth, g_.axis[0].positions - t.block.from[0]), std::min(p_.rows, g_.axis[1].positions - t.block.from[1]),
                    g_.axis[2].positions};
    task /= blocks(0) * blocks(1);
    t.block.group = task % g_.groups;
    t.block.image = task / g_.groups;
    t.column = int64_t(t.piece) * p_.columns;
    t.columns = std::min(p_.columns, g_.columns - t.column);
    t.row = std::max<int64_t>(0, t.block.from[1] + h_reach_.least);
    t.packed = scratch;
    t.products = scratch + odd_lines<T>(layout_.source.size);
    t.sums = t.products + layout_.products;
    const Reach reach = reach_of(g_.axis[0]);
    for (int64_t plane = t.block.from[0] + reach.least; plane < t.block.from[0] + t.block.size[0] + reach.most; ++plane) {
      for_each_target(t, plane, [](const Reach& r) { return r.least; }, [&](size_t f, int64_t j) { std::fill_n(sums(t, f, j), layout_.plane, T(0)); });
      if (plane >= 0 && plane < g_.axis[0].source_size) add_plane(t, panels, plane);
      for_each_target(t, plane, [](const Reach& r) { return r.most; }, [&](size_t f, int64_t j) { store(t, f, j); });
    }
  }

 private:
  struct Task {
    Block block;
    size_t piece;             // of the channels out
    int64_t column, columns;  // its first one, and how many
    int64_t row;              // the first row packed
    T *packed, *products, *sums;
  };

  int64_t blocks(size_t a) const { return ceil_div(g_.axis[a].positions, a == 0 ? p_.depth : p_.rows); }

  // sums[phase h][phase w][column][row][position] of target j of a phase of d
  T* sums(const Task& t, size_t f, int64_t j) const {
    return t.sums + (first_slot_[f] + (j - t.block.from[0]) % layout_.slots_of(p_, g_.axis[0].phases[f])) * layout_.plane;
  }
  int64_t column_size() const { return p_.rows * layout_.target.pitch; }
  T* sums_of_row_phase(T* plane, size_t phase_h) const { return plane + int64_t(phase_h * g_.axis[2].phases.size()) * p_.columns * column_size(); }

  // f(phase, target) for the targets of the task whose first (or last) sample along d is `plane`.
  template <class Edge, class F>
  void for_each_target(const Task& t, int64_t plane, Edge edge, F f) const {
    for (size_t phase = 0; phase < g_.axis[0].phases.size(); ++phase) {
      const int64_t j = plane - edge(reach_of(g_.axis[0].phases[phase].taps));
      if (in_task(t, phase, j)) f(phase, j);
    }
  }
  bool in_task(const Task& t, size_t phase, int64_t j) const {
    return j >= t.block.from[0] && j < std::min(t.block.from[0] + t.block.size[0], g_.axis[0].phases[phase].count);
  }

  void add_plane(const Task& t, const Panels& panels, int64_t plane) const {
    const Block source{t.block.image, t.block.group, {plane, t.row, 0}, {1, layout_.source.block[1], g_.axis[2].source_size}};
    for (int64_t channel = 0; channel < g_.channels; channel += layout_.source.channels) {
      source_.pack(source, channel, t.packed);
      for (size_t h = 0; h < taps_[1].size(); ++h) {
        const auto& [phase_h, tap_h] = taps_[1][h];
        // The task's targets that this tap serves.
        const int64_t begin = std::max(t.block.from[1], -tap_h.offset),
                      end = std::min({t.block.from[1] + t.block.size[1], g_.axis[1].phases[phase_h].count, g_.axis[1].source_size - tap_h.offset});
        if (begin >= end) continue;
        for (size_t d = 0; d < taps_[0].size(); ++d) {
          const int64_t j = plane - taps_[0][d].tap.offset;
          if (!in_task(t, taps_[0][d].phase, j)) continue;
          multiply(t, panels, panels.sets()[d * taps_[1].size() + h], channel, t.packed + (begin + tap_h.offset - t.row) * layout_.source.pitch,
                   (end - begin) * layout_.source.pitch);
          add(t, begin, end - begin, sums_of_row_phase(sums(t, taps_[0][d].phase, j), phase_h));
        }
      }
    }
  }

  // products[column][position] of a row of taps. Positions outermost: their samples stay in the first-level cache while panel after panel passes.
  void multiply(const Task& t, const Panels& panels, const PanelSet& set, int64_t channel, const T* samples, int64_t run) const {
    constexpr int64_t kNoOffset = 0;
    SpatialTile<T> job;
    job.weight_offset = nullptr;
    job.tap_offset = &kNoOffset;
    job.taps = 1;
    job.channels = std::min(layout_.source.channels, g_.channels - channel);
    job.channel_stride = layout_.source.channel_stride;
    job.ldc = layout_.ld_products;
    job.accumulate = false;
    const ColumnTile *const first = cut_.data() + first_tile_[t.piece], *const end = cut_.data() + first_tile_[t.piece + 1];
    const T* const panel = panels.template at<T>(set, t.block.group, *first, 0);
    for_each_tile(k_, p_.vectors, run, [&](int64_t position, int64_t vectors) {
      job.region = samples + position;
      job.c = t.products + position;
      for (const ColumnTile* tile = first; tile != end; ++tile) {
        job.weights = panel + (tile->start - first->start) * g_.channels + tile->width * channel;
        job.weight_step = tile->width;
        k_.spatial[vectors][tile->width](job);
        job.c += tile->width * job.ldc;
      }
    });
  }

  // Adds the products of a row of taps to `rows` rows of targets from `row` on.
  void add(const Task& t, int64_t row, int64_t rows, T* to) const {
    const int64_t members = int64_t(taps_[2].size());
    for (int64_t i = 0; i < members; ++i) {
      const auto& [phase, tap] = taps_[2][size_t(i)];
      const int64_t begin = std::max<int64_t>(0, -tap.offset), end = std::min(g_.axis[2].phases[phase].count, g_.axis[2].source_size - tap.offset);
      if (begin >= end) continue;
      RowsAdd<T> job{to + int64_t(phase) * p_.columns * column_size() + (row - t.block.from[1]) * layout_.target.pitch + begin,
                     column_size(),
                     layout_.target.pitch,
                     t.products + i * layout_.ld_products + begin + tap.offset,
                     members * layout_.ld_products,
                     layout_.source.pitch,
                     t.columns,
                     rows,
                     end - begin};
      if (job.n == job.dst_pitch && job.n == job.src_pitch) job.n *= std::exchange(job.rows, 1);  // one behind the other
      k_.add_rows(job);
    }
  }

  void store(const Task& t, size_t f, int64_t j) const {
    const Block b{t.block.image, t.block.group, {j, t.block.from[1], 0}, {1, t.block.size[1], t.block.size[2]}};
    for (size_t h = 0; h < g_.axis[1].phases.size(); ++h)
      target_.store(b, g_.axis[0].phases[f], g_.axis[1].phases[h], t.block.group * g_.columns + t.column, t.columns, 0, sums_of_row_phase(sums(t, f, j), h),
                    column_size(), p_.columns * column_size());
  }

  const Gather& g_;
  const Col2imPlan<T>& p_;
  const TileKernels<T>& k_;
  const Col2imLayout<T> layout_;
  const Region<T> source_, target_;
  const Reach h_reach_;
  const std::array<std::vector<PhaseTap>, 3> taps_;
  std::array<std::vector<Phase>, 3> alone_;  // a phase of its own for each tap
  std::vector<int64_t> first_slot_;          // of each phase of d
  std::vector<ColumnTile> cut_;
  std::vector<size_t> first_tile_;  // of each piece, and the end
  int64_t pieces_;
};

template <class T>
void Col2imPlan<T>::run(const Gather& g, const Options& options, const Kernels& kernels, int64_t) const {
  const Col2imRun<T> run(g, *this, kernels);
  Panels panels(g, run.sets(), equal_chunk(g.channels));
  panels.fill<T>(options, kernels);
  run_tasks<T>(run.tasks(), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, panels, scratch); });
}

}  // namespace

bool col2im_applies(const Problem& p) {
  // Taps far apart would keep many planes open.
  constexpr int64_t kMostReach = 16;
  return std::all_of(p.axis.begin(), p.axis.end(), [](const Axis& a) { return ceil_div((a.kernel - 1) * a.dilation, a.stride) <= kMostReach; });
}

// Like the choice of the two-tap method (method_cycles in cost.h), by the layer, the size of the image and the instruction set alone.
bool col2im_pays(const Gather& g, int64_t lanes) {
  const Col2imPrices& price = kCol2imPrices;
  const double taps = double(work_of(g).taps);
  if (taps == 0 || g.columns == 0) return false;
  double samples = 1, targets = 1;
  for (const AxisPlan& a : g.axis) {
    samples *= double(a.source_size);
    targets *= double(a.target_size);
  }
  // Rows are not cut, so a task holds whole ones, and threads need several.
  constexpr int64_t kMostSamples = 1 << 16, kLeastRows = 8;
  if (double(equal_chunk(g.channels)) * double(g.axis[2].source_size) > kMostSamples) return false;
  if (double(g.axis[0].source_size) * double(g.axis[1].source_size) < kLeastRows) return false;
  // Without overlap all columns of all taps share their samples, and the direct method fills its tiles from them: 768 to 1 channels, k16 s16, 0.8.
  constexpr double kMostColumnsApart = 512;
  const bool apart = std::all_of(g.axis.begin(), g.axis.end(), [](const AxisPlan& a) {
    return std::all_of(a.phases.begin(), a.phases.end(), [](const Phase& phase) { return phase.taps.size() <= 1; });
  });
  if (apart && taps * double(g.columns) > kMostColumnsApart) return false;
  const double channels = double(g.channels), columns = double(g.columns), planes = double(g.axis[0].source_size);
  const double vectors = planes * double(g.axis[1].source_size * ceil_div(g.axis[2].source_size, lanes));
  const double multiply = 0.5 * taps * channels * columns * samples / double(lanes), store = price.stored * targets * columns;
  const double added = price.added * taps * columns * vectors * double(ceil_div(g.channels, equal_chunk(g.channels)));
  const double col2im = multiply + added + price.packed * channels * samples + price.panels * taps * columns * channels * planes + store;
  // Columns that share their samples: of all taps where targets do not overlap.
  const double together = apart ? taps * columns : columns, rows = std::min(together, std::max(columns, double(kMaxRows)));
  const double few = price.few * std::min(1.0, channels / price.few_channels) / (rows + 0.7);
  const double missed = std::min(std::ceil(together / double(lanes)) * double(lanes) / together - 1, price.missed * channels);
  const double direct = multiply * (price.dense + few + missed) + store;
  return direct > price.gain * col2im;
}

template <class T>
std::unique_ptr<Plan> plan_col2im(const Gather& g, const PlanContext& context) {
  const TileKernels<T>& k = tiles<T>(context.kernels);
  auto best = std::make_unique<Col2imPlan<T>>();
  const auto sizes = block_sizes(g, k.lanes);
  for (int64_t columns = g.columns; columns > 0; columns /= 2)
    for (int64_t rows : sizes[1])
      for (int64_t depth : sizes[0]) {
        Col2imPlan<T> p;
        p.depth = depth;
        p.rows = rows;
        p.columns = columns;
        const bool smallest = rows == sizes[1].back() && depth == sizes[0].back() && p.columns == 1;
        if (!smallest && double(Col2imLayout<T>(g, p, k).size()) * sizeof(T) > double(cache_bytes())) continue;
        price<T>(p, g, k, context.threads);
        if (p.cycles < best->cycles) *best = p;
      }
  return best;
}

template std::unique_ptr<Plan> plan_col2im<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_col2im<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
