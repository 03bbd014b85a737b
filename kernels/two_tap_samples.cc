// SPDX-License-Identifier: Apache-2.0
#include "two_tap_samples.h"

#include <cstring>

namespace tconv3d {

SampleSpan sample_span(const TransformedAxis& axis, int64_t positions) {
  SampleSpan span;
  // Of one source phase, the samples between are left out.
  if (axis.parity.size() == 1) {
    span.origin = axis.parity.begin()->first;
    span.scale = axis.plan.source_step;
  } else {
    span.unit = axis.plan.source_step;
  }
  span.step = axis.step * span.unit;
  if (axis.kinds.empty()) return span;
  int64_t highest = std::numeric_limits<int64_t>::min();
  span.lowest = std::numeric_limits<int64_t>::max();
  for (const Kind& kind : axis.kinds)
    for (const int64_t sample : {kind.at, kind.sign ? kind.other : kind.at}) {
      span.lowest = std::min(span.lowest, span.at(kind, sample));
      highest = std::max(highest, span.at(kind, sample));
    }
  span.count = (positions + axis.most_shift - axis.least_shift - 1) * span.step + highest - span.lowest + 1;
  return span;
}

SampleCounts count_samples(const TransformedAxes& axes, int64_t channels, const std::array<int64_t, 3>& block) {
  std::array<double, 3> sums, kinds, samples, length;
  for (size_t a = 0; a < 3; ++a) {
    sums[a] = double(std::count_if(axes[a].kinds.begin(), axes[a].kinds.end(), [](const Kind& k) { return k.sign != 0; }));
    kinds[a] = double(axes[a].kinds.size());
    samples[a] = double(sample_span(axes[a], block[a]).count);
    length[a] = double(block[a] + axes[a].most_shift - axes[a].least_shift);
  }
  const double along_w = sums[2] * samples[0] * samples[1], along_h = kinds[2] * sums[1] * samples[0] * length[1],
               along_d = kinds[2] * kinds[1] * sums[0] * length[0] * length[1];
  return {samples[0] * samples[1] * samples[2] * double(channels), (along_w + along_h + along_d) * length[2] * double(channels)};
}

template <class T>
TwoTapSamples<T>::TwoTapSamples(const Gather& g, const TransformedAxes& axes, const std::array<int64_t, 3>& block, const TileKernels<T>& k)
    : g_(g), axes_(axes), k_(k) {
  std::array<int64_t, 3> extent;
  for (size_t a = 0; a < 3; ++a) {
    spans_[a] = sample_span(axes[a], block[a]);
    extent[a] = spans_[a].count;
  }
  const int64_t channels = g.channels;
  const auto strides = [&] { return std::array<int64_t, 3>{extent[1] * extent[2] * channels, extent[2] * channels, channels}; };
  places_.push_back({0, strides(), 0});
  size_ = extent[0] * places_[0].stride[0];
  for (size_t a = 3; a-- > 0;) {
    extent[a] = block[a] + axes[a].most_shift - axes[a].least_shift;
    std::vector<Place> next;
    for (const Kind& kind : axes[a].kinds)
      for (const Place& from : places_) {
        const auto sample = [&](int64_t s) { return from.at + (spans_[a].at(kind, s) - spans_[a].lowest) * from.stride[a]; };
        Place place{sample(kind.at), from.stride, 0};
        place.stride[a] *= spans_[a].step;
        if (kind.sign) {
          const Place sum{size_, strides(), 0};
          sums_.push_back({place, sample(kind.other), T(kind.sign), sum, extent});
          size_ += extent[0] * sum.stride[0];
          place = sum;
        }
        next.push_back(place);
      }
    places_ = std::move(next);
  }
  std::map<std::array<int64_t, 3>, size_t> index;
  for (Place& p : places_) {
    const auto [at, fresh] = index.emplace(p.stride, grids_.size());
    p.grid = at->second;
    if (!fresh) continue;
    std::vector<int64_t> grid;
    for (int64_t d = 0; d < block[0]; ++d)
      for (int64_t h = 0; h < block[1]; ++h)
        for (int64_t w = 0; w < block[2]; ++w) grid.push_back(d * p.stride[0] + h * p.stride[1] + w * p.stride[2]);
    grids_.push_back(std::move(grid));
  }
}

template <class T>
typename TwoTapSamples<T>::Place TwoTapSamples<T>::place(const Product::Term& d, const Product::Term& h, const Product::Term& w) const {
  Place p = places_[(d.kind * axes_[1].kinds.size() + h.kind) * axes_[2].kinds.size() + w.kind];
  const Product::Term* const terms[] = {&d, &h, &w};
  for (size_t a = 0; a < 3; ++a) p.at += (terms[a]->shift - axes_[a].least_shift) * p.stride[a];
  return p;
}

template <class T>
void TwoTapSamples<T>::pack(const Block& b, T* region) const {
  load(b, region);
  for (const Sum& s : sums_)
    for (int64_t d = 0; d < s.extent[0]; ++d)
      for (int64_t h = 0; h < s.extent[1]; ++h) {
        const int64_t row = d * s.from.stride[0] + h * s.from.stride[1];
        k_.combine_rows(region + s.to.at + d * s.to.stride[0] + h * s.to.stride[1], g_.channels, region + s.from.at + row, region + s.other + row, s.sign,
                        s.from.stride[2], s.extent[2], g_.channels);
      }
}

template <class T>
void TwoTapSamples<T>::load(const Block& b, T* to) const {
  const View& source = g_.source;
  std::array<int64_t, 3> first, begin, end, stride;  // the samples begin <= i < end lie inside the image
  for (size_t a = 0; a < 3; ++a) {
    const SampleSpan& span = spans_[a];
    first[a] = span.step * (b.from[a] + axes_[a].least_shift) + span.lowest;
    begin[a] = std::clamp<int64_t>(-first[a], 0, span.count);
    end[a] = std::clamp<int64_t>(floor_div(g_.axis[a].source_size - 1 - span.origin, span.scale) + 1 - first[a], begin[a], span.count);
    stride[a] = span.scale * source.stride[a + 2];
  }
  int64_t origin = b.image * source.stride[0] + b.group * g_.channels * source.stride[1] + begin[2] * stride[2];
  for (size_t a = 0; a < 3; ++a) origin += first[a] * stride[a] + spans_[a].origin * source.stride[a + 2];
  const int64_t row = spans_[2].count * g_.channels, before = begin[2] * g_.channels, after = (spans_[2].count - end[2]) * g_.channels;
  const auto clear = [](T* p, int64_t elements) { std::memset(static_cast<void*>(p), 0, size_t(elements) * sizeof(T)); };
  for (int64_t d = 0; d < spans_[0].count; ++d)
    for (int64_t h = 0; h < spans_[1].count; ++h, to += row) {
      if (d < begin[0] || d >= end[0] || h < begin[1] || h >= end[1] || begin[2] == end[2]) {
        clear(to, row);
        continue;
      }
      clear(to, before);
      clear(to + row - after, after);
      k_.pack_positions(to + before, g_.channels, source.at(origin + d * stride[0] + h * stride[1]), source.stride[1], g_.channels, stride[2],
                        end[2] - begin[2], source.dtype);
    }
}

template class TwoTapSamples<float>;
template class TwoTapSamples<double>;

}  // namespace tconv3d
