// SPDX-License-Identifier: Apache-2.0
// Depthwise layers of channels-last arrays: channels on the vector lanes, neighbouring positions of a row on the rows of the tile, whose sums are stored once,
// where the targets lie. The other families turn positions onto the lanes and back, which takes longer than the few multiply-adds of a target.
#include <cstring>

#include "cost.h"
#include "panels.h"

namespace tconv3d {

namespace {

// Lanes and rows of the tile: 6 x 2 sums and two vectors of weights fill sixteen registers, and few tiles load less for a multiply-add.
constexpr int64_t kTileRows = 6, kTileVectors = 2;
constexpr int64_t kMostSpan = 64;        // steps of the source that the taps of a position may span
constexpr double kMostSource = 1e6;      // samples that the positions of an axis span: far strides would wrap
constexpr double kPricedTooHigh = 0.75;  // 57 of 340 random layers would gain 1.25 times and were left to other families, 1 was taken wrongly

template <class T>
class DepthwisePlan : public Plan {
 public:
  int64_t depth = 1, rows = 1, channels = 1;  // targets along d and h, and channels, of a task

  void run(const Gather&, const Options&, const Kernels&, int64_t chunk) const override;
  std::string describe() const override {
    return "direct, depthwise, channels on the lanes, positions of a row on the rows: blocks of " + by({depth, rows}) + " planes and rows and " +
           by({channels}) + " channels";
  }
};

// The taps that reach a target of an axis from inside the source, ascending.
struct Source {
  int64_t kernel, at;
};
using Sources = std::vector<std::vector<Source>>;

Sources sources_of(const AxisPlan& axis) {
  Sources sources{size_t(axis.target_size)};
  for (const Phase& phase : axis.phases)
    for (int64_t j = 0; j < phase.count; ++j)
      for (const Tap& tap : phase.taps) {
        const int64_t at = source_of(axis, tap, j);
        if (at >= 0 && at < axis.source_size) sources[size_t(phase.first + j * axis.target_step)].push_back({tap.kernel, at});
      }
  return sources;
}

// Source samples that the taps of position 0 span, where all lie inside; or those of several targets.
struct Span {
  int64_t begin, end;
};

Span span_of(const AxisPlan& axis) {
  Span span{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
  for (const Phase& phase : axis.phases)
    for (const Tap& tap : phase.taps) span = {std::min(span.begin, source_of(axis, tap, 0)), std::max(span.end, source_of(axis, tap, 0) + 1)};
  return span;
}

// The most source samples that so many neighbouring targets of an axis read.
int64_t sources_within(const AxisPlan& axis, int64_t targets) {
  const Span span = span_of(axis);
  return std::min(axis.source_size, (ceil_div(targets, axis.target_step) - 1 + (axis.target_step > 1)) * axis.source_step + span.end - span.begin);
}

// Elements of a packed row, with the zeros before and behind it that its taps reach.
int64_t packed_width(const AxisPlan& w) {
  const Span span = span_of(w);
  return (w.positions - 1) * w.source_step + span.end - span.begin;
}

template <class T>
int64_t scratch_size(const DepthwisePlan<T>& p, const Gather& g) {
  const int64_t packed = sources_within(g.axis[0], p.depth) * sources_within(g.axis[1], p.rows) * packed_width(g.axis[2]);
  return (packed + g.axis[2].target_size) * p.channels;
}

template <class T>
void price(DepthwisePlan<T>& p, const Gather& g, double taps, const TileKernels<T>& k, const PlanContext& context) {
  const AxisPlan& w = g.axis[2];
  double row = 0, setup = kRowCall;  // of a strip of vectors, and once for all
  for (const Phase& phase : w.phases) {
    const double pieces = double(ceil_div(phase.count, kTileRows));
    setup += 4 * taps * double(phase.taps.size());
    row += pieces * (kDepthwiseCall + 4 * taps * double(phase.taps.size())) + 0.6 * taps * double(phase.taps.size() * kTileVectors) * double(phase.count);
  }
  const double strips = double(p.channels / (kTileVectors * k.lanes)), targets = double(w.target_size * p.channels);
  const double packed = double(sources_within(g.axis[0], p.depth) * sources_within(g.axis[1], p.rows)) * (kRowCall + double(packed_width(w) * p.channels));
  const double block = double(p.depth * p.rows) * (setup + strips * row + 0.25 * targets) + packed + kTaskCall;
  const int64_t tasks = g.batch * ceil_div(g.axis[0].target_size, p.depth) * ceil_div(g.axis[1].target_size, p.rows) * ceil_div(g.groups, p.channels);
  p.cycles = kPricedTooHigh * parallel_cycles(double(tasks) * block, tasks, context.threads);
}

template <class T>
class DepthwiseRun {
 public:
  DepthwiseRun(const Gather& g, const DepthwisePlan<T>& p, const Kernels& kernels)
      : g_(g), p_(p), k_(tiles<T>(kernels)), sources_{sources_of(g.axis[0]), sources_of(g.axis[1])}, first_w_(span_of(g.axis[2]).begin) {
    padded_ = ceil_div(g.groups, p.channels) * p.channels;
    width_ = packed_width(g.axis[2]);
    bias_.resize(size_t(padded_), T(0));
    if (g.bias) k_.load_run(bias_.data(), 1, g.bias->data, g.bias->stride[0], g.groups, g.bias->dtype);
    for (size_t a = 0; a < 2; ++a) blocks_[a] = ceil_div(g.axis[a].target_size, a == 0 ? p.depth : p.rows);
  }

  // weights[tap][channel]
  void pack_weights(const Options& options) {
    const auto& kernel = g_.weight_kernel;
    const PackedPanels::Key key{-5, int64_t(sizeof(T)), padded_, kernel[0], kernel[1], kernel[2]};
    weights_ = packed_once(options, key, size_t(padded_ * kernel[0] * kernel[1] * kernel[2]) * sizeof(T), [&](char* data) {
      T* to = reinterpret_cast<T*>(data);
      std::memset(data, 0, size_t(padded_ * kernel[0] * kernel[1] * kernel[2]) * sizeof(T));
      for (int64_t d = 0; d < kernel[0]; ++d)
        for (int64_t h = 0; h < kernel[1]; ++h, to += kernel[2] * padded_)
          k_.pack_positions(to, padded_, g_.weight.at(d * g_.weight_tap[0] + h * g_.weight_tap[1]), g_.weight_group, g_.groups, g_.weight_tap[2], kernel[2],
                            g_.weight.dtype);
    });
  }

  int64_t tasks() const { return g_.batch * blocks_[0] * blocks_[1] * (padded_ / p_.channels); }

  void run(int64_t task, T* scratch) const {
    Task t;
    t.channel = task % (padded_ / p_.channels) * p_.channels;
    t.channels = std::min(p_.channels, g_.groups - t.channel);
    task /= padded_ / p_.channels;
    t.begin = {task / blocks_[1] % blocks_[0] * p_.depth, task % blocks_[1] * p_.rows};
    t.end = {std::min(t.begin[0] + p_.depth, g_.axis[0].target_size), std::min(t.begin[1] + p_.rows, g_.axis[1].target_size)};
    t.image = task / (blocks_[0] * blocks_[1]);
    t.packed = scratch;
    pack(t);
    const View& y = g_.target;
    // Whole vectors of channels, or a row aside.
    const bool in_place = t.channels % strip() == 0;
    T* const aside = scratch + (t.sources[0].end - t.sources[0].begin) * (t.sources[1].end - t.sources[1].begin) * width_ * p_.channels;
    for (int64_t d = t.begin[0]; d < t.end[0]; ++d)
      for (int64_t h = t.begin[1]; h < t.end[1]; ++h) {
        T* const row = static_cast<T*>(y.at(t.image * y.stride[0] + t.channel + d * y.stride[2] + h * y.stride[3]));
        if (in_place) {
          form_row(t, d, h, row, y.stride[4]);
          continue;
        }
        form_row(t, d, h, aside, p_.channels);
        for (int64_t w = 0; w < g_.axis[2].target_size; ++w)
          std::memcpy(static_cast<void*>(row + w * y.stride[4]), aside + w * p_.channels, size_t(t.channels) * sizeof(T));
      }
  }

 private:
  struct Task {
    int64_t image, channel, channels;
    std::array<int64_t, 2> begin, end;  // targets along d and h
    std::array<Span, 2> sources;        // samples that they read
    T* packed;
    std::vector<int64_t> weight_offset, sample_offset;  // room for those of a row's taps
  };

  int64_t strip() const { return kTileVectors * k_.lanes; }

  // packed[d][h][w][channel]: rows between zeros
  void pack(Task& t) const {
    for (size_t a = 0; a < 2; ++a) {
      Span& span = t.sources[a];
      span = {g_.axis[a].source_size, 0};
      for (int64_t o = t.begin[a]; o < t.end[a]; ++o)
        for (const Source& s : sources_[a][size_t(o)]) span = {std::min(span.begin, s.at), std::max(span.end, s.at + 1)};
      if (span.begin >= span.end) span = {0, 0};
    }
    const View& source = g_.source;
    const int64_t left = std::clamp<int64_t>(-first_w_, 0, width_), from = std::max<int64_t>(0, first_w_),
                  n = std::clamp<int64_t>(g_.axis[2].source_size - from, 0, width_ - left);
    T* to = t.packed;
    for (int64_t d = t.sources[0].begin; d < t.sources[0].end; ++d)
      for (int64_t h = t.sources[1].begin; h < t.sources[1].end; ++h, to += width_ * p_.channels) {
        std::memset(static_cast<void*>(to), 0, size_t(left * p_.channels) * sizeof(T));
        std::memset(static_cast<void*>(to + (left + n) * p_.channels), 0, size_t((width_ - left - n) * p_.channels) * sizeof(T));
        const int64_t at = t.image * source.stride[0] + t.channel + d * source.stride[2] + h * source.stride[3] + from * source.stride[4];
        if (n > 0) k_.pack_positions(to + left * p_.channels, p_.channels, source.at(at), 1, t.channels, source.stride[4], n, source.dtype);
      }
  }

  // A row of targets: to[w*step + channel]
  void form_row(Task& t, int64_t d, int64_t h, T* to, int64_t step) const {
    const AxisPlan& w = g_.axis[2];
    const int64_t rows = t.sources[1].end - t.sources[1].begin;
    for (const Phase& phase : w.phases) {
      std::vector<int64_t>&weight_offset = t.weight_offset, &sample_offset = t.sample_offset;
      weight_offset.clear();
      sample_offset.clear();
      for (const Source& sd : sources_[0][size_t(d)])
        for (const Source& sh : sources_[1][size_t(h)])
          for (const Tap& tap : phase.taps) {
            weight_offset.push_back(((sd.kernel * g_.weight_kernel[1] + sh.kernel) * g_.weight_kernel[2] + tap.kernel) * padded_);
            sample_offset.push_back((((sd.at - t.sources[0].begin) * rows + sh.at - t.sources[1].begin) * width_ + source_of(w, tap, 0) - first_w_) *
                                    p_.channels);
          }
      LaneProduct<T> job;
      job.a_offset = weight_offset.data();
      job.b_offset = sample_offset.data();
      job.segments = int64_t(weight_offset.size());
      job.steps = 1;
      job.a_step = job.b_step = 0;
      job.b_tap = w.source_step * p_.channels;
      job.ldc = w.target_step * step;
      job.accumulate = false;
      for (int64_t c = 0; c < t.channels; c += strip()) {
        job.a = reinterpret_cast<const T*>(weights_->data()) + t.channel + c;
        job.bias = bias_.data() + t.channel + c;
        for_each_piece(phase.count, kTileRows, [&](int64_t j, int64_t n) {
          job.b = t.packed + c + j * job.b_tap;
          job.c = to + c + phase.first * step + j * job.ldc;
          k_.lane_product[n][kTileVectors](job);
        });
      }
    }
  }

  const Gather& g_;
  const DepthwisePlan<T>& p_;
  const TileKernels<T>& k_;
  const Sources sources_[2];
  const int64_t first_w_;  // the sample of a packed row's first element
  int64_t padded_, width_;
  std::vector<T> bias_;  // of padded_ channels
  std::array<int64_t, 2> blocks_;
  std::shared_ptr<Scratch> weights_;
};

template <class T>
void DepthwisePlan<T>::run(const Gather& g, const Options& options, const Kernels& kernels, int64_t) const {
  DepthwiseRun<T> run(g, *this, kernels);
  run.pack_weights(options);
  run_tasks<T>(run.tasks(), scratch_size(*this, g), options, [&](int64_t task, T* scratch) { run.run(task, scratch); });
}

}  // namespace

template <class T>
std::unique_ptr<Plan> plan_depthwise(const Gather& g, const PlanContext& context) {
  auto best = std::make_unique<DepthwisePlan<T>>();
  if (g.channels != 1 || g.columns != 1 || g.groups == 1 || !context.source_is_rows || !context.target_is_rows || !g.axis[2].covered) return best;
  for (const AxisPlan& a : g.axis) {
    const Span span = span_of(a);
    if (span.begin >= span.end || (span.end - span.begin - 1) / a.source_step >= kMostSpan) return best;
    if (double(a.positions) * double(a.source_step) > kMostSource) return best;
  }
  const TileKernels<T>& k = tiles<T>(context.kernels);
  double taps = 1;  // of a row of targets, along d and h, in the mean
  for (size_t a = 0; a < 2; ++a) {
    double all = 0;
    for (const auto& sources : sources_of(g.axis[a])) all += double(sources.size());
    taps *= all / double(g.axis[a].target_size);
  }
  const int64_t strip = kTileVectors * k.lanes;
  for (int64_t strips = 1; strips <= 4 && strips <= ceil_div(g.groups, strip); strips *= 2)
    for (int64_t rows = g.axis[1].target_size; rows > 0; rows /= 2)
      for (int64_t depth = g.axis[0].target_size; depth > 0; depth /= 2) {
        DepthwisePlan<T> p;
        p.depth = depth;
        p.rows = rows;
        p.channels = strips * strip;
        if (double(scratch_size(p, g)) * sizeof(T) > 0.7 * double(cache_bytes())) continue;
        price<T>(p, g, taps, k, context);
        if (p.cycles < best->cycles) *best = p;
      }
  return best;
}

template std::unique_ptr<Plan> plan_depthwise<float>(const Gather&, const PlanContext&);
template std::unique_ptr<Plan> plan_depthwise<double>(const Gather&, const PlanContext&);

}  // namespace tconv3d
