// SPDX-License-Identifier: Apache-2.0
// The two-tap method (two_tap_axis.h) on any of the axes, nested: k4 s2 takes 27 products where the direct method takes 64, k3 s2 125 for 216,
// k3 s1 64 for 216. A task combines the samples of a block of positions, runs the pointer tile of the family `channels` over every product, adds the
// shared products to the targets that they serve, and turns rows of targets back.
#include "two_tap_panels.h"
#include "two_tap_samples.h"

namespace tconv3d {

namespace {

template <class T>
class TwoTapPlan : public Plan {
 public:
  TransformedAxes axes;
  std::array<AxisPlan, 3> targets;
  RegionPlan region;  // of the targets: the positions of a block, one behind the other
  int64_t rows = 1, vectors = 1, columns_cut = 1, tiles_at_once = 1;

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "two-tap along " + paired_axes(axes) + ": channels on the lanes, blocks of " + by({region.block[0], region.block[1], region.block[2]}) +
           " positions; " + by({columns_cut}) + " column tiles of positions x vectors " + by({rows, vectors}) + ", " + by({tiles_at_once}) + " at once";
  }
};

// What one call of the method runs and moves, for one image, group and position.
struct Volume {
  double terms = 1;     // products times their terms, all phases
  double products = 1;  // accumulators written
  double kinds = 1;     // combined samples
  double sums = 1;      // packed weights for one channel and column
};

// Of all products of an axis.
double terms_of(const TransformedAxis& axis) {
  double terms = 0;
  for (const Product& p : axis.products) terms += double(p.terms.size());
  return terms;
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

template <class T>
void lay_out(TwoTapPlan<T>& p, const std::array<int64_t, 3>& block) {
  RegionPlan& r = p.region;
  r.block = block;
  r.flat_depth = true;
  for (size_t a = 0; a < 3; ++a) r.blocks[a] = ceil_div(p.targets[a].positions, block[a]);
  r.pitch = block[2];
  r.depth_stride = block[1] * r.pitch;
  r.run = block[0] * r.depth_stride;
}

// Cycles of the tiles of a block; picks their rows and vectors.
template <class T>
double tile_cycles(TwoTapPlan<T>& p, const Gather& g, const TileKernels<T>& k, const Volume& v) {
  constexpr int64_t kMostVectors = 4;  // fewer are compiled without a gap: the column tiles of a cut differ by one
  double best = std::numeric_limits<double>::infinity();
  for (int64_t most = 1; most <= kMostVectors; ++most)
    for (int64_t rows = 1; rows <= kMaxPointerRows && rows <= p.region.run; ++rows) {
      const int64_t cut = ceil_div(g.columns, most * k.lanes), vectors = ceil_div(ceil_div(g.columns, cut), k.lanes);
      if (!k.pointer[vectors][rows]) continue;
      const auto tile = [&](int64_t held) {
        const double step = step_cycles(held, vectors, 1, k.lanes * int64_t(sizeof(T)));
        return held == 0 ? 0 : v.terms * double(g.channels) * step + v.products * (kTileCall + double(held * vectors) * 1.5);
      };
      const double cycles = double(cut) * (double(p.region.run / rows) * tile(rows) + tile(p.region.run % rows));
      if (cycles >= best) continue;
      best = cycles;
      p.rows = rows;
      p.vectors = vectors;
      p.columns_cut = cut;
    }
  return best;
}

template <class T>
void price(TwoTapPlan<T>& p, const Gather& g, const TileKernels<T>& k, const PlanContext& context, const SampleCounts& samples) {
  const Volume v = volume_of(p.axes);
  const double multiply = tile_cycles(p, g, k, v), positions = double(p.region.run), lanes = double(k.lanes), columns = double(g.columns);
  // Half of the cache for the sums, the samples have the rest.
  p.tiles_at_once = tiles_within(0.5, double(products_at_once(p.axes) * p.region.run * p.vectors * k.lanes) * sizeof(T), p.columns_cut);
  const double passes = double(ceil_div(p.columns_cut, p.tiles_at_once));
  const bool spills = samples.all() * sizeof(T) > 0.7 * double(cache_bytes());
  const double pack = samples.loaded * kTransposedElement + samples.combined / lanes * (spills ? 2 : 1) * kSampleVector;
  const double read = passes * positions * (kAimedRow * v.terms + (spills ? v.kinds * double(g.channels) * sizeof(T) / 12 : 0));
  const double shared = v.products * positions * columns / lanes * kSharedVector, panels = panel_cycles(columns * double(g.channels) * v.sums * sizeof(T));
  const double planes = double(int64_t(p.targets[0].phases.size() * p.targets[1].phases.size()) * p.region.block[0]) * columns;
  const double row = kRowCall + (kTransposedElement + kPackedElement) * double(p.region.block[2]) * double(p.targets[2].phases.size());
  const double store = planes * (kPlaneCall + double(p.region.block[1]) * row);
  const int64_t tasks = p.region.tasks(g);
  p.cycles = parallel_cycles(double(tasks) * (multiply + pack + read + shared + panels + store + kTaskCall), tasks, context.threads);
}

template <class T>
class TwoTapRun {
 public:
  TwoTapRun(const Gather& g, const TwoTapPlan<T>& p, const std::vector<ColumnTile>& cut, const TwoTapPanels& panels, const Kernels& kernels)
      : g_(g), p_(p), cut_(cut), panels_(panels), k_(tiles<T>(kernels)), samples_(g, p.axes, p.region.block, k_), target_(g, p.region, k_) {
    int64_t widest = 0;
    for (size_t t = 0; t < cut.size(); t += size_t(p.tiles_at_once)) widest = std::max(widest, width(t));
    products_ = odd_lines<T>(products_at_once(p.axes) * p.region.run * widest);
    ld_turned_ = odd_lines<T>(p.region.run + k_.lanes);
    turned_ = is_rows<T>(g.target) ? 0 : int64_t(g.axis[2].phases.size()) * widest * ld_turned_;
  }

  int64_t scratch_size() const { return odd_lines<T>(samples_.size()) + products_ + turned_ + slack(k_); }

  void run(int64_t task, T* scratch) const {
    const Block b = target_.block(task);
    T* const c = scratch + odd_lines<T>(samples_.size());
    samples_.pack(b, scratch);
    Terms terms;
    for (size_t first = 0; first < cut_.size(); first += size_t(p_.tiles_at_once))
      for (const auto& d : p_.axes[0].phases)
        for (const auto& h : p_.axes[1].phases) {
          multiply(b, scratch, first, d, h, c, &terms);
          add_shared(first, d, h, c);
          store(b, first, d, h, c);
        }
  }

 private:
  using Place = typename TwoTapSamples<T>::Place;
  // A product's terms: where their samples lie, which weights they take, and what the tiles are given, kept from product to product.
  struct Terms {
    std::vector<Place> places;
    size_t list_d, list_h, list_w;
    std::vector<const T*> pointers;    // [tile][term][row]
    std::vector<int64_t> lane_offset;  // [term]
  };
  size_t last(size_t first) const { return std::min(first + size_t(p_.tiles_at_once), cut_.size()); }
  int64_t width(size_t first) const { return cut_[last(first) - 1].start + cut_[last(first) - 1].width - cut_[first].start; }
  int64_t columns(size_t first) const { return cut_[last(first) - 1].begin + cut_[last(first) - 1].count - cut_[first].begin; }

  // c[product d][product h][product w][position][column]; the products of a phase in the order of PhaseProducts
  void multiply(const Block& b, const T* samples, size_t first, const PhaseProducts& d, const PhaseProducts& h, T* c, Terms* terms) const {
    for (size_t pd : d)
      for (size_t ph : h)
        for (const Product& w : p_.axes[2].products) {
          multiply(b, samples, first, p_.axes[0].products[pd], p_.axes[1].products[ph], w, c, terms);
          c += p_.region.run * width(first);
        }
  }

  void multiply(const Block& b, const T* samples, size_t first, const Product& d, const Product& h, const Product& w, T* c, Terms* terms) const {
    // The positions of the block that take the product in: whole rows, so that they follow each other.
    std::array<int64_t, 3> begin, end;
    const Product* const along[] = {&d, &h, &w};
    for (size_t a = 0; a < 3; ++a) {
      begin[a] = std::max<int64_t>(0, along[a]->begin - b.from[a]);
      end[a] = std::min(b.size[a], along[a]->end - b.from[a]);
      if (begin[a] >= end[a]) return;
    }
    terms->places.clear();
    for (const auto& td : d.terms)
      for (const auto& th : h.terms)
        for (const auto& tw : w.terms) terms->places.push_back(samples_.place(td, th, tw));
    terms->list_d = d.list, terms->list_h = h.list, terms->list_w = w.list;
    const int64_t row = p_.region.pitch, height = p_.region.block[1];
    if (begin[1] == 0 && end[1] == height)
      multiply(b, samples, first, begin[0] * height * row, (end[0] - begin[0]) * height * row, c, terms);
    else
      for (int64_t plane = begin[0]; plane < end[0]; ++plane)
        multiply(b, samples, first, (plane * height + begin[1]) * row, (end[1] - begin[1]) * row, c, terms);
  }

  // So many positions of the block from `start` on.
  void multiply(const Block& b, const T* samples, size_t first, int64_t start, int64_t positions, T* c, Terms* terms) const {
    const int64_t segments = int64_t(terms->places.size());
    aim(samples, start, positions, terms);
    std::vector<int64_t>& lane_offset = terms->lane_offset;
    lane_offset.resize(size_t(segments));
    c += start * width(first);
    PointerTile<T> job;
    job.lane_offset = lane_offset.data();
    job.segments = segments;
    job.row_step = 1;
    job.ldc = width(first);
    for (int64_t channel = 0; channel < g_.channels; channel += panels_.chunk()) {
      job.steps = std::min(panels_.chunk(), g_.channels - channel);
      job.accumulate = channel > 0;
      if (channel > 0)
        for (const T*& p : terms->pointers) p += panels_.chunk();
      for (size_t t = first; t < last(first); ++t) {
        const ColumnTile& tile = cut_[t];
        job.lanes = panels_.template at<T>(b.group, tile, channel, terms->list_d, terms->list_h, terms->list_w);
        job.lane_step = tile.width;
        for (int64_t s = 0; s < segments; ++s) lane_offset[size_t(s)] = s * job.steps * tile.width;
        const auto& run_tile = k_.pointer[tile.width / k_.lanes];
        for (int64_t p = 0; p < positions; p += p_.rows) {
          job.rows = terms->pointers.data() + p * segments;
          job.c = c + p * job.ldc + tile.start - cut_[first].start;
          run_tile[std::min(p_.rows, positions - p)](job);
        }
      }
    }
  }

  void aim(const T* samples, int64_t start, int64_t positions, Terms* terms) const {
    const int64_t segments = int64_t(terms->places.size());
    terms->pointers.resize(size_t(positions * segments));
    for (int64_t s = 0; s < segments; ++s) {
      const Place& place = terms->places[size_t(s)];
      const T* const at = samples + place.at;
      const int64_t* const grid = samples_.grid(place) + start;
      const int64_t at_once = segments == 1 ? positions : p_.rows;
      for (int64_t first = 0; first < positions; first += at_once) {
        const int64_t rows = std::min(at_once, positions - first);
        const T** const to = terms->pointers.data() + first * segments + s * rows;
        for (int64_t r = 0; r < rows; ++r) to[r] = at + grid[first + r];
      }
    }
  }

  // The shared products join the targets along d, then h, then w, all columns and positions at once.
  void add_shared(size_t first, const PhaseProducts& d, const PhaseProducts& h, T* c) const {
    const int64_t size = p_.region.run * width(first), row = size * int64_t(p_.axes[2].products.size()), plane = row * int64_t(h.size());
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

  // The targets of all phases of d and h. Rows of channels-first arrays are turned to [phase w][column][position] first.
  void store(const Block& b, size_t first, const PhaseProducts& d, const PhaseProducts& h, T* c) const {
    const int64_t ldc = width(first), size = p_.region.run * ldc, row = size * int64_t(p_.axes[2].products.size()), plane = row * int64_t(h.size());
    const int64_t count = columns(first), channel = b.group * g_.columns + cut_[first].begin;
    T* const turned = c + products_;
    for (int64_t pd = 0; pd < targets_of(d); ++pd)
      for (int64_t ph = 0; ph < targets_of(h); ++ph) {
        const Phase &phase_d = g_.axis[0].phases[d[size_t(pd)]], &phase_h = g_.axis[1].phases[h[size_t(ph)]];
        const T* const sums = c + pd * plane + ph * row;
        if (is_rows<T>(g_.target)) {
          target_.store_lanes(b, phase_d, phase_h, channel, count, sums, ldc, size);
          continue;
        }
        for (int64_t w = 0; w < int64_t(g_.axis[2].phases.size()); ++w)
          k_.pack_positions(turned + w * count * ld_turned_, ld_turned_, sums + w * size, ldc, p_.region.run, 1, count, kAccumulated<T>);
        target_.store(b, phase_d, phase_h, channel, count, 0, turned, ld_turned_, count * ld_turned_);
      }
  }

  const Gather& g_;
  const TwoTapPlan<T>& p_;
  const std::vector<ColumnTile>& cut_;
  const TwoTapPanels& panels_;
  const TileKernels<T>& k_;
  const TwoTapSamples<T> samples_;
  const Region<T> target_;
  int64_t products_, ld_turned_, turned_;  // elements of scratch
};

template <class T>
void TwoTapPlan<T>::run(const Gather& original, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const Gather g = with_axes(original, targets);
  const std::vector<ColumnTile> cut = cut_columns(g.columns, columns_cut, tiles<T>(kernels).lanes);
  TwoTapPanels panels(g, axes, cut, chunk);
  panels.fill<T>(options, kernels);
  const TwoTapRun<T> run(g, *this, cut, panels, kernels);
  run_tasks<T>(region.tasks(g), run.scratch_size(), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

// Samples from the first to the last tap of an axis: what a block holds at least.
double tap_span(const AxisPlan& a) {
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (const Phase& phase : a.phases)
    for (const Tap& tap : phase.taps) {
      least = std::min(least, double(tap.offset));
      most = std::max(most, double(tap.offset));
    }
  return most < least ? 1 : (most - least + 1) * double(a.source_step);
}

}  // namespace

Method two_tap_everywhere(const Gather& g) {
  constexpr double kMostSamples = 1 << 24;  // 64 MB: far dilations are for the direct method
  Method method = kDirect;
  if (tap_span(g.axis[0]) * tap_span(g.axis[1]) * tap_span(g.axis[2]) * double(g.channels) > kMostSamples) return method;
  // Rows of more than four interleaved phases would be stored element by element.
  for (size_t a = 0; a < 3; ++a)
    if (has_pairs(g.axis[a]) && (a < 2 || g.axis[2].target_step <= 2)) method[a] = best_pairing(g.axis[a]);
  return method;
}

Method two_tap_where_it_pays(const Gather& g, int64_t lanes) {
  // Fewer leave lanes empty. 8, one vector of AVX2, run forward 1.1 to 1.4 times as fast directly or by col2im, backward as fast directly.
  constexpr int64_t kLeastColumns = 9;
  const Method most = g.columns < kLeastColumns ? kDirect : two_tap_everywhere(g);
  Method best = kDirect;
  if (most == kDirect) return best;
  double inside = 1, targets = 1;
  for (const AxisPlan& axis : g.axis) {
    const auto [taps, count] = sums_inside(axis);
    inside *= taps;
    targets *= count;
  }
  // Cycles, times the gain that the method must promise.
  const auto promised = [&](const Method& method) {
    const TransformedAxes axes = transformed(g.axis, method);
    const Volume v = volume_of(axes);
    MethodWork work{method == kDirect, 1, inside, v.products, 1, 0, 0, targets, v.sums, double(g.channels), double(g.columns)};
    std::array<int64_t, 3> block{4, 4, 12};
    for (size_t a = 0; a < 3; ++a) {
      double run = 0;
      for (const Product& p : axes[a].products) run += double(p.terms.size()) * double(p.end - p.begin);
      work.multiply_adds *= run;
      work.positions *= double(axes[a].plan.positions);
      block[a] = std::min(block[a], axes[a].plan.positions);
    }
    if (method == kDirect) return method_cycles(work, lanes);
    if (work.panel() * double(g.groups) > kMostTwoTapPanel) return std::numeric_limits<double>::infinity();
    const SampleCounts samples = count_samples(axes, 1, block);
    const double positions = double(block[0] * block[1] * block[2]);
    work.combined = samples.combined / positions;
    work.loaded = samples.loaded / positions;
    return method_cycles(work, lanes) * (work.large() ? kTwoTap.large_gain : kTwoTap.gain);
  };
  double least = promised(kDirect);
  for_each_choice(most, [&](const Method& method) {
    const double c = promised(method);
    if (c < least) {
      least = c;
      best = method;
    }
  });
  return best;
}

template <class T>
std::unique_ptr<Plan> plan_two_tap(const Gather& original, const PlanContext& context, const Method& method) {
  constexpr int64_t kMostPositions = 512;
  auto best = std::make_unique<TwoTapPlan<T>>();
  TwoTapPlan<T> p;
  p.axes = transformed(original.axis, method);
  for (size_t a = 0; a < 3; ++a) p.targets[a] = p.axes[a].plan;
  const Gather g = with_axes(original, p.targets);
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const auto sizes = block_sizes(g, 0);
  for (int64_t w : sizes[2])
    for (int64_t h : sizes[1])
      for (int64_t d : sizes[0]) {
        const bool smallest = d == sizes[0].back() && h == sizes[1].back() && w == sizes[2].back();
        const SampleCounts samples = count_samples(p.axes, g.channels, {d, h, w});
        if (!smallest && (d * h * w > kMostPositions || samples.all() * sizeof(T) > kMostTwoTapBytes)) continue;
        lay_out(p, {d, h, w});
        price(p, g, k, context, samples);
        if (p.cycles < best->cycles) *best = p;
      }
  return best;
}

template std::unique_ptr<Plan> plan_two_tap<float>(const Gather&, const PlanContext&, const Method&);
template std::unique_ptr<Plan> plan_two_tap<double>(const Gather&, const PlanContext&, const Method&);

}  // namespace tconv3d
