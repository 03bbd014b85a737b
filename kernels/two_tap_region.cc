// SPDX-License-Identifier: Apache-2.0
#include "two_tap_region.h"

#include <cstring>

namespace tconv3d {

namespace {

// `before`: the sample before a pair's middle.
PairKind pair_kind(const Kind& kind, int64_t before) {
  const int64_t at = kind.at - before;
  if (kind.sign == 0) return at == 0 ? kPrevious : at == 1 ? kSample : kNext;
  if (kind.sign > 0) return kSum;
  return at == 3 ? kBeyond : at == 2 ? kAfter : kind.other == before + 1 ? kBefore : kOuter;
}

}  // namespace

template <class T>
TwoTapRegion<T>::TwoTapRegion(const Gather& g, const TransformedAxes& axes, const std::array<int64_t, 3>& block, const TileKernels<T>& k)
    : g_(g), axes_(axes), k_(k), source_(g) {
  for (size_t a = 0; a < 3; ++a) {
    const TransformedAxis& axis = axes[a];
    length_[a] = block[a] + axis.most_shift - axis.least_shift;
    for (const auto& [phase, middle] : axis.parity) sources_[a].push_back({phase, axis.step == 2 ? middle - 1 : 0, axis.samples(length_[a])});
    for (const Source& s : sources_[a]) samples_[a] += s.count;
  }
  channel_stride_ = odd_lines<T>(length_[0] * length_[1] * length_[2]);
  kind_stride_ = g.channels * channel_stride_;
  raw_pitch_ = axes[2].samples(length_[2]);
  raw_size_ = axes[2].step == 2 ? odd_lines<T>(axes[1].samples(length_[1]) * raw_pitch_) + slack(k) : 0;
  rows_size_ = odd_lines<T>(samples_[1] * kinds(2) * length_[2]) + slack(k);
  planes_size_ = odd_lines<T>(samples_[0] * kinds(1) * kinds(2) * plane()) + slack(k);
}

template <class T>
size_t TwoTapRegion<T>::source_of(size_t a, const Kind& kind) const {
  size_t s = 0;
  while (sources_[a][s].phase != kind.source_phase) ++s;
  return s;
}

template <class T>
int64_t TwoTapRegion<T>::offset(const Product::Term& d, const Product::Term& h, const Product::Term& w) const {
  const int64_t kind = (int64_t(d.kind) * kinds(1) + int64_t(h.kind)) * kinds(2) + int64_t(w.kind);
  return kind * kind_stride_ + (d.shift - axes_[0].least_shift) * plane() + (h.shift - axes_[1].least_shift) * pitch() + w.shift - axes_[2].least_shift;
}

template <class T>
typename TwoTapRegion<T>::Span TwoTapRegion<T>::span(size_t a, const Source& s, int64_t from) const {
  const AxisPlan& axis = axes_[a].plan;
  const int64_t first = axes_[a].step * (from + axes_[a].least_shift) + s.at, last = floor_div(axis.source_size - 1 - s.phase, axis.source_step);
  const int64_t begin = std::clamp<int64_t>(-first, 0, s.count), end = std::clamp<int64_t>(last - first + 1, begin, s.count);
  return {begin, end, (first + begin) * axis.source_step + s.phase};
}

// rows[kind w][sample h][w] of one plane of the source, for each source of h in turn.
template <class T>
void TwoTapRegion<T>::transform_rows(const Block& b, const View& source, int64_t origin, T* rows, T* raw) const {
  const int64_t pitch = length_[2];
  for (const Source& sh : sources_[1]) {
    const Span h = span(1, sh, b.from[1]);
    for (const Source& sw : sources_[2]) {
      const Span w = span(2, sw, b.from[2]);
      PairSplit<T> split{raw, raw_pitch_, {}, pitch, sh.count, pitch};
      T* dst = raw;
      for (size_t k = 0; k < axes_[2].kinds.size(); ++k) {
        const Kind& kind = axes_[2].kinds[k];
        if (kind.source_phase != sw.phase) continue;
        T* const to = rows + int64_t(k) * sh.count * pitch;
        if (axes_[2].step == 1) dst = to;
        split.to[pair_kind(kind, sw.at)] = to;
      }
      const int64_t dst_pitch = axes_[2].step == 1 ? pitch : raw_pitch_;
      std::memset(dst, 0, size_t(h.begin * dst_pitch) * sizeof(T));
      std::memset(dst + h.end * dst_pitch, 0, size_t((sh.count - h.end) * dst_pitch) * sizeof(T));
      const void* const src = source.at(origin + h.source * source.stride[3] + w.source * source.stride[4]);
      const RowsLoad<T> load{dst + h.begin * dst_pitch,
                             dst_pitch,
                             w.begin,
                             sw.count - w.end,
                             src,
                             g_.axis[1].source_step * source.stride[3],
                             g_.axis[2].source_step * source.stride[4],
                             h.end - h.begin,
                             w.end - w.begin,
                             source.stride[1],
                             source_.begin,
                             source_.end};
      k_.load_rows(load, source.dtype);
      if (axes_[2].step == 2) k_.split_pairs(split);
    }
    rows += kinds(2) * sh.count * pitch;
  }
}

// plane[kind h][kind w][h][w]
template <class T>
void TwoTapRegion<T>::transform_plane(T* plane_of_kinds, const T* rows) const {
  const int64_t pitch = length_[2];
  for (const Kind& kind : axes_[1].kinds) {
    const size_t of = source_of(1, kind);
    const T* from = rows;
    for (size_t s = 0; s < of; ++s) from += kinds(2) * sources_[1][s].count * pitch;
    const Source& source = sources_[1][of];
    for (int64_t w = 0; w < kinds(2); ++w, plane_of_kinds += plane(), from += source.count * pitch)
      k_.combine_rows(plane_of_kinds, pitch, from + (kind.at - source.at) * pitch, kind.sign ? from + (kind.other - source.at) * pitch : nullptr, T(kind.sign),
                      axes_[1].step * pitch, length_[1], pitch);
  }
}

template <class T>
void TwoTapRegion<T>::pack(const Block& b, T* region, T* scratch) const {
  T *const planes = scratch, *const rows = planes + planes_size_, *const raw = rows + rows_size_;
  const int64_t kinds_plane = kinds(1) * kinds(2) * plane();
  const View& source = g_.source;
  for (int64_t c = 0; c < g_.channels; ++c) {
    T* to = planes;
    for (const Source& s : sources_[0]) {
      const Span d = span(0, s, b.from[0]);
      for (int64_t t = 0; t < s.count; ++t, to += kinds_plane) {
        if (t < d.begin || t >= d.end) {
          std::memset(to, 0, size_t(kinds_plane) * sizeof(T));
          continue;
        }
        const int64_t depth = d.source + (t - d.begin) * g_.axis[0].source_step;
        transform_rows(b, source, b.image * source.stride[0] + (b.group * g_.channels + c) * source.stride[1] + depth * source.stride[2], rows, raw);
        transform_plane(to, rows);
      }
    }
    int64_t k = 0;
    for (const Kind& kind : axes_[0].kinds) {
      const size_t of = source_of(0, kind);
      const T* from = planes;
      for (size_t s = 0; s < of; ++s) from += sources_[0][s].count * kinds_plane;
      const int64_t at = sources_[0][of].at;
      for (int64_t hw = 0; hw < kinds(1) * kinds(2); ++hw, ++k, from += plane())
        k_.combine_rows(region + k * kind_stride_ + c * channel_stride_, plane(), from + (kind.at - at) * kinds_plane,
                        kind.sign ? from + (kind.other - at) * kinds_plane : nullptr, T(kind.sign), axes_[0].step * kinds_plane, length_[0], plane());
    }
  }
  std::memset(region + size() - slack(k_), 0, size_t(slack(k_)) * sizeof(T));
}

template class TwoTapRegion<float>;
template class TwoTapRegion<double>;

}  // namespace tconv3d
