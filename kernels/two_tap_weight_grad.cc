// SPDX-License-Identifier: Apache-2.0
// The weight gradient by the two-tap method (two_tap_axis.h), transposed. Forward, a product multiplies a kind of transformed samples with a sum of taps
// and adds what it gives to its targets. So the gradient of that sum is, over all positions, the kind times the sum of the targets' gradients, and the
// gradient of a tap is the sum of those of all sums that it is in. k4 s2 takes 27 multiply-adds for 64, k3 s1 8 for 27.
//
//     raw       = [panel of channels][image][d][h][w][channel]                       of a block of positions, one operand
//     planes    = the same with one kind of d
//     combined  = [panel of channels][kind or product w][image][d][h][w][channel]    one kind or product of d and h; rows of both operands equally long
//     sums      = [strand][term d][term h][term w][panel of lanes][row][lane]        of a round of output channels; terms of all products of an axis
//
// A task adds the blocks of a strand to the sums of some input and output channels, in memory of its own. What is cut, and with it the order of
// additions, depends on the problem, the dtype and the instruction set alone.
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include "cost.h"
#include "gather.h"
#include "two_tap_axis.h"
#include "weight_grad.h"

namespace tconv3d {

namespace {

// Positions of a block, added in one chain of multiply-adds: enough to keep a tile longer than reading and writing its sums. 128 and 256 were 3 and 1 %
// slower in the mean of six layers.
constexpr int64_t kPositions = 192;
// Input channels that are combined at once, within the second-level cache: 192 KiB for them left psmnet_conv6 combining its gradients three times, 53 ms
// for 43 on two threads.
constexpr int64_t kCombinedBytes = int64_t(512) << 10;
constexpr int64_t kSumsBytes = int64_t(32) << 20, kPartChannels = 48;  // of all strands, and of a part
constexpr int64_t kMostSumsBytes = int64_t(64) << 20;                  // larger ones are formed in rounds of output channels
constexpr double kCallCycles = 1e5;                                    // of a group and round, beside its work
constexpr int64_t kMostVectors = 4, kMostRows = 8;                     // of a tile
constexpr int64_t kMostKernel = 32;                                    // taps of an axis
constexpr int64_t kMostHalo = 64, kMostStride = 16;                    // positions beyond a block, targets from one to the next: what a block holds stays small
// Cycles of a tile beside its steps, of a combined vector, and of a vector of sums, in fresh memory. The best of a grid of prices, with the gain that
// weight_grad.cc asks for: over 150 layers the choice is 1.135 times as fast as directly, and the better of both each time 1.160.
constexpr double kSumsOfTile = 150, kCombinedVector = 2.5, kSumVector = 14;

// raw[step * i + first] + sign * raw[step * i + second] for every position i, or with sign 0 the first alone.
struct Combination {
  int64_t first, second;
  int sign;
};

// One operand along one axis: elements of its array from `first` on, `step` for each position and `reach` for the last.
struct OperandAxis {
  std::vector<Combination> of;  // kinds of the input, products of grad_output
  int64_t image, first, step, reach;
  int64_t halo;  // positions beyond a block's
};

// The channels of a group lie in panels of whole vectors, padded with zeros.
struct Operand {
  std::array<OperandAxis, 3> axis;
  int64_t channels, width;

  int64_t panels() const { return ceil_div(channels, width); }
  int64_t size(int64_t panel) const { return std::min(width, channels - panel * width); }
};

struct PositionBlock {
  int64_t image, images;
  std::array<int64_t, 3> from, size;
};

// Positions of d and h, in a block.
struct Inside {
  std::array<int64_t, 2> begin, end;
};

// Panels of channels, of one operand.
struct PanelRange {
  int64_t first, count;
};

OperandAxis input_axis(const TransformedAxis& a) {
  OperandAxis x{{}, a.plan.source_size, 0, a.step, a.step == 2 ? 2 + a.reach : 1, a.most_shift - a.least_shift};
  const int64_t before = a.step == 2 ? a.parity.begin()->second - 1 : 0;  // the first sample that a pair reads
  x.first = before + a.step * a.least_shift;
  for (const Kind& kind : a.kinds) x.of.push_back({kind.at - before, kind.other - before, kind.sign});
  return x;
}

OperandAxis grad_axis(const TransformedAxis& a) {
  const auto [least, most] = std::minmax_element(a.plan.phases.begin(), a.plan.phases.end(), [](const Phase& p, const Phase& q) { return p.first < q.first; });
  OperandAxis gy{{}, a.plan.target_size, least->first, a.plan.target_step, most->first - least->first + 1, 0};
  for (const Phase& phase : a.plan.phases) gy.of.push_back({phase.first - gy.first, 0, 0});
  gy.of.resize(a.products.size());
  for (const PhaseProducts& p : a.phases)
    for (size_t shared = 2; shared < p.size(); ++shared) gy.of[p[shared]] = {gy.of[p[0]].first, gy.of[p[1]].first, shared == 2 ? 1 : -1};
  return gy;
}

// f(term, tap, factor) for every tap of every term's sum, terms of all products of an axis in turn.
template <class F>
void for_each_share(const TransformedAxis& axis, F f) {
  int64_t i = 0;
  for (const Product& p : axis.products)
    for (const TapSum& s : axis.lists[p.list]) {
      const double factor = s.third < 0 ? 1 : 0.5;
      f(i, s.first, factor);
      if (s.second >= 0) f(i, s.second, factor * s.sign);
      if (s.third >= 0) f(i, s.third, factor);
      ++i;
    }
}

template <class T>
class TwoTapWeightGrad : public WeightGradPlan {
 public:
  TwoTapWeightGrad(const Problem& p, TransformedAxes axes, const Kernels& kernels) : p_(p), k_(tiles<T>(kernels)), axes_(std::move(axes)) {
    for (size_t a = 0; a < 3; ++a) {
      x_.axis[a] = input_axis(axes_[a]);
      gy_.axis[a] = grad_axis(axes_[a]);
      terms_[a] = 0;
      for (const Product& product : axes_[a].products) {
        start_[a].push_back(terms_[a]);
        terms_[a] += int64_t(product.terms.size());
      }
    }
    choose_tile();
    cut();
    price();
  }

  bool run(const View& x, const View& gy, const View& gw, const Options& options) const override {
    Scratch scratch(size_t(strands_ * most_sums()) * sizeof(T));
    T* const sums = reinterpret_cast<T*>(scratch.data());
    Clock::time_point polled = Clock::now();
    for (int64_t group = 0; group < p_.groups; ++group)
      for (int64_t round = 0; round < rounds_; ++round) {
        const PanelRange outputs = share({0, gy_.panels()}, round, rounds_);
        add_strands(x, gy, group, outputs, sums, options, polled);
        write(group, outputs, sums, gw, options);
      }
    return true;
  }

  std::string describe() const override {
    return "two-tap along " + paired_axes(axes_) + ": tiles of " + by({rows_}) + " rows x " + by({vectors_}) + " vectors, " +
           (gy_on_lanes_ ? "grad_output" : "input") + " on the lanes; " + by({blocks()}) + " blocks of " +
           by({block_.images, block_.size[0], block_.size[1], block_.size[2]}) + " positions in " + by({rounds_, strands_, x_parts_, gy_parts_}) +
           " rounds, strands, parts of input and grad_output";
  }

 private:
  using Clock = std::chrono::steady_clock;

  // The tile with the fewest cycles for one position; its rows are a power of two, so that panels hold whole tiles and whole vectors.
  void choose_tile() {
    const int64_t in = p_.in_channels / p_.groups, out = p_.out_channels / p_.groups;
    tile_cycles_ = std::numeric_limits<double>::infinity();
    for (bool gy_on_lanes : {true, false})
      for (int64_t vectors = 1; vectors <= kMostVectors; ++vectors)
        for (int64_t rows = 1; rows <= kMostRows; rows *= 2) {
          if (!k_.spatial[vectors][rows]) continue;
          const double cycles = tile_cycles(gy_on_lanes ? in : out, gy_on_lanes ? out : in, rows, vectors);
          if (cycles >= tile_cycles_) continue;
          tile_cycles_ = cycles;
          gy_on_lanes_ = gy_on_lanes;
          rows_ = rows;
          vectors_ = vectors;
        }
    x_.channels = in;
    gy_.channels = out;
    (gy_on_lanes_ ? gy_ : x_).width = vectors_ * k_.lanes;
    (gy_on_lanes_ ? x_ : gy_).width = std::max<int64_t>(k_.lanes, rows_);
  }

  double tile_cycles(int64_t rows, int64_t lanes, int64_t tile_rows, int64_t tile_vectors) const {
    const auto tiles = [](int64_t n, int64_t each) { return std::array<std::array<int64_t, 2>, 2>{{{n / each, each}, {n % each ? 1 : 0, n % each}}}; };
    double cycles = 0;
    for (const auto& [row_tiles, r] : tiles(rows, tile_rows))
      for (const auto& [lane_tiles, v] : tiles(ceil_div(lanes, k_.lanes), tile_vectors))
        cycles += double(row_tiles * lane_tiles) * step_cycles(r, v, 1, k_.lanes * int64_t(sizeof(T)));
    return cycles;
  }

  // Blocks: whole rows where they fit, then planes, depths and images, as even as may be. Strands before parts, which all combine the same input.
  void cut() {
    const auto even = [](int64_t extent, int64_t room) { return ceil_div(extent, ceil_div(extent, std::max<int64_t>(room, 1))); };
    int64_t length = 1;
    for (size_t a = 3; a-- > 0;) {
      block_.size[a] = even(positions(a), kPositions / length - x_.axis[a].halo);
      length *= block_.size[a] + x_.axis[a].halo;
    }
    block_.images = even(p_.batch, kPositions / length);
    const int64_t bytes = sums_size(gy_.panels()) * int64_t(sizeof(T));
    strands_ = std::clamp<int64_t>(kSumsBytes / bytes, 1, std::min(blocks(), kTasks));
    rounds_ = std::clamp<int64_t>(ceil_div(bytes, kMostSumsBytes), 1, gy_.panels());
    at_once_ = even(x_.panels(), kCombinedBytes / ((planes_size(block_) + combined_size(x_)) * int64_t(sizeof(T))));
    x_parts_ = std::clamp<int64_t>(ceil_div(kTasks, strands_), 1, ceil_div(x_.panels(), at_once_));
    gy_parts_ =
        std::clamp<int64_t>(ceil_div(kTasks, strands_ * x_parts_), 1, std::clamp<int64_t>(gy_.channels / rounds_ / kPartChannels, 1, gy_.panels() / rounds_));
  }

  static PanelRange share(const PanelRange& all, int64_t i, int64_t shares) {
    const int64_t first = i * all.count / shares;
    return {all.first + first, (i + 1) * all.count / shares - first};
  }

  int64_t positions(size_t a) const { return axes_[a].plan.positions; }

  int64_t blocks() const {
    int64_t blocks = ceil_div(p_.batch, block_.images);
    for (size_t a = 0; a < 3; ++a) blocks *= ceil_div(positions(a), block_.size[a]);
    return blocks;
  }

  PositionBlock block(int64_t i) const {
    PositionBlock b;
    for (size_t a = 3; a-- > 0;) {
      const int64_t count = ceil_div(positions(a), block_.size[a]);
      b.from[a] = i % count * block_.size[a];
      b.size[a] = std::min(block_.size[a], positions(a) - b.from[a]);
      i /= count;
    }
    b.image = i * block_.images;
    b.images = std::min(block_.images, p_.batch - b.image);
    return b;
  }

  // Of an operand in a block: positions along an axis, elements of a row and of a panel. Rows of both are as long as those of the input.
  static int64_t length(const Operand& o, size_t a, const PositionBlock& b) { return b.size[a] + o.axis[a].halo; }
  static int64_t raw(const Operand& o, size_t a, const PositionBlock& b) { return (length(o, a, b) - 1) * o.axis[a].step + o.axis[a].reach; }
  static int64_t raw_row(const Operand& o, const PositionBlock& b) { return raw(o, 2, b) * o.width; }
  static int64_t raw_size(const Operand& o, const PositionBlock& b) { return b.images * raw(o, 0, b) * raw(o, 1, b) * raw_row(o, b); }
  int64_t combined_row(const Operand& o, const PositionBlock& b) const { return length(x_, 2, b) * o.width; }
  int64_t combined_size(const Operand& o, const PositionBlock& b) const { return b.images * length(o, 0, b) * length(o, 1, b) * combined_row(o, b); }
  int64_t combined_size(const Operand& o) const { return int64_t(o.axis[2].of.size()) * combined_size(o, block_); }

  int64_t planes_size(const PositionBlock& b) const { return b.images * length(x_, 0, b) * raw(x_, 1, b) * raw_row(x_, b); }

  // Sums of some panels of output channels: rows, panels of lanes, elements of a term and of all.
  int64_t rows(const PanelRange& outputs) const {
    return gy_on_lanes_ ? x_.channels : std::min(outputs.count * gy_.width, gy_.channels - outputs.first * gy_.width);
  }
  int64_t lane_panels(const PanelRange& outputs) const { return gy_on_lanes_ ? outputs.count : x_.panels(); }
  int64_t lanes() const { return (gy_on_lanes_ ? gy_ : x_).width; }
  int64_t term_size(const PanelRange& outputs) const { return lane_panels(outputs) * rows(outputs) * lanes(); }
  int64_t sums_size(int64_t panels) const { return terms_[0] * terms_[1] * terms_[2] * term_size({0, panels}); }
  int64_t most_sums() const { return sums_size(ceil_div(gy_.panels(), rounds_)); }

  int64_t line_size() const { return 2 * std::max(raw_row(x_, block_), raw_row(gy_, block_)); }
  int64_t most_outputs() const { return ceil_div(ceil_div(gy_.panels(), rounds_), gy_parts_); }  // panels of a part
  int64_t task_scratch() const {
    return most_outputs() * raw_size(gy_, block_) + at_once_ * (raw_size(x_, block_) + planes_size(block_) + combined_size(x_)) + combined_size(gy_) +
           line_size();
  }

  // All blocks, in steps between which a call can be interrupted.
  void add_strands(const View& x, const View& gy, int64_t group, const PanelRange& outputs, T* sums, const Options& options, Clock::time_point& polled) const {
    const int64_t tasks = strands_ * x_parts_ * gy_parts_;
    const int64_t steps = std::clamp<int64_t>(int64_t(cycles / double(p_.groups * rounds_ * tasks) / kStepCycles), 1, ceil_div(blocks(), strands_));
    for (int64_t step = 0; step < steps; ++step) {
      run_tasks<T>(tasks, task_scratch(), options, [&](int64_t task, T* scratch) {
        const int64_t strand = task / gy_parts_ / x_parts_, begin = strand * blocks() / strands_, count = (strand + 1) * blocks() / strands_ - begin;
        const PanelRange inputs = share({0, x_.panels()}, task / gy_parts_ % x_parts_, x_parts_), part = share(outputs, task % gy_parts_, gy_parts_);
        for (int64_t i = step * count / steps; i < (step + 1) * count / steps; ++i)
          add_block(x, gy, group, block(begin + i), inputs, outputs, part, i == 0, sums + strand * most_sums(), scratch);
      });
      // Steps may be shorter than what parallel_for waits before it asks.
      const Clock::time_point now = Clock::now();
      if (!options.stop || now - polled < kStopInterval) continue;
      polled = now;
      if (options.stop()) throw Interrupted{};
    }
  }

  void add_block(const View& x, const View& gy, int64_t group, const PositionBlock& b, const PanelRange& inputs, const PanelRange& outputs,
                 const PanelRange& part, bool set, T* sums, T* scratch) const {
    T *const raw_gy = scratch, *const raw_x = raw_gy + most_outputs() * raw_size(gy_, block_);
    for (int64_t y = 0; y < part.count; ++y) load(gy, gy_, b, group, part.first + y, raw_gy + y * raw_size(gy_, b));
    for (int64_t first = inputs.first; first < inputs.first + inputs.count; first += at_once_) {
      const PanelRange now{first, std::min(at_once_, inputs.first + inputs.count - first)};
      for (int64_t i = 0; i < now.count; ++i) load(x, x_, b, group, first + i, raw_x + i * raw_size(x_, b));
      multiply(outputs, part, b, now, raw_x, raw_gy, sums, set);
    }
  }

  void load(const View& v, const Operand& o, const PositionBlock& b, int64_t group, int64_t panel, T* to) const {
    for (int64_t plane = 0; plane < b.images * raw(o, 0, b); ++plane) load(v, o, b, group, panel, plane, to);
  }

  // A plane [h][w][channel] of a panel, zeros outside the image.
  void load(const View& v, const Operand& o, const PositionBlock& b, int64_t group, int64_t panel, int64_t plane, T* to) const {
    const auto from = [&](size_t a) { return o.axis[a].first + b.from[a] * o.axis[a].step; };
    const int64_t planes = raw(o, 0, b), rows = raw(o, 1, b), width = raw(o, 2, b), row = width * o.width, d = from(0) + plane % planes;
    to += plane * rows * row;
    const auto inside = [&](size_t a, int64_t n) {  // begin and end of what lies in the image
      const int64_t begin = std::clamp<int64_t>(-from(a), 0, n);
      return std::array<int64_t, 2>{begin, std::clamp<int64_t>(o.axis[a].image - from(a), begin, n)};
    };
    const auto [first, last] = inside(1, rows);
    const auto [left, right] = inside(2, width);
    const auto clear = [&](T* at, int64_t n) { std::memset(static_cast<void*>(at), 0, size_t(n) * sizeof(T)); };
    if (d < 0 || d >= o.axis[0].image || first == last || left == right) {
      clear(to, rows * row);
      return;
    }
    if (o.size(panel) < o.width) clear(to + first * row, (last - first) * row);
    clear(to, first * row);
    clear(to + last * row, (rows - last) * row);
    const int64_t origin = (b.image + plane / planes) * v.stride[0] + (group * o.channels + panel * o.width) * v.stride[1] + d * v.stride[2];
    const bool whole = right - left == width && v.stride[3] == width * v.stride[4];  // rows side by side
    const int64_t at_once = whole ? last - first : 1;
    for (int64_t r = first; r < last; r += at_once) {
      T* const at = to + r * row;
      clear(at, left * o.width);
      if (right < width) clear(at + right * o.width, (width - right) * o.width);
      k_.pack_positions(at + left * o.width, o.width, v.at(origin + (from(1) + r) * v.stride[3] + (from(2) + left) * v.stride[4]), v.stride[1], o.size(panel),
                        v.stride[4], at_once * (right - left), v.dtype);
    }
  }

  // One kind of d of a panel of the input: whole planes.
  void combine_planes(const PositionBlock& b, size_t kind, const T* from, T* to) const {
    const Combination& d = x_.axis[0].of[kind];
    const int64_t plane = raw(x_, 1, b) * raw_row(x_, b);
    for (int64_t n = 0; n < b.images; ++n, from += raw(x_, 0, b) * plane, to += length(x_, 0, b) * plane)
      k_.combine_rows(to, plane, from + d.first * plane, d.sign ? from + d.second * plane : nullptr, T(d.sign), x_.axis[0].step * plane, length(x_, 0, b),
                      plane);
  }

  // Where a target takes in the products.
  Inside inside(const PositionBlock& b, const Product& d, const Product& h) const {
    Inside in;
    for (size_t a = 0; a < 2; ++a) {
      const Product& p = a ? h : d;
      in.begin[a] = std::clamp<int64_t>(p.begin - b.from[a], 0, b.size[a]);
      in.end[a] = std::clamp<int64_t>(p.end - b.from[a], in.begin[a], b.size[a]);
    }
    return in;
  }

  // Combinations d of planes and h of rows, with all along w, of one panel. `planes` of an image, `step` from position to position; `line`: two rows.
  void combine_rows(const Operand& o, const PositionBlock& b, const Combination& d, int64_t planes, int64_t step, const Combination& h, const Inside& inside,
                    const T* from, T* line, T* to) const {
    const int64_t row = raw_row(o, b), plane = raw(o, 1, b) * row, size = combined_size(o, b);
    const int64_t used = length(o, 2, b) * o.width, width = combined_row(o, b);
    const auto along_h = [&](const T* at, T* line) {
      if (h.sign == 0) return at + h.first * row;
      k_.combine_rows(line, 0, at + h.first * row, at + h.second * row, T(h.sign), 0, 1, row);
      return static_cast<const T*>(line);
    };
    for (int64_t n = 0; n < b.images; ++n)
      for (int64_t qd = inside.begin[0]; qd < inside.end[0]; ++qd)
        for (int64_t qh = inside.begin[1]; qh < inside.end[1]; ++qh) {
          const T* const at = from + (n * planes + qd * step) * plane + qh * o.axis[1].step * row;
          const T* src = along_h(at + d.first * plane, line);
          if (d.sign) {
            k_.combine_rows(line, 0, src, along_h(at + d.second * plane, line + row), T(d.sign), 0, 1, row);
            src = line;
          }
          T* dst = to + ((n * length(o, 0, b) + qd) * length(o, 1, b) + qh) * width;
          for (const Combination& w : o.axis[2].of) {
            k_.combine_rows(dst, o.width, src + w.first * o.width, w.sign ? src + w.second * o.width : nullptr, T(w.sign), o.axis[2].step * o.width,
                            length(o, 2, b), o.width);
            if (used < width) std::memset(static_cast<void*>(dst + used), 0, size_t(width - used) * sizeof(T));
            dst += size;
          }
        }
  }

  // Runs of positions that follow each other in both operands: where each starts.
  struct Runs {
    std::vector<int64_t> x, gy;
    int64_t steps;
  };
  void find_runs(const PositionBlock& b, const Inside& inside, Runs& runs) const {
    int64_t rows = inside.end[1] - inside.begin[1], planes = inside.end[0] - inside.begin[0], images = b.images;
    runs.x.clear();
    runs.gy.clear();
    runs.steps = 0;
    if (rows == 0 || planes == 0) return;
    if (rows == length(x_, 1, b)) {
      rows *= planes;
      if (planes == length(x_, 0, b)) rows *= std::exchange(images, 1);
      planes = 1;
    }
    runs.steps = (rows - 1) * length(x_, 2, b) + b.size[2];
    for (int64_t n = 0; n < images; ++n)
      for (int64_t d = inside.begin[0]; d < inside.begin[0] + planes; ++d) {
        runs.x.push_back(((n * length(x_, 0, b) + d) * length(x_, 1, b) + inside.begin[1]) * combined_row(x_, b));
        runs.gy.push_back(((n * b.size[0] + d) * b.size[1] + inside.begin[1]) * combined_row(gy_, b));
      }
  }

  // Some input panels, loaded in front of `raw_x`: kind by kind of d and h, with all products that read it.
  void multiply(const PanelRange& outputs, const PanelRange& part, const PositionBlock& b, const PanelRange& inputs, T* raw_x, const T* raw_gy, T* sums,
                bool set) const {
    Runs runs;
    const Inside all{{0, 0}, {length(x_, 0, b), length(x_, 1, b)}};
    T *const planes = raw_x + at_once_ * raw_size(x_, block_), *const xs = planes + at_once_ * planes_size(block_);
    T *const gys = xs + at_once_ * combined_size(x_), *const line = gys + combined_size(gy_);
    const auto reads = [](const Product& p, size_t kind) {
      return std::any_of(p.terms.begin(), p.terms.end(), [&](const Product::Term& t) { return t.kind == kind; });
    };
    for (size_t kind_d = 0; kind_d < axes_[0].kinds.size(); ++kind_d) {
      for (int64_t x = 0; x < inputs.count; ++x) combine_planes(b, kind_d, raw_x + x * raw_size(x_, b), planes + x * planes_size(b));
      for (size_t kind_h = 0; kind_h < axes_[1].kinds.size(); ++kind_h) {
        for (int64_t x = 0; x < inputs.count; ++x)
          combine_rows(x_, b, {0, 0, 0}, length(x_, 0, b), 1, x_.axis[1].of[kind_h], all, planes + x * planes_size(b), line, xs + x * combined_size(x_));
        for (size_t d = 0; d < axes_[0].products.size(); ++d)
          for (size_t h = 0; h < axes_[1].products.size(); ++h) {
            if (!reads(axes_[0].products[d], kind_d) || !reads(axes_[1].products[h], kind_h)) continue;
            const Inside inside = this->inside(b, axes_[0].products[d], axes_[1].products[h]);
            find_runs(b, inside, runs);
            if (runs.x.empty() && !set) continue;
            for (int64_t y = 0; y < part.count; ++y) {
              combine_rows(gy_, b, gy_.axis[0].of[d], raw(gy_, 0, b), gy_.axis[0].step, gy_.axis[1].of[h], inside, raw_gy + y * raw_size(gy_, b), line, gys);
              for_each_term(b, {d, h}, {kind_d, kind_h}, [&](int64_t sum, int64_t x_at, int64_t gy_at) {
                for (int64_t x = 0; x < inputs.count; ++x)
                  multiply_panels(outputs, inputs.first + x, part.first + y, xs + x * combined_size(x_) + x_at, gys + gy_at, runs,
                                  sums + sum * term_size(outputs), set);
              });
            }
          }
      }
    }
  }

  // f(sum, where the kind starts, where the product starts) for the terms of two products of d and h that read two kinds, and all terms of w.
  template <class F>
  void for_each_term(const PositionBlock& b, std::array<size_t, 2> product, std::array<size_t, 2> kind, F f) const {
    const auto term = [&](size_t a, size_t product, size_t i) -> const Product::Term& { return axes_[a].products[product].terms[i]; };
    const auto shift = [&](size_t a, const Product::Term& t) { return t.shift - axes_[a].least_shift; };
    for (size_t w = 0; w < axes_[2].products.size(); ++w)
      for (size_t td = 0; td < axes_[0].products[product[0]].terms.size(); ++td)
        for (size_t th = 0; th < axes_[1].products[product[1]].terms.size(); ++th) {
          const Product::Term &d = term(0, product[0], td), &h = term(1, product[1], th);
          if (d.kind != kind[0] || h.kind != kind[1]) continue;
          for (size_t tw = 0; tw < axes_[2].products[w].terms.size(); ++tw) {
            const Product::Term& along_w = term(2, w, tw);
            const int64_t sum =
                ((start_[0][product[0]] + int64_t(td)) * terms_[1] + start_[1][product[1]] + int64_t(th)) * terms_[2] + start_[2][w] + int64_t(tw);
            const int64_t rows = shift(0, d) * length(x_, 1, b) + shift(1, h);
            f(sum, int64_t(along_w.kind) * combined_size(x_, b) + rows * combined_row(x_, b) + shift(2, along_w) * x_.width,
              int64_t(w) * combined_size(gy_, b));
          }
        }
  }

  // Panel x of the input times panel y of grad_output.
  void multiply_panels(const PanelRange& outputs, int64_t x, int64_t y, const T* xs, const T* gys, const Runs& runs, T* sums, bool set) const {
    const int64_t x_channels = x_.size(x), y_channels = gy_.size(y);
    const int64_t rows = gy_on_lanes_ ? x_channels : y_channels, vectors = ceil_div(gy_on_lanes_ ? y_channels : x_channels, k_.lanes);
    const int64_t row = gy_on_lanes_ ? x * x_.width : (y - outputs.first) * gy_.width, panel = gy_on_lanes_ ? y - outputs.first : x;
    T* const to = sums + (panel * this->rows(outputs) + row) * lanes();
    SpatialTile<T> job;
    job.weight_offset = (gy_on_lanes_ ? runs.x : runs.gy).data();
    job.weight_step = (gy_on_lanes_ ? x_ : gy_).width;
    job.region = gy_on_lanes_ ? gys : xs;
    job.tap_offset = (gy_on_lanes_ ? runs.gy : runs.x).data();
    job.taps = int64_t(runs.x.size());
    job.channels = runs.steps;
    job.channel_stride = lanes();
    job.ldc = lanes();
    job.accumulate = !set;
    for (int64_t r = 0; r < rows; r += rows_) {
      job.weights = (gy_on_lanes_ ? xs : gys) + r;
      job.c = to + r * job.ldc;
      // The sums of all terms outgrow the caches; those of a tile arrive while it runs.
      for (int64_t i = 0; i < rows_ * job.ldc * int64_t(sizeof(T)); i += 64) __builtin_prefetch(reinterpret_cast<const char*>(job.c) + i, 1);
      k_.spatial[vectors][std::min(rows_, rows - r)](job);
    }
    if (const int64_t written = vectors * k_.lanes; set && written < lanes())  // of the last panel: added up with the others
      for (int64_t r = 0; r < rows; ++r) std::memset(static_cast<void*>(to + r * lanes() + written), 0, size_t(lanes() - written) * sizeof(T));
  }

  // Sums of all strands -> gradients of taps, along w, h and d, some rows of a panel of lanes at once.
  void write(int64_t group, const PanelRange& outputs, T* sums, const View& gw, const Options& options) const {
    constexpr int64_t kRows = 8;
    const int64_t rows = this->rows(outputs), size = term_size(outputs), pieces = ceil_div(rows, kRows), most = std::min(kRows, rows) * lanes();
    const int64_t kd = p_.axis[0].kernel, kh = p_.axis[1].kernel, kw = p_.axis[2].kernel;
    const int64_t along_w = terms_[0] * terms_[1] * kw * most, along_h = terms_[0] * kh * kw * most, along_d = kd * kh * kw * most;
    // to[outer][tap][n elements] = shares of from[outer][term], `step` elements from one to the next
    const auto add = [&](size_t a, T* to, const T* from, int64_t outer, int64_t step, int64_t n) {
      const int64_t taps = p_.axis[a].kernel;
      std::memset(static_cast<void*>(to), 0, size_t(outer * taps * n) * sizeof(T));
      for (int64_t o = 0; o < outer; ++o)
        for_each_share(axes_[a], [&](int64_t term, int64_t tap, double factor) {
          T* const at = to + (o * taps + tap) * n;
          k_.combine_rows(at, 0, at, from + (o * terms_[a] + term) * step, T(factor), 0, 1, n);
        });
    };
    run_tasks<T>(lane_panels(outputs) * pieces, along_w + along_h + along_d, options, [&](int64_t task, T* scratch) {
      const int64_t panel = task / pieces, row = task % pieces * kRows, count = std::min(kRows, rows - row), n = count * lanes();
      const int64_t place = (panel * rows + row) * lanes();
      T *const w = scratch, *const h = w + along_w, *const d = h + along_h, *const from = sums + place;
      for (int64_t strand = 1; strand < strands_; ++strand)
        k_.combine_rows(from, size, from, from + strand * most_sums(), T(1), size, terms_[0] * terms_[1] * terms_[2], n);
      add(2, w, from, terms_[0] * terms_[1], size, n);
      add(1, h, w, terms_[0], kw * n, kw * n);
      add(0, d, h, 1, kh * kw * n, kh * kw * n);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t in = gy_on_lanes_ ? row + r : panel * x_.width, out = outputs.first * gy_.width + (gy_on_lanes_ ? panel * gy_.width : row + r);
        store_taps(p_, gw, (group * x_.channels + in) * gw.stride[0] + out * gw.stride[1], gw.stride[gy_on_lanes_ ? 1 : 0], d + r * lanes(), n,
                   gy_on_lanes_ ? gy_.size(outputs.first + panel) : x_.size(panel), k_);
      }
    });
  }

  // Vectors of a panel that are combined for a position: rows of h (and d), then kinds or products of w.
  static double combined_vectors(const Operand& o, bool planes) {
    double vectors = 0;
    for (const Combination& d : o.axis[0].of) {
      if (planes) vectors += double(o.axis[1].step * o.axis[2].step);
      for (const Combination& h : o.axis[1].of) {
        const int rows = d.sign && !planes ? 2 : 1;
        vectors += double(o.axis[2].step) * (rows * (h.sign ? 1 : 0) + rows - 1) + double(o.axis[2].of.size());
      }
    }
    return vectors;
  }

  void price() {
    double terms = 1, raw_x = double(p_.batch), raw_gy = double(p_.batch), run = double(p_.batch), inside = double(p_.batch);
    for (size_t a = 0; a < 3; ++a) {
      const double cuts = double(positions(a)) / double(block_.size[a]);
      terms *= double(terms_[a]);
      raw_x *= cuts * double(raw(x_, a, block_));
      raw_gy *= cuts * double(raw(gy_, a, block_));
      run *= a == 2 ? cuts * double(length(x_, a, block_)) : double(positions(a));
      inside *= cuts * double(length(x_, a, block_));
    }
    const auto vectors = [&](const Operand& o) { return double(o.panels() * o.width) / double(k_.lanes); };
    const double tiles = double(x_.panels() * gy_.panels()) * double(ceil_div(std::max<int64_t>(k_.lanes, rows_), rows_));
    const double multiply = terms * (run * tile_cycles_ + double(blocks()) * tiles * kSumsOfTile);
    const double packed = kPackedSample * double(k_.lanes) * (double(rounds_ * gy_parts_) * raw_x * vectors(x_) + double(x_parts_) * raw_gy * vectors(gy_));
    const double combined = kCombinedVector * (double(rounds_ * gy_parts_) * inside * combined_vectors(x_, true) * vectors(x_) +
                                               double(ceil_div(x_.panels(), at_once_)) * run * combined_vectors(gy_, false) * vectors(gy_));
    cycles = double(p_.groups) *
             (double(rounds_) * kCallCycles + multiply + packed + combined + kSumVector * double(strands_) * terms * double(x_.channels) * vectors(gy_));
    const int64_t tasks = strands_ * x_parts_ * gy_parts_;
    cycles *= double(2 * ceil_div(tasks, 2)) / double(tasks);  // as on two threads: bits may not depend on how many there are
    if (most_sums() * int64_t(sizeof(T)) > kMostSumsBytes) cycles = std::numeric_limits<double>::infinity();
  }

  const Problem p_;
  const TileKernels<T>& k_;
  const TransformedAxes axes_;
  std::array<std::vector<int64_t>, 3> start_;  // of each product, in terms
  std::array<int64_t, 3> terms_;
  Operand x_, gy_;
  bool gy_on_lanes_ = true;         // of a tile; the input on its rows
  int64_t rows_ = 1, vectors_ = 1;  // of a tile
  double tile_cycles_;              // of a position and term, all tiles
  int64_t rounds_, strands_, x_parts_, gy_parts_;
  int64_t at_once_;        // panels of input channels that are combined at once
  PositionBlock block_{};  // the largest
};

}  // namespace

template <class T>
std::unique_ptr<WeightGradPlan> plan_two_tap_weight_grad(const Problem& p, const Kernels& kernels, bool everywhere) {
  std::array<AxisPlan, 3> plans;
  Method most = kDirect;
  if (p.batch == 0 || p.in_channels == 0 || p.out_channels == 0) return nullptr;
  for (size_t a = 0; a < 3; ++a) {
    if (p.axis[a].kernel > kMostKernel || p.axis[a].stride > kMostStride) return nullptr;
    plans[a] = forward_axis(p.axis[a], false);
    if (plans[a].positions == 0 || plans[a].source_size == 0) return nullptr;
    if (has_pairs(plans[a])) most[a] = best_pairing(plans[a]);
  }
  std::unique_ptr<TwoTapWeightGrad<T>> best;
  for_each_choice(most, [&](const Method& method) {
    if (everywhere && method != most) return;
    TransformedAxes axes = transformed(plans, method);
    for (const TransformedAxis& a : axes)
      if (a.most_shift - a.least_shift > kMostHalo || grad_axis(a).reach > kMostHalo) return;
    auto plan = std::make_unique<TwoTapWeightGrad<T>>(p, std::move(axes), kernels);
    if (plan->cycles < (best ? best->cycles : std::numeric_limits<double>::infinity())) best = std::move(plan);
  });
  return best;
}

template std::unique_ptr<WeightGradPlan> plan_two_tap_weight_grad<float>(const Problem&, const Kernels&, bool);
template std::unique_ptr<WeightGradPlan> plan_two_tap_weight_grad<double>(const Problem&, const Kernels&, bool);

}  // namespace tconv3d
