// SPDX-License-Identifier: Apache-2.0
#include "region.h"

#include <cstring>

namespace tconv3d {

namespace {

// Only in whole lines: rows that share a line cost more than they save (63-wide rows: 3 times slower).
bool streams(const Gather& g) {
  const View& t = g.target;
  bool lines = t.stride[4] == 1 && uintptr_t(t.data) % 64 == 0;
  for (size_t a = 0; a < 4; ++a) lines = lines && t.stride[a] * t.element_size() % 64 == 0;
  return lines && outgrows_caches(g);
}

// Are rows stored whole, or in parts of whole lines?
bool are_lines(const Gather& g, int64_t positions) {
  return positions >= g.axis[2].positions || positions * g.axis[2].target_step * g.target.element_size() % 64 == 0;
}

constexpr int64_t kStackPhases = 16;

// Rows of more than one channel.
template <class T>
bool channels_last(const View& v) {
  return is_rows<T>(v) && v.stride[4] != 1;
}

}  // namespace

Work work_of(const Gather& g) {
  Work w{1, 1, int64_t(g.axis[2].phases.size())};
  for (const AxisPlan& a : g.axis) {
    int64_t taps = 0;
    for (const Phase& p : a.phases) taps += int64_t(p.taps.size());
    w.taps *= taps;
    w.combos *= int64_t(a.phases.size());
  }
  return w;
}

double packing_cycles(const Gather& g, const RegionPlan& p) {
  const double segments = double(int64_t(p.packing[2].segments.size()) * p.packing[0].length(p.block[0]) * g.channels);
  const double rows_packed = segments * double(p.packing[1].length(p.block[1])), planes_packed = segments * double(p.packing[1].segments.size());
  return kTaskCall + rows_packed * (kRowCall + kPackedElement * double(p.pitch) * double(g.axis[2].source_step)) + planes_packed * kPlaneCall;
}

double transfer_cycles(const Gather& g, const Work& work, const RegionPlan& p) {
  const double phases = double(work.combos / work.row_phases), planes_stored = phases * double(p.block[0] * g.columns);
  const double rows = kRowCall + kPackedElement * double(p.block[2] * work.row_phases) * (g.axis[2].target_step > 4 ? 4 : 1);
  return packing_cycles(g, p) + phases * double(p.runs()) * kStoreCall + planes_stored * (kPlaneCall + double(p.block[1]) * rows);
}

std::array<std::vector<int64_t>, 3> block_sizes(const Gather& g, int64_t lanes) {
  std::array<std::vector<int64_t>, 3> sizes;
  for (size_t a = 0; a < 3; ++a) {
    const int64_t n = g.axis[a].positions;
    // Equal parts, so that the last block is not a sliver; short widths only where the axis is short.
    for (int64_t parts = 1; parts <= n; parts = parts < 4 ? parts + 1 : parts * 3 / 2) {
      const int64_t size = ceil_div(n, parts);
      if (a == 2 && parts > 1 && size < 4 * lanes) break;
      if (sizes[a].empty() || sizes[a].back() != size) sizes[a].push_back(size);
    }
  }
  return sizes;
}

template <class T>
void lay_out(RegionPlan& p, const Gather& g, const TileKernels<T>& k) {
  for (size_t a = 0; a < 3; ++a) {
    p.packing[a] = axis_packing(g.axis[a], p.block[a], a == 2 && p.taps_apart);
    p.blocks[a] = ceil_div(g.axis[a].positions, p.block[a]);
  }
  p.pitch = p.packing[2].longest(p.block[2]);
  const int64_t depth = p.packing[0].length(p.block[0]), rows = p.packing[1].length(p.block[1]), plane = rows * p.pitch;
  p.row_stride = p.pitch;
  if (p.flat_depth) {
    p.depth_stride = plane;
    p.channel_stride = odd_lines<T>(depth * plane);
    p.segment_stride = p.channels * p.channel_stride;
  } else if (p.rows_apart) {
    p.channel_stride = p.pitch;
    p.row_stride = odd_lines<T>(p.channels * p.pitch);
    p.depth_stride = rows * p.row_stride;
    p.segment_stride = depth * p.depth_stride;
  } else {
    p.channel_stride = odd_lines<T>(plane);
    p.depth_stride = p.channels * p.channel_stride;
    p.segment_stride = depth * p.depth_stride;
  }
  p.size = int64_t(p.packing[2].segments.size()) * p.segment_stride + slack(k);
  p.run = (p.block[1] - 1) * p.pitch + p.block[2] + (p.flat_depth ? (p.block[0] - 1) * p.depth_stride : 0);
}

template <class T>
Region<T>::Region(const Gather& g, const RegionPlan& p, const TileKernels<T>& k)
    : g_(g), p_(p), k_(k), source_(g), stream_(streams(g) && are_lines(g, p.block[2])) {}

template <class T>
Block Region<T>::block(int64_t task) const {
  Block b;
  for (size_t a = 3; a-- > 0;) {
    b.from[a] = task % p_.blocks[a] * p_.block[a];
    b.size[a] = std::min(p_.block[a], g_.axis[a].positions - b.from[a]);
    task /= p_.blocks[a];
  }
  b.group = task % g_.groups;
  b.image = task / g_.groups;
  return b;
}

template <class T>
int64_t Region<T>::tap_offset(const Tap& d, const Tap& h, const Tap& w) const {
  const auto place = [&](size_t a, const Tap& t) {
    const auto [segment, at] = p_.packing[a].place(t);
    int64_t start = 0;
    for (int64_t s = 0; s < segment; ++s) start += p_.block[a] + p_.packing[a].segments[size_t(s)].extra;
    return start + at;
  };
  const auto [segment, at] = p_.packing[2].place(w);
  return segment * p_.segment_stride + place(0, d) * p_.depth_stride + place(1, h) * p_.row_stride + at;
}

template <class T>
std::vector<int64_t> Region<T>::tap_offsets(const Combo& combo) const {
  std::vector<int64_t> offsets;
  for_each_tap(combo, [&](int64_t, const Tap& d, const Tap& h, const Tap& w) { offsets.push_back(tap_offset(d, h, w)); });
  return offsets;
}

Inside inside(const Segment& s, const AxisPlan& axis, int64_t from, int64_t length) {
  const int64_t first = from + s.offset, last = floor_div(axis.source_size - 1 - s.phase, axis.source_step);
  const int64_t begin = std::clamp<int64_t>(-first, 0, length), end = std::clamp<int64_t>(last - first + 1, begin, length);
  if (begin == end) return {begin, end, 0};  // a tap that misses the image may lie farther away than an address can say
  return {begin, end, (first + begin) * axis.source_step + s.phase};
}

// f(segment index, packed start, length, what is inside)
template <class T>
template <class F>
void Region<T>::for_each_segment(size_t a, const Block& b, F f) const {
  int64_t start = 0;
  for (size_t s = 0; s < p_.packing[a].segments.size(); ++s) {
    const Segment& segment = p_.packing[a].segments[s];
    const int64_t length = a == 2 ? p_.pitch : p_.block[a] + segment.extra;
    f(int64_t(s), start, length, inside(segment, g_.axis[a], b.from[a], length));
    start += length;
  }
}

// Rows of all channels at once, by transpositions: channel by channel, every element would be moved alone.
template <class T>
void Region<T>::pack_channels_last(const Block& b, int64_t channel, T* region) const {
  const View& source = g_.source;
  const int64_t origin = b.image * source.stride[0] + b.group * g_.channels + channel, channels = packed_channels(channel);
  std::memset(static_cast<void*>(region), 0, size_t(p_.size) * sizeof(T));
  for_each_segment(2, b, [&](int64_t segment, int64_t, int64_t, const Inside& w) {
    for_each_segment(0, b, [&](int64_t, int64_t depth_start, int64_t, const Inside& d) {
      for_each_segment(1, b, [&](int64_t, int64_t row_start, int64_t, const Inside& h) {
        for (int64_t t = d.begin; t < d.end; ++t)
          for (int64_t r = h.begin; r < h.end; ++r) {
            T* const to = region + segment * p_.segment_stride + (depth_start + t) * p_.depth_stride + (row_start + r) * p_.row_stride + w.begin;
            const int64_t from = (d.source + (t - d.begin) * g_.axis[0].source_step) * source.stride[2] +
                                 (h.source + (r - h.begin) * g_.axis[1].source_step) * source.stride[3] + w.source * source.stride[4];
            k_.pack_positions(to, p_.channel_stride, source.at(origin + from), g_.axis[2].source_step * source.stride[4], w.end - w.begin, 1, channels,
                              source.dtype);
          }
      });
    });
  });
}

template <class T>
void Region<T>::clear_rows(T* to, int64_t rows) const {
  if (p_.row_stride == p_.pitch) {
    std::memset(static_cast<void*>(to), 0, size_t(rows * p_.pitch) * sizeof(T));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) std::memset(static_cast<void*>(to + r * p_.row_stride), 0, size_t(p_.pitch) * sizeof(T));
}

// The segments along w in the order of their first samples, those that take turns together.
template <class T>
std::vector<typename Region<T>::TurnRows> Region<T>::turn_rows(const Block& b) const {
  std::vector<TurnRows> rows;
  for_each_segment(2, b, [&](int64_t segment, int64_t, int64_t, const Inside& w) { rows.push_back({1, {segment}, {w}}); });
  const int64_t step = g_.axis[2].source_step;
  if (step < 2 || step > kMaxTurns || g_.source.stride[4] != 1 || g_.source.element_size() != int64_t(sizeof(T))) return rows;
  const auto source = [](const TurnRows& r) { return r.inside[0].source; };
  std::stable_sort(rows.begin(), rows.end(), [&](const TurnRows& r, const TurnRows& s) { return source(r) < source(s); });
  size_t last = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    TurnRows& r = rows[last];
    const Inside& w = rows[i].inside[0];
    if (r.phases < step && w.source == source(r) + r.phases && w.begin < w.end && r.inside[0].begin < r.inside[0].end) {
      r.segment[size_t(r.phases)] = rows[i].segment[0];
      r.inside[size_t(r.phases++)] = w;
    } else {
      rows[++last] = rows[i];
    }
  }
  rows.resize(std::min(rows.size(), last + 1));
  return rows;
}

// Rows of one channel and plane between rows and columns of zeros.
template <class T>
void Region<T>::pack_plane(T* to, const TurnRows& p, bool outside, int64_t rows, const Inside& h, const void* from) const {
  const View& source = g_.source;
  const int64_t above = outside || p.inside[0].begin == p.inside[0].end || h.begin == h.end ? rows : h.begin;
  const auto clear = [&](int64_t row, int64_t count) {
    for (int64_t f = 0; count > 0 && f < p.phases; ++f) clear_rows(to + p.segment[size_t(f)] * p_.segment_stride + row * p_.row_stride, count);
  };
  clear(0, above);
  if (above == rows) return;
  RowsLoad<T> job;
  for (int64_t f = 0; f < p.phases; ++f) {
    const Inside& w = p.inside[size_t(f)];
    job.phase[f] = {to + p.segment[size_t(f)] * p_.segment_stride + above * p_.row_stride, w.begin, w.end - w.begin};
  }
  job.phases = p.phases;
  job.pitch = p_.row_stride;
  job.width = p_.pitch;
  job.src = from;
  job.row_stride = g_.axis[1].source_step * source.stride[3];
  job.stride = g_.axis[2].source_step * source.stride[4];
  job.rows = h.end - h.begin;
  // What is packed next: another channel's plane, or where each is packed alone the next plane (input gradients of depthwise layers 1.11 in the mean).
  job.ahead = p_.channels > 1 ? source.stride[1] : g_.axis[0].source_step * source.stride[2];
  job.begin = source_.begin;
  job.end = source_.end;
  k_.load_rows(job, source.dtype);
  clear(h.end, rows - h.end);
}

template <class T>
void Region<T>::pack(const Block& b, int64_t channel, T* region) const {
  if (channels_last<T>(g_.source) && g_.channels >= k_.lanes) {
    pack_channels_last(b, channel, region);
    return;
  }
  const View& source = g_.source;
  const int64_t origin = b.image * source.stride[0] + (b.group * g_.channels + channel) * source.stride[1], channels = packed_channels(channel);
  const std::vector<TurnRows> phases = turn_rows(b);  // one after the other for each plane: the first ones fetch the rows for all
  for_each_segment(0, b, [&](int64_t, int64_t depth_start, int64_t depth, const Inside& d) {
    for_each_segment(1, b, [&](int64_t, int64_t row_start, int64_t rows, const Inside& h) {
      for (int64_t t = 0; t < depth; ++t) {
        const int64_t plane = (d.source + (t - d.begin) * g_.axis[0].source_step) * source.stride[2] + h.source * source.stride[3];
        for (int64_t c = 0; c < channels; ++c) {
          T* const to = region + (depth_start + t) * p_.depth_stride + c * p_.channel_stride + row_start * p_.row_stride;
          const int64_t from = origin + c * source.stride[1] + plane;
          for (const TurnRows& p : phases) pack_plane(to, p, t < d.begin || t >= d.end, rows, h, source.at(from + p.inside[0].source * source.stride[4]));
        }
      }
    });
  });
  std::memset(region + p_.size - slack(k_), 0, size_t(slack(k_)) * sizeof(T));
}

template <class T>
void Region<T>::store(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t column_stride,
                      int64_t phase_stride) const {
  if (columns > 1 && channels_last<T>(g_.target))
    store_positions(b, d, h, channel, columns, run, c, column_stride, phase_stride, 1, k_.store_positions);
  else
    store_rows(b, d, h, channel, columns, run, c, column_stride, phase_stride);
}

template <class T>
void Region<T>::store_positions(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t ld,
                                int64_t phase_stride, int64_t position_stride, void (*store)(const PositionStore<T>&)) const {
  std::vector<T> bias(size_t(columns), T(0));
  if (g_.bias) k_.load_run(bias.data(), 1, g_.bias->at(channel * g_.bias->stride[0]), g_.bias->stride[0], columns, g_.bias->dtype);
  const View& target = g_.target;
  const AxisPlan &ad = g_.axis[0], &ah = g_.axis[1], &aw = g_.axis[2];
  const int64_t planes = p_.flat_depth ? b.size[0] : 1;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t jd = b.from[0] + (p_.flat_depth ? plane : run);
    if (jd < d.begin || jd >= d.count) continue;
    for (int64_t row = 0; row < b.size[1]; ++row) {
      const int64_t jh = b.from[1] + row;
      if (jh < h.begin || jh >= h.count) continue;
      for (size_t f = 0; f < aw.phases.size(); ++f) {
        const Phase& w = aw.phases[f];
        const int64_t skip = std::max<int64_t>(0, w.begin - b.from[2]), n = std::min(b.size[2], w.count - b.from[2]) - skip;
        if (n <= 0) continue;
        const int64_t to = b.image * target.stride[0] + channel + (d.first + jd * ad.target_step) * target.stride[2] +
                           (h.first + jh * ah.target_step) * target.stride[3] + (w.first + (b.from[2] + skip) * aw.target_step) * target.stride[4];
        const T* const from = c + int64_t(f) * phase_stride + (plane * p_.depth_stride + row * p_.pitch + skip) * position_stride;
        store({static_cast<T*>(target.at(to)), aw.target_step * target.stride[4], from, ld, bias.data(), columns, n});
      }
    }
  }
}

template <class T>
void Region<T>::store_rows(const Block& b, const Phase& d, const Phase& h, int64_t channel, int64_t columns, int64_t run, const T* c, int64_t column_stride,
                           int64_t phase_stride) const {
  const std::vector<Phase>& phases = g_.axis[2].phases;
  const size_t n = phases.size();
  int64_t firsts[kStackPhases], counts[kStackPhases], skipped[kStackPhases];
  const T* rows[kStackPhases];
  std::vector<int64_t> more;
  std::vector<const T*> more_rows;
  int64_t *first = firsts, *count = counts, *skip = skipped;
  const T** row_of = rows;
  if (n > size_t(kStackPhases)) {
    more.resize(3 * n);
    more_rows.resize(n);
    first = more.data(), count = first + n, skip = count + n, row_of = more_rows.data();
  }
  const View& target = g_.target;
  const int64_t step = g_.axis[2].target_step;
  for (size_t f = 0; f < n; ++f) {
    skip[f] = std::max<int64_t>(0, phases[f].begin - b.from[2]);
    first[f] = phases[f].first + (b.from[2] + skip[f]) * step;
    count[f] = std::max<int64_t>(0, std::min(b.size[2], phases[f].count - b.from[2]) - skip[f]);
  }
  const int64_t begin = std::max<int64_t>(0, h.begin - b.from[1]), end = std::min(b.size[1], h.count - b.from[1]);
  if (begin >= end) return;
  RowStore<T> job;  // not in braces: GCC would clear all of it first, by an instruction of some 30 cycles
  job.out_stride = target.stride[4];
  job.row_stride = g_.axis[1].target_step * target.stride[3];
  job.c = row_of;
  job.c_row_stride = p_.pitch;
  job.first = first;
  job.count = count;
  job.phases = int64_t(n);
  job.step = step;
  job.rows = end - begin;
  job.bias = 0;
  job.stream = stream_;
  const int64_t origin = b.image * target.stride[0] + (h.first + (b.from[1] + begin) * g_.axis[1].target_step) * target.stride[3];
  const int64_t planes = p_.flat_depth ? b.size[0] : 1;
  for (int64_t m = 0; m < columns; ++m) {
    if (g_.bias) k_.load_run(&job.bias, 1, g_.bias->at((channel + m) * g_.bias->stride[0]), 1, 1, g_.bias->dtype);
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int64_t jd = b.from[0] + (p_.flat_depth ? plane : run);
      if (jd < d.begin || jd >= d.count) continue;
      for (size_t f = 0; f < n; ++f) row_of[f] = c + m * column_stride + int64_t(f) * phase_stride + plane * p_.depth_stride + begin * p_.pitch + skip[f];
      job.out = target.at(origin + (channel + m) * target.stride[1] + (d.first + jd * g_.axis[0].target_step) * target.stride[2]);
      // Rows are short, and the hardware fetches none before they are stored: with an output of 2 MiB out of the caches, 0.64 ms for 0.55 (page_example_1).
      job.ahead = m + 1 < columns && !stream_ ? target.stride[1] : 0;
      k_.store_rows(job, target.dtype);
    }
  }
}

template void lay_out<float>(RegionPlan&, const Gather&, const TileKernels<float>&);
template void lay_out<double>(RegionPlan&, const Gather&, const TileKernels<double>&);
template class Region<float>;
template class Region<double>;

}  // namespace tconv3d
