// SPDX-License-Identifier: Apache-2.0
// Positions on the vector lanes. A task is a block of positions of one image and group: it packs the source region that the block needs,
// runs the register tile over (columns x positions) for every phase straight from the region, and stores each target row once,
// its phases interleaved.
//
// Positions of several rows (and planes) form one run over the packed region, halo included, so that short rows still fill the lanes;
// the lanes over the halo compute nothing that is stored.
#include <cstring>
#include <limits>

#include "cost.h"
#include "panels.h"

namespace tconv3d {

namespace {

struct SpatialPlan {
  int64_t vectors = 1;
  std::vector<ColumnTile> tiles;
  std::array<int64_t, 3> block{}, blocks{};
  std::array<AxisPacking, 3> packing;
  bool flat_depth = false;  // planes of the block lie one behind the other for each channel: one run over all of them
  int64_t pitch = 0, depth_stride = 0, channel_stride = 0, segment_stride = 0, region_size = 0;
  int64_t run = 0, ldc = 0;  // positions of one run, and as padded to whole tiles
  double cycles = std::numeric_limits<double>::infinity();

  int64_t runs() const { return flat_depth ? 1 : block[0]; }
};

// Elements that a tile may read past the last position.
template <class T>
int64_t slack(const TileKernels<T>& k) { return int64_t(kMaxVectors) * k.lanes; }

// An odd number of cache lines between channels: planes a power of two apart would share the same cache sets.
template <class T>
int64_t odd_lines(int64_t elements) {
  const int64_t line = 64 / int64_t(sizeof(T));
  return (ceil_div(elements, line) | 1) * line;
}

template <class T>
void lay_out(SpatialPlan& p, const Gather& g, const TileKernels<T>& k) {
  for (int a = 0; a < 3; ++a) {
    p.packing[size_t(a)] = axis_packing(g.axis[size_t(a)], p.block[size_t(a)]);
    p.blocks[size_t(a)] = ceil_div(g.axis[size_t(a)].positions, p.block[size_t(a)]);
  }
  p.pitch = p.packing[2].longest(p.block[2]);
  const int64_t depth = p.packing[0].length(p.block[0]), plane = p.packing[1].length(p.block[1]) * p.pitch;
  if (p.flat_depth) {
    p.depth_stride = plane;
    p.channel_stride = odd_lines<T>(depth * plane);
    p.segment_stride = g.channels * p.channel_stride;
  } else {
    p.channel_stride = odd_lines<T>(plane);
    p.depth_stride = g.channels * p.channel_stride;
    p.segment_stride = depth * p.depth_stride;
  }
  p.region_size = int64_t(p.packing[2].segments.size()) * p.segment_stride + slack(k);
  p.run = (p.block[1] - 1) * p.pitch + p.block[2] + (p.flat_depth ? (p.block[0] - 1) * p.depth_stride : 0);
}

struct Work {
  int64_t taps, combos, row_phases, tasks_per_block;
};

Work work_of(const Gather& g) {
  Work w{1, 1, 1, g.batch * g.groups};
  for (const AxisPlan& a : g.axis) {
    int64_t taps = 0;
    for (const Phase& p : a.phases) taps += int64_t(p.taps.size());
    w.taps *= taps;
    w.combos *= int64_t(a.phases.size());
  }
  w.row_phases = int64_t(g.axis[2].phases.size());
  return w;
}

// Picks vectors and column tiles for a block and adds up its cycles.
template <class T>
void price(SpatialPlan& p, const Gather& g, const Work& work, const TileKernels<T>& k, int threads) {
  const double loads = k.lanes * sizeof(T) >= 64 ? 1.8 : 1.3;
  double best = std::numeric_limits<double>::infinity();
  for (int64_t vectors = 1; vectors <= kMaxVectors; ++vectors) {
    int64_t rows = std::min<int64_t>(g.columns, kMaxRows);
    while (rows > 0 && !k.spatial[vectors][rows]) --rows;
    if (rows == 0) continue;
    const int64_t count = ceil_div(g.columns, rows);
    rows = ceil_div(g.columns, count);
    const double visits = double(p.runs() * ceil_div(p.run, vectors * k.lanes));
    const double tile = double(work.taps * g.channels) * step_cycles(rows, vectors, loads) + double(work.combos) * (kTileCall + double(rows * vectors));
    if (visits * tile * double(count) < best) {
      best = visits * tile * double(count);
      p.vectors = vectors;
      p.tiles = cut_columns(g.columns, count, 1);
      p.ldc = ceil_div(p.run, vectors * k.lanes) * vectors * k.lanes;
    }
  }
  const double rows_packed = double(p.packing[0].length(p.block[0]) * p.packing[1].length(p.block[1]) * int64_t(p.packing[2].segments.size()) * g.channels);
  const double pack = rows_packed * (kRowCall + kPackedElement * double(p.pitch) * double(g.axis[2].source_step));
  const double rows_stored = double(p.block[0] * p.block[1] * g.columns * work.combos / work.row_phases);
  const double store = rows_stored * (kRowCall + kPackedElement * double(p.block[2] * work.row_phases) * (g.axis[2].target_step > 2 ? 4 : 1));
  const int64_t tasks = work.tasks_per_block * p.blocks[0] * p.blocks[1] * p.blocks[2];
  const double region_bytes = double(p.region_size) * sizeof(T), spill = region_bytes > 0.6 * double(cache_bytes()) ? 1.5 : 1.0;
  // Edge blocks hold fewer positions but run nearly as long: count whole blocks.
  p.cycles = parallel_cycles(double(tasks) * (best * spill + pack + store), tasks, threads);
}

template <class T>
SpatialPlan plan_spatial(const Gather& g, const Kernels& kernels, int threads) {
  const TileKernels<T>& k = tiles<T>(kernels);
  const Work work = work_of(g);
  SpatialPlan best;
  std::array<std::vector<int64_t>, 3> sizes;
  for (int a = 0; a < 3; ++a) {
    const int64_t n = g.axis[size_t(a)].positions;
    // Equal parts, so that the last block is not a sliver; widths below two tiles only where the axis is short.
    for (int64_t parts = 1; parts <= n; parts = parts < 4 ? parts + 1 : parts * 3 / 2) {
      const int64_t size = ceil_div(n, parts);
      if (a == 2 && parts > 1 && size < 4 * k.lanes) break;
      if (sizes[size_t(a)].empty() || sizes[size_t(a)].back() != size) sizes[size_t(a)].push_back(size);
    }
  }
  const auto bytes = [&](const SpatialPlan& p) { return p.region_size * int64_t(sizeof(T)); };
  for (int64_t w : sizes[2]) {
    for (int64_t h : sizes[1])
      for (int64_t d : sizes[0])
        for (int flat = 0; flat <= (d > 1); ++flat) {
          SpatialPlan p;
          p.block = {d, h, w};
          p.flat_depth = flat;
          lay_out<T>(p, g, k);
          const bool smallest = d == sizes[0].back() && h == sizes[1].back() && w == sizes[2].back();
          if ((bytes(p) > int64_t(cache_bytes()) || p.run > (getenv("RUN") ? atoll(getenv("RUN")) : 8192)) && !smallest) continue;
          price<T>(p, g, work, k, threads);
          if (p.cycles < best.cycles) best = std::move(p);
        }
    if (best.cycles < std::numeric_limits<double>::infinity() && w == sizes[2].front() && best.region_size * int64_t(sizeof(T)) < int64_t(cache_bytes()) / 2) break;
  }
  return best;
}

// Results that outgrow the last-level cache are stored past it.
const int64_t kStreamBytes = getenv("STREAM") ? atoll(getenv("STREAM")) : int64_t(32) << 20;

// A block of positions and where it lies.
struct Block {
  int64_t image, group;
  std::array<int64_t, 3> from, size;
};

template <class T>
class SpatialRun {
 public:
  SpatialRun(const Gather& g, const SpatialPlan& p, const Panels& panels, const Kernels& kernels) : g_(g), p_(p), panels_(panels), k_(tiles<T>(kernels)) {
    for (const PanelSet& set : panels.sets()) {
      std::vector<int64_t> offsets(size_t(set.phases.taps));
      for_each_tap(set.phases.members[0], [&](int64_t t, const Tap& d, const Tap& h, const Tap& w) { offsets[size_t(t)] = tap_offset(d, h, w); });
      tap_offsets_.push_back(std::move(offsets));
    }
    row_phases_ = int64_t(g.axis[2].phases.size());
    const int64_t target = g.batch * g.groups * g.columns * g.axis[0].target_size * g.axis[1].target_size * g.axis[2].target_size;
    stream_ = target * g.target.element_size() >= kStreamBytes;
  }

  int64_t tasks() const { return g_.batch * g_.groups * p_.blocks[0] * p_.blocks[1] * p_.blocks[2]; }
  int64_t scratch_size() const { return odd_lines<T>(p_.region_size) + row_phases_ * kMaxRows * p_.ldc; }

  void run(int64_t task, T* scratch) const {
    Block b;
    for (int a = 2; a >= 0; --a) {
      b.from[size_t(a)] = task % p_.blocks[size_t(a)] * p_.block[size_t(a)];
      b.size[size_t(a)] = std::min(p_.block[size_t(a)], g_.axis[size_t(a)].positions - b.from[size_t(a)]);
      task /= p_.blocks[size_t(a)];
    }
    b.group = task % g_.groups;
    b.image = task / g_.groups;
    T *region = scratch, *c = scratch + odd_lines<T>(p_.region_size);
    pack(b, region);
    const int64_t sets_per_row = row_phases_;
    for (size_t tile = 0; tile < p_.tiles.size(); ++tile)
      for (size_t first = 0; first < panels_.sets().size(); first += size_t(sets_per_row))
        for (int64_t d = 0; d < (p_.flat_depth ? 1 : b.size[0]); ++d) {
          for (int64_t f = 0; f < sets_per_row; ++f) multiply(b, first + size_t(f), p_.tiles[tile], region + d * p_.depth_stride, c + f * kMaxRows * p_.ldc);
          store(b, first, p_.tiles[tile], d, c);
        }
  }

 private:
  int64_t tap_offset(const Tap& d, const Tap& h, const Tap& w) const {
    const auto place = [&](int a, const Tap& t) {
      const AxisPacking& packing = p_.packing[size_t(a)];
      const auto [segment, at] = packing.place(t);
      int64_t start = 0;
      for (int64_t s = 0; s < segment; ++s) start += p_.block[size_t(a)] + packing.segments[size_t(s)].extra;
      return start + at;
    };
    const auto [segment, at] = p_.packing[2].place(w);
    return segment * p_.segment_stride + place(0, d) * p_.depth_stride + place(1, h) * p_.pitch + at;
  }

  // Source index of packed coordinate t of an axis, or -1 outside the image.
  std::vector<int64_t> source_indices(const Block& b, int a) const {
    const AxisPlan& axis = g_.axis[size_t(a)];
    std::vector<int64_t> indices;
    for (const Segment& s : p_.packing[size_t(a)].segments)
      for (int64_t t = 0; t < p_.block[size_t(a)] + s.extra; ++t) {
        const int64_t i = (b.from[size_t(a)] + s.offset + t) * axis.source_step + s.phase;
        indices.push_back(i >= 0 && i < axis.source_size ? i : -1);
      }
    return indices;
  }

  void pack(const Block& b, T* region) const {
    const std::vector<int64_t> depth = source_indices(b, 0), rows = source_indices(b, 1);
    const AxisPlan& width = g_.axis[2];
    const View& source = g_.source;
    const int64_t origin = b.image * source.stride[0] + b.group * g_.channels * source.stride[1];
    for (size_t s = 0; s < p_.packing[2].segments.size(); ++s) {
      const Segment& segment = p_.packing[2].segments[s];
      const int64_t first = b.from[2] + segment.offset, last = floor_div(width.source_size - 1 - segment.phase, width.source_step);
      const int64_t begin = std::clamp<int64_t>(-first, 0, p_.pitch), end = std::clamp<int64_t>(last - first + 1, begin, p_.pitch);
      const int64_t column = ((first + begin) * width.source_step + segment.phase) * source.stride[4];
      for (size_t d = 0; d < depth.size(); ++d)
        for (int64_t c = 0; c < g_.channels; ++c) {
          T* plane = region + int64_t(s) * p_.segment_stride + int64_t(d) * p_.depth_stride + c * p_.channel_stride;
          const int64_t from = origin + c * source.stride[1] + depth[d] * source.stride[2] + column;
          for (size_t h = 0; h < rows.size(); ++h) {
            T* row = plane + int64_t(h) * p_.pitch;
            if (depth[d] < 0 || rows[h] < 0 || begin == end) {
              std::memset(row, 0, size_t(p_.pitch) * sizeof(T));
              continue;
            }
            for (int64_t t = 0; t < begin; ++t) row[t] = 0;
            k_.load_run(row + begin, 1, source.at(from + rows[h] * source.stride[3]), width.source_step * source.stride[4], end - begin, source.dtype);
            for (int64_t t = end; t < p_.pitch; ++t) row[t] = 0;
          }
        }
    }
    std::memset(region + p_.region_size - slack(k_), 0, size_t(slack(k_)) * sizeof(T));
  }

  // c[row][position] of one phase, for the positions of one run.
  void multiply(const Block& b, size_t set_index, const ColumnTile& tile, const T* region, T* c) const {
    const PanelSet& set = panels_.sets()[set_index];
    const auto kernel = k_.spatial[p_.vectors][tile.width];
    const int64_t run = (b.size[1] - 1) * p_.pitch + b.size[2] + (p_.flat_depth ? (b.size[0] - 1) * p_.depth_stride : 0);
    SpatialTile<T> job;
    job.tap_offset = tap_offsets_[set_index].data();
    job.taps = set.phases.taps;
    job.channel_stride = p_.channel_stride;
    job.ldc = p_.ldc;
    for (int64_t channel = 0; channel < g_.channels; channel += panels_.chunk()) {
      job.weights = panels_.template at<T>(set, b.group, tile, channel);
      job.channels = std::min(panels_.chunk(), g_.channels - channel);
      job.accumulate = channel > 0;
      for (int64_t p = 0; p < run; p += p_.vectors * k_.lanes) {
        job.region = region + channel * p_.channel_stride + p;
        job.c = c + p;
        kernel(job);
      }
    }
  }

  // Rows of the target from the row phases that start at set `first`; `run` is the plane of the block unless planes are flat.
  void store(const Block& b, size_t first, const ColumnTile& tile, int64_t run, const T* c) const {
    const Combo& combo = panels_.sets()[first].phases.members[0];
    const View& target = g_.target;
    std::array<int64_t, 64> small_first, small_count;
    std::array<const T*, 64> small_c;
    std::vector<int64_t> more;
    std::vector<const T*> more_c;
    int64_t *firsts = small_first.data(), *counts = small_count.data();
    const T** rows = small_c.data();
    if (row_phases_ > 64) {
      more.resize(size_t(2 * row_phases_));
      more_c.resize(size_t(row_phases_));
      firsts = more.data(), counts = firsts + row_phases_, rows = more_c.data();
    }
    const int64_t step = g_.axis[2].target_step;
    for (int64_t f = 0; f < row_phases_; ++f) {
      const Phase& phase = g_.axis[2].phases[size_t(f)];
      firsts[f] = phase.first + b.from[2] * step;
      counts[f] = std::max<int64_t>(0, std::min(b.size[2], phase.count - b.from[2]));
    }
    RowStore<T> row{nullptr, target.stride[4], rows, firsts, counts, row_phases_, step, 0, stream_};
    const int64_t planes = p_.flat_depth ? b.size[0] : 1;
    for (int64_t m = 0; m < tile.count; ++m) {
      const int64_t channel = b.group * g_.columns + tile.begin + m;
      if (g_.bias) k_.load_run(&row.bias, 1, g_.bias->at(channel * g_.bias->stride[0]), 1, 1, g_.bias->dtype);
      for (int64_t d = 0; d < planes; ++d) {
        const int64_t jd = b.from[0] + (p_.flat_depth ? d : run);
        if (jd >= combo[0]->count) continue;
        for (int64_t h = 0; h < b.size[1] && b.from[1] + h < combo[1]->count; ++h) {
          for (int64_t f = 0; f < row_phases_; ++f) rows[f] = c + (f * kMaxRows + m) * p_.ldc + d * p_.depth_stride + h * p_.pitch;
          row.out = target.at(b.image * target.stride[0] + channel * target.stride[1] + (combo[0]->first + jd * g_.axis[0].target_step) * target.stride[2] +
                              (combo[1]->first + (b.from[1] + h) * g_.axis[1].target_step) * target.stride[3]);
          k_.store_row(row, target.dtype);
        }
      }
    }
  }

  const Gather& g_;
  const SpatialPlan& p_;
  const Panels& panels_;
  const TileKernels<T>& k_;
  int64_t row_phases_;
  bool stream_;
  std::vector<std::vector<int64_t>> tap_offsets_;
};

}  // namespace

template <class T>
double spatial_cost(const Gather& g, const Options& options, const Kernels& kernels) {
  return plan_spatial<T>(g, kernels, options.threads).cycles;
}

template <class T>
void run_spatial(const Gather& g, const Options& options, const Kernels& kernels, int64_t chunk) {
  const SpatialPlan plan = plan_spatial<T>(g, kernels, options.threads);
  std::vector<PanelSet> sets;
  for (const Phase& d : g.axis[0].phases)
    for (const Phase& h : g.axis[1].phases)
      for (const Phase& w : g.axis[2].phases) sets.push_back({{{{&d, &h, &w}}, int64_t(d.taps.size() * h.taps.size() * w.taps.size())}, plan.tiles, 0});
  Panels panels(g, std::move(sets), chunk);
  panels.fill<T>(options, kernels);
  const SpatialRun<T> run(g, plan, panels, kernels);
  const int threads = int(std::min<int64_t>(options.threads, run.tasks()));
  const int64_t each = odd_lines<T>(run.scratch_size());
  Scratch scratch(size_t(each * threads) * sizeof(T));
  T* base = reinterpret_cast<T*>(scratch.data());
  parallel_for(run.tasks(), threads, [&](int64_t task, int worker) { run.run(task, base + worker * each); }, options.stop);
}

template void run_spatial<float>(const Gather&, const Options&, const Kernels&, int64_t);
template void run_spatial<double>(const Gather&, const Options&, const Kernels&, int64_t);
template double spatial_cost<float>(const Gather&, const Options&, const Kernels&);
template double spatial_cost<double>(const Gather&, const Options&, const Kernels&);

}  // namespace tconv3d
