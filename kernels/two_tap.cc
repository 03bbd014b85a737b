// SPDX-License-Identifier: Apache-2.0
// The two-tap method (two_tap_axis.h) on any of the axes, nested: k4 s2 takes 27 products where the direct method takes 64, k3 s2 125 for 216,
// k3 s1 64 for 216. A task transforms the samples of a block of positions, runs the register tile of the spatial family over every product, adds the
// shared products to the targets that they serve, and stores rows as the spatial family does.
#include <cmath>

#include "two_tap_region.h"

namespace tconv3d {

namespace {

template <class T>
class TwoTapPlan : public Plan {
 public:
  TransformedAxes axes;
  std::array<AxisPlan, 3> targets;
  RegionPlan region;
  int64_t vectors = 1, columns_cut = 1, tiles_at_once = 1;

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "two-tap along " + paired_axes(axes) + ": " + region.describe() + "; " + by({columns_cut}) + " column tiles of " + by({vectors}) + " vectors, " +
           by({tiles_at_once}) + " at once";
  }
};

// What one call of the method runs and moves, for one image, group and position.
struct Volume {
  double terms = 1;     // products times their terms, all phases
  double products = 1;  // accumulators written
  double kinds = 1;     // transformed samples
  double sums = 1;      // packed weights for one channel and column
};

// Of all products of an axis.
double terms_of(const TransformedAxis& axis) {
  double terms = 0;
  for (const Product& p : axis.products) terms += double(p.terms.size());
  return terms;
}

double products_with_terms(const TransformedAxis& axis) {
  return double(std::count_if(axis.products.begin(), axis.products.end(), [](const Product& p) { return !p.terms.empty(); }));
}

Volume volume_of(const TransformedAxes& axes) {
  Volume v;
  for (const TransformedAxis& axis : axes) {
    v.terms *= terms_of(axis);
    v.products *= double(axis.products.size());
    v.kinds *= double(axis.kinds.size());
    v.sums *= double(axis.terms());
  }
  return v;
}

// Products whose accumulators are kept at once: those of a phase of d and h, and all along w.
int64_t products_at_once(const TransformedAxes& axes) {
  int64_t products = int64_t(axes[2].products.size());
  for (size_t a = 0; a < 2; ++a) {
    size_t most = 0;
    for (const auto& phase : axes[a].phases) most = std::max(most, phase.size());
    products *= int64_t(most);
  }
  return products;
}

// Accumulators that one pass over the transformed samples fills: half of the cache, the samples have the rest.
template <class T>
int64_t tiles_at_once(const TwoTapPlan<T>& p, int64_t rows) {
  return tiles_within(0.5, double(products_at_once(p.axes) * rows * p.region.run) * sizeof(T), p.columns_cut);
}

// Picks vectors and the number of column tiles for a block, and adds up its cycles.
template <class T>
void price(TwoTapPlan<T>& p, const Gather& g, const TileKernels<T>& k, int threads) {
  const Volume v = volume_of(p.axes);
  const double loads = loads_per_vector<T>(k.lanes), run = double(p.region.run);
  double best = std::numeric_limits<double>::infinity();
  int64_t best_rows = 1;
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    int64_t rows = most_rows(k, vectors, g.columns);
    if (rows == 0) continue;
    const int64_t count = ceil_div(g.columns, rows);
    rows = ceil_div(g.columns, count);
    const double cycles = double(count) * run_cycles(k, vectors, p.region.run, [&](int64_t held) {
                            return v.terms * double(g.channels) * step_cycles(rows, held, loads, k.lanes * int64_t(sizeof(T))) +
                                   v.products * (kTileCall + double(rows * held) * 1.5);
                          });
    if (cycles < best) {
      best = cycles;
      best_rows = rows;
      p.vectors = vectors;
      p.columns_cut = count;
    }
  }
  p.tiles_at_once = tiles_at_once(p, best_rows);
  const double vector_bytes = double(k.lanes) * sizeof(T);
  const double samples = v.kinds * double(g.channels) * run * sizeof(T);
  const double transform = samples / vector_bytes * kTransformedVector, sums = v.products * double(g.columns) * run * sizeof(T) / vector_bytes * kSharedVector;
  const double panels = panel_cycles(double(g.columns * g.channels) * v.sums * sizeof(T));
  // Samples that outgrow the cache are read anew for every pass over the columns.
  const double spill = samples > 0.7 * double(cache_bytes()) ? samples / 12 * double(ceil_div(p.columns_cut, p.tiles_at_once)) : 0;
  const int64_t tasks = p.region.tasks(g);
  const double rows_stored = double(p.region.block[0] * p.region.block[1] * g.columns) * double(p.targets[0].phases.size() * p.targets[1].phases.size());
  const double store = rows_stored * (kRowCall + kPackedElement * double(p.region.block[2]) * double(p.targets[2].phases.size()));
  p.cycles = parallel_cycles(double(tasks) * (best + transform + sums + panels + spill + store + kTaskCall), tasks, threads);
}

template <class T>
void lay_out(TwoTapPlan<T>& p, const std::array<int64_t, 3>& block) {
  RegionPlan& r = p.region;
  r.block = block;
  r.flat_depth = true;
  for (size_t a = 0; a < 3; ++a) r.blocks[a] = ceil_div(p.targets[a].positions, block[a]);
  const auto length = [&](size_t a) { return block[a] + p.axes[a].most_shift - p.axes[a].least_shift; };
  r.pitch = length(2);
  r.depth_stride = length(1) * r.pitch;
  r.run = (block[0] - 1) * r.depth_stride + (block[1] - 1) * r.pitch + block[2];
}

template <class T>
class TwoTapRun {
 public:
  TwoTapRun(const Gather& g, const TwoTapPlan<T>& p, const std::vector<ColumnTile>& cut, const TwoTapPanels& panels, const Kernels& kernels)
      : g_(g), p_(p), cut_(cut), panels_(panels), k_(tiles<T>(kernels)), region_(g, p.axes, p.region.block, k_), rows_(g, p.region, k_) {
    ldc_ = ceil_div(p.region.run, k_.lanes) * k_.lanes + p.vectors * k_.lanes;  // a run may start anywhere
    int64_t widest = 0;
    for (size_t t = 0; t < cut.size(); t += size_t(p.tiles_at_once)) widest = std::max(widest, columns(t));
    accumulators_ = widest * ldc_ * products_at_once(p.axes);
  }

  int64_t scratch_size() const { return odd_lines<T>(region_.size()) + std::max(accumulators_ + slack(k_), region_.scratch_size()); }

  void run(int64_t task, T* scratch) const {
    const Block b = rows_.block(task);
    T *region = scratch, *c = scratch + odd_lines<T>(region_.size());
    region_.pack(b, region, c);
    for (size_t first = 0; first < cut_.size(); first += size_t(p_.tiles_at_once))
      for (const auto& d : p_.axes[0].phases)
        for (const auto& h : p_.axes[1].phases) {
          multiply(b, region, first, d, h, c);
          add_shared(first, d, h, c);
          store(b, first, d, h, c);
        }
  }

 private:
  size_t last(size_t first) const { return std::min(first + size_t(p_.tiles_at_once), cut_.size()); }
  int64_t columns(size_t first) const { return cut_[last(first) - 1].start + cut_[last(first) - 1].width - cut_[first].start; }

  // c[product d][product h][product w][column][position]; the products of a phase in the order of PhaseProducts
  void multiply(const Block& b, const T* region, size_t first, const PhaseProducts& d, const PhaseProducts& h, T* c) const {
    const int64_t size = columns(first) * ldc_;
    for (size_t pd : d)
      for (size_t ph : h)
        for (const Product& w : p_.axes[2].products) {
          multiply(b, region, first, p_.axes[0].products[pd], p_.axes[1].products[ph], w, c);
          c += size;
        }
  }

  void multiply(const Block& b, const T* region, size_t first, const Product& d, const Product& h, const Product& w, T* c) const {
    std::vector<int64_t> offsets;
    for (const auto& td : d.terms)
      for (const auto& th : h.terms)
        for (const auto& tw : w.terms) offsets.push_back(region_.offset(td, th, tw));
    // From the first to the last position of the block that takes the product in.
    int64_t from = 0, to = 0;
    const Product* const along[] = {&d, &h, &w};
    const int64_t stride[] = {region_.plane(), region_.pitch(), 1};
    for (size_t a = 0; a < 3; ++a) {
      const int64_t begin = std::max<int64_t>(0, along[a]->begin - b.from[a]), end = std::min(b.size[a], along[a]->end - b.from[a]);
      if (begin >= end) return;
      from += begin * stride[a];
      to += (end - 1) * stride[a];
    }
    SpatialTile<T> job;
    job.tap_offset = offsets.data();
    job.taps = int64_t(offsets.size());
    job.weight_offset = nullptr;
    job.channel_stride = region_.channel_stride();
    job.ldc = ldc_;
    for (size_t t = first; t < last(first); ++t) {
      const ColumnTile& tile = cut_[t];
      job.weight_step = tile.width;
      for (int64_t channel = 0; channel < g_.channels; channel += panels_.chunk()) {
        job.weights = panels_.template at<T>(b.group, tile, channel, d.list, h.list, w.list);
        job.channels = std::min(panels_.chunk(), g_.channels - channel);
        job.accumulate = channel > 0;
        for_each_tile(k_, p_.vectors, to + 1 - from, [&](int64_t position, int64_t vectors) {
          job.region = region + channel * region_.channel_stride() + from + position;
          job.c = c + (tile.start - cut_[first].start) * ldc_ + from + position;
          k_.spatial[vectors][tile.width](job);
        });
      }
    }
  }

  // The shared products join the targets along d, then h, then w, all columns and positions at once.
  void add_shared(size_t first, const PhaseProducts& d, const PhaseProducts& h, T* c) const {
    const int64_t size = columns(first) * ldc_, row = size * int64_t(p_.axes[2].products.size()), plane = row * int64_t(h.size());
    // `places`: of the products of a phase, `stride` elements apart.
    const auto join = [&](T* at, const size_t* places, size_t count, int64_t stride) {
      const auto place = [&](size_t i) { return at + int64_t(places[i]) * stride; };
      if (count > 2) k_.add_shared(place(0), place(1), place(2), count > 3 ? place(3) : nullptr, stride);
    };
    constexpr size_t kInTurn[] = {0, 1, 2, 3};
    join(c, kInTurn, d.size(), plane);
    for (int64_t pd = 0; pd < targets_of(d); ++pd) {
      T* const at = c + pd * plane;
      join(at, kInTurn, h.size(), row);
      for (int64_t ph = 0; ph < targets_of(h); ++ph)
        for (const PhaseProducts& w : p_.axes[2].phases) join(at + ph * row, w.data(), w.size(), size);
    }
  }

  void store(const Block& b, size_t first, const PhaseProducts& d, const PhaseProducts& h, const T* c) const {
    const int64_t size = columns(first) * ldc_, row = size * int64_t(p_.axes[2].products.size()), plane = row * int64_t(h.size());
    const int64_t count = cut_[last(first) - 1].begin + cut_[last(first) - 1].count - cut_[first].begin;
    for (int64_t pd = 0; pd < targets_of(d); ++pd)
      for (int64_t ph = 0; ph < targets_of(h); ++ph)
        rows_.store(b, g_.axis[0].phases[d[size_t(pd)]], g_.axis[1].phases[h[size_t(ph)]], b.group * g_.columns + cut_[first].begin, count, 0,
                    c + pd * plane + ph * row, ldc_, size);
  }

  const Gather& g_;
  const TwoTapPlan<T>& p_;
  const std::vector<ColumnTile>& cut_;
  const TwoTapPanels& panels_;
  const TileKernels<T>& k_;
  const TwoTapRegion<T> region_;
  const Region<T> rows_;
  int64_t ldc_, accumulators_;
};

template <class T>
void TwoTapPlan<T>::run(const Gather& original, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const Gather g = with_axes(original, targets);
  const std::vector<ColumnTile> cut = cut_columns(g.columns, columns_cut, 1);
  TwoTapPanels panels(g, axes, cut, chunk);
  panels.fill<T>(options, kernels);
  const TwoTapRun<T> run(g, *this, cut, panels, kernels);
  run_tasks<T>(region.tasks(g), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

}  // namespace

Method two_tap_everywhere(const Gather& g) {
  Method method = kDirect;
  // Rows of more than four interleaved phases would be stored element by element.
  for (size_t a = 0; a < 3; ++a)
    if (has_pairs(g.axis[a]) && (a < 2 || g.axis[2].target_step <= 2)) method[a] = best_pairing(g.axis[a]);
  return method;
}

Method two_tap_where_it_pays(const Gather& g, int64_t lanes) {
  // A tile of few rows is bound by its loads, which the method does not save.
  constexpr int64_t kLeastColumns = 8;
  const Method most = g.columns < kLeastColumns ? kDirect : two_tap_everywhere(g);
  const auto cycles = [&](const Method& method) {
    const TransformedAxes axes = transformed(g.axis, method);
    const Volume v = volume_of(axes);
    MethodWork work{v.terms, v.products, v.kinds, v.sums, 1, 1, 1, double(g.channels), double(g.columns), method == kDirect, false};
    for (size_t a = 0; a < 3; ++a) {
      const double halo = double(axes[a].most_shift - axes[a].least_shift), positions = double(axes[a].plan.positions);
      work.positions *= positions;
      work.strided = work.strided || g.axis[a].source_step > 1;
      work.kinds *= 1 + 0.25 * halo;  // of blocks some four positions long
      if (a > 0) work.waste *= 1 + halo / std::min(positions, a == 2 ? 64.0 : 24.0);
      // More than one term a product where a phase has more than three taps: it reads samples of several kinds, which together outgrow the second-level
      // cache (128 to 96 channels, k5 s2 d2 on 14^3, five taps in one phase: 130 ms, directly 62).
      if (axes[a].step == 2 && g.axis[a].source_step == 1) work.waste *= std::cbrt(terms_of(axes[a]) / products_with_terms(axes[a]));
    }
    // Pairs along w are split row by row, on whole vectors; those along h make for blocks of few rows.
    const int64_t width = axes[2].plan.positions;
    if (axes[2].step == 2)
      work.moves = kTwoTap.pairs_along_rows * double(ceil_div(width, lanes) * lanes) / double(width);
    else if (axes[1].step == 2)
      work.products *= 2;
    if (method == kDirect) work.waste = std::min(work.waste, 1.05);  // its other families and layouts have no halo
    if (method != kDirect && v.sums * double(g.groups * g.channels * g.columns) > kMostTwoTapPanel) return std::numeric_limits<double>::infinity();
    return method_cycles(work, lanes);
  };
  Method best = kDirect;
  if (most == kDirect) return best;
  double least = cycles(kDirect) / kTwoTap.gain;
  for_each_choice(most, [&](const Method& method) {
    const double c = cycles(method);
    if (c < least) {
      least = c;
      best = method;
    }
  });
  return best;
}

template <class T>
std::unique_ptr<Plan> plan_two_tap(const Gather& original, const PlanContext& context, const Method& method) {
  auto best = std::make_unique<TwoTapPlan<T>>();
  TwoTapPlan<T> p;
  p.region.channels = original.channels;
  p.axes = transformed(original.axis, method);
  for (size_t a = 0; a < 3; ++a) p.targets[a] = p.axes[a].plan;
  const Gather g = with_axes(original, p.targets);
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const auto sizes = block_sizes(g, k.lanes / 2);
  for (int64_t w : sizes[2])
    for (int64_t h : sizes[1])
      for (int64_t d : sizes[0]) {
        lay_out(p, {d, h, w});
        const double samples = volume_of(p.axes).kinds * double(g.channels * p.region.depth_stride * d) * sizeof(T);
        const bool smallest = d == sizes[0].back() && h == sizes[1].back() && w == sizes[2].back();
        if (!smallest && (p.region.run > 4096 || samples > kMostTwoTapBytes)) continue;
        price(p, g, k, context.threads);
        if (p.cycles < best->cycles) *best = p;
      }
  return best;
}

template std::unique_ptr<Plan> plan_two_tap<float>(const Gather&, const PlanContext&, const Method&);
template std::unique_ptr<Plan> plan_two_tap<double>(const Gather&, const PlanContext&, const Method&);

}  // namespace tconv3d
