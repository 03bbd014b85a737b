// SPDX-License-Identifier: Apache-2.0
// Channels on the vector lanes: for few positions and many channels. The rows of a tile are any positions of any images, each read
// through a pointer into the source with channels last, so there is no halo and no short-row waste, and a tap that no row of a tile reaches is
// left out. Phases that read the same source samples lie side by side in one panel: kernel == stride becomes one matrix product.
#include <cstring>
#include <limits>

#include "cost.h"
#include "panels.h"

namespace tconv3d {

namespace {

// The source with channels last, widened: the array itself where it already is that, else a copy.
template <class T>
struct Rows {
  const T* data;
  int64_t image, depth, row, position, group;  // strides
};

constexpr int64_t kMaxCopiedBytes = int64_t(32) << 20;
constexpr double kPointerFactor = 1.15;  // against the other families on layers where both fit
constexpr double kSegmentStart = 40;     // cycles to load a segment's pointers and fetch its rows: half of the time at 16 channels, nothing at 512
constexpr double kFarElement = 2;        // of a copy that goes to memory and comes back
constexpr double kStoredLane = 0.5;      // cycles of a sum of a channels-last target
constexpr double kStoredRun = 25;        // cycles of a position in each run of neighbours of such a target
// More phases than those of a kernel of 2 leave a few elements of each line of the weights to one of them: packed anew on each call, 512 to 512 channels from
// 1^3 to 4^3 took three times as long.
constexpr int64_t kMostTurnedMembers = 8;
constexpr double kStoredPosition = 60;  // cycles of a position in a column tile besides its columns, where several phases are stored together
// Positions of a task and their sums, which stay in the second-level cache. To a channels-last target tiles of up to kTaskColumns columns go together, where
// two tasks for each thread are left.
constexpr int64_t kTaskPositions = 256, kTaskSums = 32768, kTaskColumns = 512;
constexpr int64_t kTaskPointers = 4096;  // into the source, of the positions that one pass over such tiles serves: 32 KiB

std::vector<int64_t> tap_key(const Combo& combo) {
  std::vector<int64_t> key;
  for (const Phase* p : combo) {
    key.push_back(int64_t(p->taps.size()));
    for (const Tap& t : p->taps) key.insert(key.end(), {t.offset, t.source_phase});
  }
  return key;
}

std::vector<PhaseSet> phase_sets(const Gather& g, bool channels_last) {
  std::vector<PhaseSet> sets;
  std::map<std::vector<int64_t>, size_t> index;
  for (const Phase& d : g.axis[0].phases)
    for (const Phase& h : g.axis[1].phases)
      for (const Phase& w : g.axis[2].phases) {
        const Combo combo{&d, &h, &w};
        const auto [at, fresh] = index.emplace(tap_key(combo), sets.size());
        if (fresh) sets.push_back({{}, int64_t(d.taps.size() * h.taps.size() * w.taps.size()), false});
        sets[at->second].members.push_back(combo);
      }
  for (PhaseSet& set : sets) set.channels_last = channels_last && int64_t(set.members.size()) <= kMostTurnedMembers;
  return sets;
}

struct TileShape {
  int64_t rows, vectors;
  double cycles;  // for one reduction step of one position and all columns
};

// Cycles to read one element of a row. Rows are short streams: 2.7 bytes a cycle from the third-level cache (320 → 8 channels, k5 s1: 75 ms where
// positions on the lanes take 28).
template <class T>
double read_cycles(double source_elements) {
  return double(sizeof(T)) / (source_elements * sizeof(T) > 0.5 * double(cache_bytes()) ? 2.7 : 12);
}

// Rows and vectors with the fewest cycles for so many columns and positions.
template <class T>
TileShape tile_shape(const TileKernels<T>& k, int64_t columns, int64_t positions, double read) {
  TileShape best{0, 0, std::numeric_limits<double>::infinity()};
  for (int64_t vectors = 1; vectors <= 4; ++vectors)
    for (int64_t rows = 1; rows <= kMaxPointerRows && rows <= positions; ++rows) {
      if (!k.pointer[vectors][rows]) continue;
      const double tiles = double(ceil_div(positions, rows)) / double(positions);
      const double step = step_cycles(rows, vectors, 1, k.lanes * int64_t(sizeof(T))) * tiles;
      const double cycles = double(ceil_div(columns, vectors * k.lanes)) * std::max(step, read);
      if (cycles < best.cycles) best = {rows, vectors, cycles};
    }
  return best;
}

std::array<int64_t, 3> set_positions(const PhaseSet& set) {
  std::array<int64_t, 3> n{};
  for (const Combo& c : set.members)
    for (size_t a = 0; a < 3; ++a) n[a] = std::max(n[a], c[a]->count);
  return n;
}

int64_t volume(const std::array<int64_t, 3>& n) { return n[0] * n[1] * n[2]; }

// A position of a set: image, d, h, w.
using Place = std::array<int64_t, 4>;

template <class T>
class ChannelsRun {
 public:
  ChannelsRun(const Gather& g, const Panels& panels, const std::vector<TileShape>& shapes, const Rows<T>& rows, const Kernels& kernels, int threads)
      : g_(g), panels_(panels), shapes_(shapes), rows_(rows), k_(tiles<T>(kernels)), zeros_(size_t(g.channels), T(0)), stream_(outgrows_caches(g)) {
    for (size_t s = 0; s < panels.sets().size(); ++s) {
      const PanelSet& set = panels.sets()[s];
      extents_.push_back(set_positions(set.phases));
      const int64_t positions = g.batch * volume(extents_[s]);
      const bool together = set.phases.channels_last && g.groups * positions * set.padded_columns() >= 2 * threads * kTaskSums;
      for (size_t first = 0, last; first < set.tiles.size(); first = last) {
        for (last = first + 1; together && last < set.tiles.size() && columns_of(set, first, last + 1) <= kTaskColumns;) ++last;
        const int64_t columns = columns_of(set, first, last), ranges = ceil_div(positions, std::min(kTaskPositions, kTaskSums / columns));
        most_sums_ = std::max(most_sums_, ceil_div(positions, ranges) * columns);
        for (int64_t group = 0; group < g.groups; ++group)
          for (int64_t r = 0; r < ranges; ++r) tasks_.push_back({s, first, last, columns, group, r * positions / ranges, (r + 1) * positions / ranges});
      }
    }
    // Long tasks first: the last ones even out the threads.
    std::stable_sort(tasks_.begin(), tasks_.end(),
                     [&](const Task& a, const Task& b) { return panels_.sets()[a.set].phases.taps > panels_.sets()[b.set].phases.taps; });
  }

  int64_t tasks() const { return int64_t(tasks_.size()); }
  int64_t scratch_size() const { return most_sums_; }

  // Elements of a task's sums.
  int64_t sums(int64_t index) const {
    const Task& task = tasks_[size_t(index)];
    return (task.end - task.begin) * task.columns;
  }

  // The positions of a task, counted on from the first: four divisions for each position of each column tile were a tenth of nnunet_320_320_4. The image
  // runs fastest, so that a tile of a large batch holds one place and leaves out the taps that miss it. With one tap none does: there the image runs last, so
  // that neighbours of the target follow each other.
  std::vector<Place> places(int64_t index) const {
    const Task& task = tasks_[size_t(index)];
    const auto& [d, h, w] = extents_[task.set];
    const Place size{g_.batch, d, h, w};
    const std::array<size_t, 4> order = panels_.sets()[task.set].phases.taps > 1 ? std::array<size_t, 4>{0, 3, 2, 1} : std::array<size_t, 4>{3, 2, 1, 0};
    Place at{};
    int64_t rest = task.begin;
    for (size_t axis : order) at[axis] = rest % size[axis], rest /= size[axis];
    std::vector<Place> places(size_t(task.end - task.begin));
    for (Place& place : places) {
      place = at;
      for (size_t axis : order) {
        if (++at[axis] < size[axis]) break;
        at[axis] = 0;
      }
    }
    return places;
  }

  // c[position][column] = the products of all channels, or with `accumulate` += them.
  void multiply(int64_t index, const std::vector<Place>& places, bool accumulate, T* c) const {
    const Task& task = tasks_[size_t(index)];
    const PhaseSet& set = panels_.sets()[task.set].phases;
    const size_t tile_rows = size_t(shapes_[task.set].rows), taps = size_t(set.taps), tiles = ceil_div(places.size(), tile_rows);
    const size_t at_once = task.last - task.first == 1 ? 1 : std::clamp<size_t>(size_t(kTaskPointers) / std::max<size_t>(1, taps * tile_rows), 1, tiles);
    std::vector<Aim> aims(at_once);
    std::vector<const T*> pointers(taps * tile_rows * at_once);
    std::vector<int64_t> tap_of(taps * at_once), lane_offset(taps);
    for (int64_t channel = 0; channel < g_.channels; channel += panels_.chunk())
      for (size_t first = 0; first < tiles; first += at_once) {
        aims.resize(std::min(at_once, tiles - first));
        for (size_t i = 0; i < aims.size(); ++i) {
          const size_t at = (first + i) * tile_rows;
          aims[i] = {pointers.data() + i * taps * tile_rows, tap_of.data() + i * taps, int64_t(std::min(tile_rows, places.size() - at)), 0};
          aim_tile(aims[i], set.members[0], &places[at], task.group * rows_.group + channel);
        }
        multiply_tiles(task, aims, channel, lane_offset.data(), accumulate || channel > 0, c + int64_t(first * tile_rows) * task.columns);
      }
  }

  void store(int64_t index, const std::vector<Place>& places, const T* c) const {
    const Task& task = tasks_[size_t(index)];
    const PanelSet& set = panels_.sets()[task.set];
    const int64_t begin = set.tiles[task.first].begin, count = set.tiles[task.last - 1].begin + set.tiles[task.last - 1].count - begin;
    const Columns columns{task, set.phases, begin, count};
    std::vector<T> bias(size_t(count), T(0));
    ColumnWalk column(set.phases, begin, g_.columns);
    for (int64_t i = 0; g_.bias && i < count; ++i, column.next())
      k_.load_run(&bias[size_t(i)], 1, g_.bias->at((task.group * g_.columns + column.m()) * g_.bias->stride[0]), 1, 1, g_.bias->dtype);
    if (set.phases.channels_last)
      store_channels_last(columns, places, c, bias.data());
    else if (set.phases.members.size() > 1)
      store_by_position(columns, places, c, bias.data());
    else
      store_by_column(columns, places, c, bias.data());
  }

 private:
  struct Task {
    size_t set, first, last;  // tiles
    int64_t columns;          // of them together, padded
    int64_t group, begin, end;
  };

  static int64_t columns_of(const PanelSet& set, size_t first, size_t last) {
    return set.tiles[last - 1].start + set.tiles[last - 1].width - set.tiles[first].start;
  }

  // The rows of a tile: where each reads the taps that any of them has.
  struct Aim {
    const T** pointers;  // [segment][row]
    int64_t* taps;       // of each segment
    int64_t rows, segments;
  };

  void aim_tile(Aim& a, const Combo& combo, const Place* places, int64_t channel) const {
    for_each_tap(combo, [&](int64_t tap, const Tap& d, const Tap& h, const Tap& w) {
      if (aim(a.pointers + a.segments * a.rows, places, a.rows, channel, d, h, w)) a.taps[a.segments++] = tap;
    });
  }

  // The column tiles of a task, one after the other, for the rows that `aims` tell. `lane_offset`: room for those of a tile's segments.
  void multiply_tiles(const Task& task, const std::vector<Aim>& aims, int64_t channel, int64_t* lane_offset, bool accumulate, T* c) const {
    const PanelSet& set = panels_.sets()[task.set];
    const int64_t channels = std::min(panels_.chunk(), g_.channels - channel);
    for (size_t t = task.first; t < task.last; ++t) {
      const int64_t width = set.tiles[t].width;
      PointerTile<T> job;
      job.lanes = panels_.template at<T>(set, task.group, set.tiles[t], channel);
      job.lane_offset = lane_offset;
      job.steps = channels;
      job.row_step = 1;
      job.lane_step = width;
      job.c = c + set.tiles[t].start - set.tiles[task.first].start;
      job.ldc = task.columns;
      job.accumulate = accumulate;
      for (const Aim& a : aims) {
        for (int64_t s = 0; s < a.segments; ++s) lane_offset[s] = a.taps[s] * channels * width;
        job.rows = a.pointers;
        job.segments = a.segments;
        k_.pointer[width / k_.lanes][a.rows](job);
        job.c += a.rows * task.columns;
      }
    }
  }

  // Source rows of `rows` positions for one tap; false where none of them exists.
  bool aim(const T** to, const Place* places, int64_t rows, int64_t channel, const Tap& d, const Tap& h, const Tap& w) const {
    const AxisPlan &ad = g_.axis[0], &ah = g_.axis[1], &aw = g_.axis[2];
    const auto row = [&](const Place& at) -> const T* {
      const int64_t id = (at[1] + d.offset) * ad.source_step + d.source_phase, ih = (at[2] + h.offset) * ah.source_step + h.source_phase,
                    iw = (at[3] + w.offset) * aw.source_step + w.source_phase;
      const bool inside = id >= 0 && id < ad.source_size && ih >= 0 && ih < ah.source_size && iw >= 0 && iw < aw.source_size;
      return inside ? rows_.data + at[0] * rows_.image + id * rows_.depth + ih * rows_.row + iw * rows_.position + channel : nullptr;
    };
    // Where images run fastest, most tiles of a large batch hold one place, which one look settles (3dgan_l1 34 to 31 ms).
    const Place &first = places[0], &last = places[rows - 1];
    const bool one_place = last[0] - first[0] == rows - 1 && std::equal(first.begin() + 1, first.end(), last.begin() + 1);
    if (one_place && !row(places[0])) return false;
    bool any = false;
    for (int64_t r = 0; r < rows; ++r) {
      const T* const found = row(places[r]);
      to[r] = found ? found : zeros_.data();
      any = any || found;
    }
    return any;
  }

  // The columns of a task that are stored.
  struct Columns {
    const Task& task;
    const PhaseSet& set;
    int64_t begin, count;
  };

  // Where each goes from a position's place in the target, and up to which position of each axis all of them exist.
  std::array<int64_t, 3> aim_columns(const Columns& stored, int64_t* offset) const {
    std::array<int64_t, 3> shortest = extents_[stored.task.set];
    ColumnWalk column(stored.set, stored.begin, g_.columns);
    for (int64_t i = 0; i < stored.count; ++i, column.next()) {
      offset[i] = (stored.task.group * g_.columns + column.m()) * g_.target.stride[1] + first_of(column.phase());
      for (size_t a = 0; a < 3; ++a) shortest[a] = std::min(shortest[a], column.phase()[a]->count);
    }
    return shortest;
  }

  int64_t first_of(const Combo& combo) const {
    return combo[0]->first * g_.target.stride[2] + combo[1]->first * g_.target.stride[3] + combo[2]->first * g_.target.stride[4];
  }

  // In the target, from a phase's first element.
  int64_t target_of(const Place& at) const {
    int64_t to = at[0] * g_.target.stride[0];
    for (size_t a = 0; a < 3; ++a) to += at[a + 1] * g_.axis[a].target_step * g_.target.stride[a + 2];
    return to;
  }

  static bool is_inside(const Place& at, const std::array<int64_t, 3>& end) { return at[1] < end[0] && at[2] < end[1] && at[3] < end[2]; }
  static std::array<int64_t, 3> end_of(const Combo& combo) { return {combo[0]->count, combo[1]->count, combo[2]->count}; }

  // A position past the end of some phases.
  void store_one_by_one(const Columns& stored, const Place& at, const int64_t* offset, const T* row, const T* bias) const {
    void* const to = g_.target.at(target_of(at));
    ColumnWalk column(stored.set, stored.begin, g_.columns);
    for (int64_t i = 0; i < stored.count; ++i, column.next())
      if (is_inside(at, end_of(column.phase()))) k_.store_columns(to, offset + i, true, row + i, bias + i, 1, g_.target.dtype);
  }

  // Several phases in a row of the tile: a position's targets are neighbours and written together.
  void store_by_position(const Columns& stored, const std::vector<Place>& places, const T* c, const T* bias) const {
    std::vector<int64_t> offset(static_cast<size_t>(stored.count));
    const std::array<int64_t, 3> shortest = aim_columns(stored, offset.data());
    bool contiguous = true;
    for (size_t i = 1; i < offset.size(); ++i) contiguous = contiguous && offset[i] == offset[0] + int64_t(i);
    for (const Place& at : places) {
      if (is_inside(at, shortest))
        k_.store_columns(g_.target.at(target_of(at)), offset.data(), contiguous, c, bias, stored.count, g_.target.dtype);
      else
        store_one_by_one(stored, at, offset.data(), c, bias);
      c += stored.task.columns;
    }
  }

  // Channels last: run after run of columns that are neighbours in the target, each for the positions that lie equally far apart.
  void store_channels_last(const Columns& stored, const std::vector<Place>& places, const T* c, const T* bias) const {
    std::vector<int64_t> offset(static_cast<size_t>(stored.count)), to;
    std::vector<const T*> rows;
    const std::array<int64_t, 3> shortest = aim_columns(stored, offset.data());
    for (const Place& at : places) {
      if (is_inside(at, shortest)) {
        to.push_back(target_of(at));
        rows.push_back(c);
      } else {
        store_one_by_one(stored, at, offset.data(), c, bias);
      }
      c += stored.task.columns;
    }
    for (int64_t i = 0, end; i < stored.count; i = end) {
      for (end = i + 1; end < stored.count && offset[size_t(end)] == offset[size_t(end - 1)] + 1;) ++end;
      for (size_t p = 0, last; p < to.size(); p = last) {
        const int64_t step = p + 1 < to.size() ? to[p + 1] - to[p] : 0;
        for (last = p + 1; last < to.size() && to[last] - to[last - 1] == step && rows[last] - rows[last - 1] == stored.task.columns;) ++last;
        k_.store_lanes(
            {static_cast<T*>(g_.target.at(to[p] + offset[size_t(i)])), step, rows[p] + i, stored.task.columns, bias + i, end - i, int64_t(last - p), stream_});
      }
    }
  }

  // One phase to channels that lie apart: channel by channel, positions past the phase's end left out.
  void store_by_column(const Columns& stored, const std::vector<Place>& places, const T* c, const T* bias) const {
    const Combo& combo = stored.set.members[0];
    std::vector<int64_t> offset, from;
    for (size_t p = 0; p < places.size(); ++p) {
      if (!is_inside(places[p], end_of(combo))) continue;
      offset.push_back(first_of(combo) + target_of(places[p]));
      from.push_back(int64_t(p));
    }
    for (int64_t i = 0; i < stored.count; ++i)
      k_.store_scattered(g_.target.at((stored.task.group * g_.columns + stored.begin + i) * g_.target.stride[1]), offset.data(), c + i, from.data(),
                         stored.task.columns, int64_t(from.size()), bias[i], g_.target.dtype);
  }

  const Gather& g_;
  const Panels& panels_;
  const std::vector<TileShape>& shapes_;
  const Rows<T>& rows_;
  const TileKernels<T>& k_;
  std::vector<T> zeros_;
  const bool stream_;
  std::vector<Task> tasks_;
  std::vector<std::array<int64_t, 3>> extents_;  // of each set, in positions
  int64_t most_sums_ = 0;
};

template <class T>
void copy_rows(const Gather& g, const TileKernels<T>& k, T* to, const Options& options) {
  const View& s = g.source;
  const int64_t channels = g.groups * g.channels, width = g.axis[2].source_size, height = g.axis[1].source_size;
  const int64_t at_once = rows_at_once(s, width, height), pieces = ceil_div(height, at_once), planes = g.batch * g.axis[0].source_size;
  const auto copy = [&](int64_t task, int) {
    const int64_t h = task % pieces * at_once, plane = task / pieces, d = plane % g.axis[0].source_size, image = plane / g.axis[0].source_size;
    k.pack_positions(to + (plane * height + h) * width * channels, channels, s.at(image * s.stride[0] + d * s.stride[2] + h * s.stride[3]), s.stride[1],
                     channels, s.stride[4], std::min(at_once, height - h) * width, s.dtype);
  };
  parallel_for(planes * pieces, planes * height * width * channels < 65536 ? 1 : options.threads, copy, options.stop);
}

// The sets with the column tiles of one slab of several.
std::vector<PanelSet> part_of(std::vector<PanelSet> sets, int64_t slab, int64_t slabs) {
  for (PanelSet& set : sets) set.tiles = slab_of(set.tiles, slab, slabs);
  return sets;
}

// One thread packs the weights of a chunk of channels and uses them at once, from its caches, while all sums wait.
template <class T>
void run_by_chunk(const Gather& g, const std::vector<PanelSet>& sets, const std::vector<TileShape>& shapes, const Rows<T>& all, const Kernels& kernels,
                  int64_t chunk) {
  const Options alone;
  std::unique_ptr<Scratch> sums;
  for (int64_t channel = 0; channel < g.channels; channel += chunk) {
    Gather part = g;
    part.channels = std::min(chunk, g.channels - channel);
    part.weight.data = g.weight.at(channel * g.weight_channel);
    Rows<T> rows = all;
    rows.data += channel;
    Panels panels(part, sets, chunk);
    panels.fill<T>(alone, kernels);
    const ChannelsRun<T> run(part, panels, shapes, rows, kernels, alone.threads);
    if (!sums) {
      int64_t size = 0;
      for (int64_t task = 0; task < run.tasks(); ++task) size += run.sums(task);
      sums = std::make_unique<Scratch>(size_t(size) * sizeof(T));
    }
    T* c = reinterpret_cast<T*>(sums->data());
    for (int64_t task = 0; task < run.tasks(); c += run.sums(task++)) {
      const std::vector<Place> places = run.places(task);
      run.multiply(task, places, channel > 0, c);
      if (channel + chunk >= g.channels) run.store(task, places, c);
    }
  }
}

template <class T>
class ChannelsPlan : public Plan {
 public:
  std::vector<PhaseSet> sets;  // of the axes that the plan was made for, which live as long
  std::vector<TileShape> shapes;

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    std::string text = "direct, channels on the lanes: tiles of positions x vectors";
    for (const TileShape& shape : shapes) text += (&shape == &shapes[0] ? " " : ", ") + by({shape.rows, shape.vectors});
    return text;
  }
};

template <class T>
void ChannelsPlan<T>::run(const Gather& g, const Options& options, const Kernels& kernels, int64_t chunk) const {
  const TileKernels<T>& k = tiles<T>(kernels);
  std::vector<PanelSet> panel_sets;
  int64_t elements = 0, sum_elements = 0, most_tiles = 1;
  for (const PhaseSet& set : sets) {
    const int64_t columns = int64_t(set.members.size()) * g.columns;
    const int64_t width = shapes[panel_sets.size()].vectors * k.lanes;
    panel_sets.push_back(panel_set(set, cut_columns(columns, ceil_div(columns, width), k.lanes)));
    elements += g.groups * panel_sets.back().padded_columns() * g.channels * set.taps;
    sum_elements += g.batch * g.groups * volume(set_positions(set)) * panel_sets.back().padded_columns();
    most_tiles = std::max(most_tiles, int64_t(panel_sets.back().tiles.size()));
  }

  const View& s = g.source;
  Rows<T> rows{static_cast<const T*>(s.data), s.stride[0], s.stride[2], s.stride[3], s.stride[4], g.channels};
  std::unique_ptr<Scratch> copy;
  if (!is_rows<T>(s)) {
    const int64_t position = g.groups * g.channels, row = position * g.axis[2].source_size, depth = row * g.axis[1].source_size;
    copy = std::make_unique<Scratch>(size_t(source_positions(g) * position) * sizeof(T));
    T* to = reinterpret_cast<T*>(copy->data());
    copy_rows<T>(g, k, to, options);
    rows = {to, depth * g.axis[0].source_size, depth, row, position, g.channels};
  }

  const int64_t bytes = elements * int64_t(sizeof(T));
  const auto slabs_of = [&](int64_t slab_bytes) { return options.packed ? 1 : std::clamp<int64_t>(ceil_div(bytes, slab_bytes), 1, most_tiles); };
  const auto run_slab = [&](int64_t slab, int64_t slabs, const Options& with) {
    Panels panels(g, part_of(panel_sets, slab, slabs), chunk);
    panels.fill<T>(with, kernels);
    const ChannelsRun<T> run(g, panels, shapes, rows, kernels, with.threads);
    run_tasks<T>(run.tasks(), run.scratch_size(), with, [&](int64_t task, T* sums) {
      const std::vector<Place> places = run.places(task);
      run.multiply(task, places, false, sums);
      run.store(task, places, sums);
    });
  };
  // Best in the second-level cache of the thread that packs them (input gradient of 3dgan_l1, two threads: 10 to 7 ms), where column tiles are large by chunks
  // of channels (pix2vox_l1, not prepared: 43 to 32 ms), else shared; so are rows that are turned, whose lines each slab would read again.
  const int64_t slabs = slabs_of(int64_t(cache_bytes()) / 2);
  const bool by_chunk =
      g.channels > chunk && bytes / slabs > int64_t(cache_bytes()) / 2 && sum_elements / slabs * int64_t(sizeof(T)) <= int64_t(cache_bytes()) / 4;
  const bool turned = std::any_of(sets.begin(), sets.end(), [](const PhaseSet& set) { return set.turned(); });
  if (!turned && slabs >= 2 * options.threads && (by_chunk || bytes / slabs <= kSlabBytes)) {
    const Options alone;
    const auto pack_and_run = [&](int64_t slab, int) {
      if (by_chunk)
        run_by_chunk<T>(g, part_of(panel_sets, slab, slabs), shapes, rows, kernels, chunk);
      else
        run_slab(slab, slabs, alone);
    };
    parallel_for(slabs, options.threads, pack_and_run, options.stop);
  } else {
    const int64_t shared = slabs_of(kSlabBytes);
    for (int64_t slab = 0; slab < shared; ++slab) run_slab(slab, shared, options);
  }
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_channels(const Gather& g, const PlanContext& context) {
  auto plan = std::make_unique<ChannelsPlan<T>>();
  const TileKernels<T>& k = tiles<T>(context.kernels);
  const double source = double(source_positions(g)) * double(g.groups * g.channels);
  // The copy moves whole vectors of positions.
  const int64_t width = g.axis[2].source_size;
  const double copied =
      kTransposedElement * double(ceil_div(width, k.lanes) * k.lanes) / double(width) + (source * sizeof(T) > kThirdLevelBytes ? kFarElement : 0);
  double cycles = context.source_is_rows ? 0 : source * copied;
  int64_t tasks = 0;
  plan->sets = phase_sets(g, context.target_is_rows);
  for (const PhaseSet& set : plan->sets) {
    const int64_t columns = int64_t(set.members.size()) * g.columns, positions = g.batch * volume(set_positions(set));
    const TileShape shape = tile_shape<T>(k, columns, positions, read_cycles<T>(source));
    const int64_t column_tiles = ceil_div(columns, shape.vectors * k.lanes);
    const double segments = double(set.taps * ceil_div(g.channels, context.chunk));
    const double setup = segments * (4 + kSegmentStart / double(shape.rows)) + kTileCall / double(shape.rows);
    double stored = kScatteredElement * double(columns);
    if (set.channels_last && g.groups == 1)
      stored = kStoredLane * double(columns) + kStoredRun * std::ceil(double(set.members.size()) / double(g.axis[2].phases.size()));
    else if (set.members.size() > 1)
      stored += kStoredPosition * double(column_tiles);
    cycles += double(g.groups * positions) * (double(set.taps * g.channels) * shape.cycles + setup * double(column_tiles) + stored);
    tasks += g.groups * column_tiles * ceil_div(positions, kTaskPositions);
    plan->shapes.push_back(shape);
  }
  // A copy of a large source would break the promise of little memory; the other families need none.
  if (context.source_is_rows || source * sizeof(T) <= double(kMaxCopiedBytes)) plan->cycles = kPointerFactor * parallel_cycles(cycles, tasks, context.threads);
  return plan;
}

template std::unique_ptr<Plan> plan_channels<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_channels<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
