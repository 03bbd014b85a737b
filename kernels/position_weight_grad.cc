// SPDX-License-Identifier: Apache-2.0
// Weight gradient with the positions on the vector lanes: depthwise layers and those of few channels, which leave lanes empty or turn every sample to
// channels last for a handful of products (weight_grad.cc). grad_output is packed as rows of one pitch (region.h), and the input too unless it can be read
// in place, row by row; so a tap is an offset, and the rows of a plane are one run:
//
//     input       = [d][channel][h][pitch]              of a block of positions, zeros between rows
//     grad_output = [w segment][d][channel][h][pitch]   all that the block's taps reach, zeros beyond the array
//     sums        = [out][in][tap][lane]                of a task: some channels out, and the blocks of a strand, added in order
//
// These zeros meet samples of the other operand: exact while those are finite. A sum that is not makes weight_grad.cc start over.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "region.h"
#include "weight_grad.h"

namespace tconv3d {

namespace {

constexpr int64_t kMostSums = int64_t(1) << 17;    // elements of a task's sums: 512 KiB of float32, 1 MiB of float64
constexpr int64_t kMostPacked = int64_t(1) << 20;  // elements of the smallest block, 4 and 8 MiB; twice as many of channels at once
// Packed bytes of a block, whatever the caches, since blocks fix the order of additions: three quarters of 512 KiB.
constexpr int64_t kBlockBytes = int64_t(384) << 10;
constexpr int64_t kMostStrands = 64;   // each has sums of its own for all weights
constexpr int64_t kMostChannels = 32;  // at once: a line of 16-bit neighbours
// Vectors of a row from which on several channels of the input are read where they are, row by row: gcnet_deconv5, 403 MB of input, two threads, 69 ms
// packed and 60 so.
constexpr int64_t kLongRow = 4;
// Cycles of a row or plane beside its vectors. With these prices, over 190 layers of few channels a group, the choice is 1.176 times as fast as before and
// the better of both each time 1.193.
constexpr double kLineCycles = 6;

// Cycles of a vector of positions and of a call.
double vector_cycles(int64_t rows, int64_t taps, double loads_per_vector) {
  return std::max({0.5 * double(rows * taps), 0.5 * (double(rows) + double(taps) * loads_per_vector), 4.0}) + 0.3;
}
double call_cycles(int64_t rows, int64_t taps) { return 30 + 2 * double(rows * taps); }

// The input, read sample by sample.
AxisPlan input_axis(const Axis& a) {
  AxisPlan plan;
  plan.source_size = plan.target_size = plan.positions = a.input;
  return plan;
}

// Both operands as sources of regions. Depthwise layers are one group of many channels here.
template <class T>
class PositionWeightGrad : public WeightGradPlan {
 public:
  PositionWeightGrad(const Problem& p, const Kernels& kernels) : p_(p), k_(tiles<T>(kernels)) {
    for (size_t a = 0; a < 3; ++a) {
      input_axis_[a] = input_axis(p.axis[a]);
      grad_axis_[a] = input_grad_axis(p.axis[a]);
      taps_ *= p.axis[a].kernel;
    }
    depthwise_ = p.groups > 1 && p.in_channels == p.groups && p.out_channels == p.groups;
    groups_ = depthwise_ ? 1 : p.groups;
    in_ = depthwise_ ? 1 : p.in_channels / p.groups;
    out_ = p.out_channels / p.groups;
    by_row_ = in_ > 1 && p.axis[2].input >= kLongRow * k_.lanes;
    choose_tile();
    choose_block();
    // Strands do not know the memory format, so depthwise channels count as if they were neighbours.
    const int64_t units = depthwise_ ? ceil_div(p.groups, kMostChannels) : p.groups * ceil_div(out_, channels_),
                  steps = int64_t(std::min(cycles / double(units) / kStepCycles, double(kMostStrands)));
    strands_ = std::clamp<int64_t>(std::max(ceil_div(kTasks, units), steps), 1, std::max<int64_t>(1, blocks()));
  }

  std::string describe() const override {
    return "direct, positions on the lanes: tiles of " + by({tile_rows_}) + " channels x " + by({tile_taps_}) + " taps; " + by({blocks()}) + " blocks of " +
           by({block_[0], block_[1], block_[2]}) + " positions and " + by({channels_}) + " channels out";
  }

  bool run(const View& x, const View& gy, const View& gw, const Options& options) const override {
    const int64_t weights = p_.in_channels * out_ * taps_;
    Scratch scratch(size_t(strands_ * weights + k_.lanes) * sizeof(T));  // whole vectors of the last strand are read
    T* const totals = reinterpret_cast<T*>(scratch.data());
    const Packing packing(*this, x, gy, channels_at_once(gy));
    const int64_t parts = ceil_div(p_.out_channels / groups_, packing.channels()), units = groups_ * parts;
    run_tasks<T>(units * strands_, packing.size() + packing.channels() * in_ * taps_ * k_.lanes, options, [&](int64_t task, T* memory) {
      const int64_t strand = task / units, unit = task % units;
      add_strand(packing, x, strand, unit / parts, unit % parts * packing.channels(), memory, totals + strand * weights);
    });
    for (int64_t strand = 1; strand < strands_; ++strand) k_.add_runs(totals, totals, totals + strand * weights, weights);
    if (!std::all_of(totals, totals + weights, [](T sum) { return std::isfinite(sum); })) return false;
    for (int64_t i = 0; i < p_.in_channels; ++i)
      for (int64_t o = 0; o < out_; ++o) store_taps(p_, gw, i * gw.stride[0] + o * gw.stride[1], 1, totals + (i * out_ + o) * taps_, 1, 1, k_);
    return true;
  }

 private:
  // How the operands of a call are packed, and where they come from.
  struct Packing {
    const Gather input_gather, grad_gather;
    const bool in_place;  // the input
    const RegionPlan grad_plan, input_plan;
    const Region<T> input, grad;
    const std::vector<int64_t> offsets;  // of all taps, in a region of grad_output

    // `channels` of grad_output at once.
    Packing(const PositionWeightGrad& w, const View& x, const View& gy, int64_t channels)
        : input_gather(w.gather(x, w.input_axis_, w.p_.in_channels)),
          grad_gather(w.gather(gy, w.grad_axis_, w.p_.out_channels)),
          in_place(w.by_row_ && x.stride[4] == 1 && x.element_size() == int64_t(sizeof(T))),
          grad_plan(w.grad_plan(grad_gather, w.block_, channels)),
          input_plan(w.input_plan(grad_plan, w.depthwise_ ? channels : w.in_)),
          input(input_gather, input_plan, w.k_),
          grad(grad_gather, grad_plan, w.k_),
          offsets(grad.tap_offsets({&w.grad_axis_[0].phases[0], &w.grad_axis_[1].phases[0], &w.grad_axis_[2].phases[0]})) {}
    Packing(const Packing&) = delete;

    int64_t channels() const { return grad_plan.channels; }
    int64_t size() const { return odd_lines<T>(input_plan.size) + odd_lines<T>(grad_plan.size); }
  };

  Gather gather(const View& v, const std::array<AxisPlan, 3>& axis, int64_t channels) const {
    return {p_.batch, groups_, channels / groups_, 1, axis, v, {}, {}, nullptr, 0, 0, 0, {}, {}};
  }

  RegionPlan grad_plan(const Gather& g, const std::array<int64_t, 3>& block, int64_t channels) const {
    RegionPlan plan;
    plan.block = block;
    plan.channels = channels;
    lay_out<T>(plan, g, k_);
    return plan;
  }

  // Rows of the input in the pitch of grad_output's.
  RegionPlan input_plan(const RegionPlan& grad, int64_t channels) const {
    RegionPlan plan;
    plan.block = grad.block;
    plan.blocks = grad.blocks;
    plan.channels = channels;
    for (AxisPacking& axis : plan.packing) axis.segments = {{0, 0, 0}};
    plan.packing[2].segments[0].extra = grad.pitch - grad.block[2];
    plan.pitch = plan.row_stride = grad.pitch;
    plan.channel_stride = odd_lines<T>(plan.block[1] * plan.pitch);
    plan.depth_stride = channels * plan.channel_stride;
    plan.segment_stride = plan.block[0] * plan.depth_stride;
    plan.size = plan.segment_stride + slack(k_);
    return plan;
  }

  // Of grad_output. Channels side by side in memory: as many as fill a line, if they and their sums fit, in equal parts.
  int64_t channels_at_once(const View& gy) const {
    if (gy.stride[1] != 1) return channels_;
    const int64_t all = p_.out_channels / groups_, line = std::min<int64_t>(64 / gy.element_size(), all);
    const int64_t most = std::max(channels_, std::min({line, kMostSums / (in_ * taps_ * k_.lanes), 2 * kMostPacked / (packed_ / channels_)}));
    return ceil_div(all, ceil_div(all, most));
  }

  void choose_tile() {
    double least = std::numeric_limits<double>::infinity();
    for (int64_t rows = 1; rows <= std::min<int64_t>(kMaxProductRows, in_); ++rows)
      for (int64_t taps = 1; taps <= std::min<int64_t>(kMaxProductTaps, taps_) && k_.position_product[rows][taps]; ++taps)
        if (const double tiles = tile_count(rows, taps) * vector_cycles(rows, taps, loads_per_vector<T>(k_.lanes)); tiles < least)
          tile_rows_ = rows, tile_taps_ = taps, least = tiles;
  }

  double tile_count(int64_t rows, int64_t taps) const { return double(ceil_div(in_, rows) * ceil_div(taps_, taps)); }

  // Blocks of whole rows, cut along d, then h, and channels out packed at once: the least cycles.
  void choose_block() {
    const Gather gy = gather({}, grad_axis_, p_.out_channels);
    for (int64_t depth = p_.axis[0].input, height = p_.axis[1].input;;) {
      const bool smallest = depth == 1 && height == 1;
      const int64_t most = smallest ? kMostPacked : kBlockBytes / int64_t(sizeof(T));
      for (int64_t channels = depthwise_ ? 1 : out_; channels >= 1; channels = channels > 1 ? ceil_div(channels, 2) : 0) {
        // Before anything is laid out: a plan for a layer of many channels took 78 us, and sizes near 2^63 would wrap.
        const double positions = double(depth) * double(height) * double(p_.axis[2].input);
        if (double(in_) * double(channels * taps_ * k_.lanes) > double(kMostSums) || double(channels + in_) * positions > double(most)) continue;
        const RegionPlan grad = grad_plan(gy, {depth, height, p_.axis[2].input}, channels);
        const int64_t size = grad.size + input_plan(grad, in_).size;
        if (size > most) continue;
        if (const double price = block_cycles(gy, grad); price < cycles)
          cycles = price, block_ = grad.block, blocks_ = grad.blocks, channels_ = channels, packed_ = size;
      }
      if (smallest) break;
      (depth > 1 ? depth : height) = ceil_div(depth > 1 ? depth : height, 2);
    }
  }

  // Of all blocks and channels; more where they make too few tasks for threads.
  double block_cycles(const Gather& gy, const RegionPlan& grad) const {
    const double lines = double(grad.block[0] * (by_row_ ? grad.block[1] : 1)), parts = double(ceil_div(out_, grad.channels));
    const double vector = vector_cycles(tile_rows_, tile_taps_, loads_per_vector<T>(k_.lanes));
    const double products =
        tile_count(tile_rows_, tile_taps_) * double(out_) *
        (lines * (double(ceil_div(by_row_ ? grad.block[2] : grad.run, k_.lanes)) * vector + kLineCycles) + call_cycles(tile_rows_, tile_taps_));
    const double input = parts * double(in_ * grad.block[0] * grad.block[1]) * ((by_row_ ? 0 : kRowCall) + double(grad.pitch) * kPackedElement);
    const double blocks = double(p_.batch * grad.blocks[0] * grad.blocks[1]), tasks = blocks * parts * double(p_.groups);
    const double packed = packing_cycles(gy, grad) / double(depthwise_ ? p_.groups : 1);
    return (products + input + packed) * double(p_.groups) * blocks * std::max(1.0, 0.5 * double(kTasks) / tasks);
  }

  int64_t blocks() const { return p_.batch * blocks_[0] * blocks_[1]; }

  // Where the input lies: channels, planes and rows so many elements apart.
  struct Input {
    const T* first;
    int64_t channel, plane, row;
  };

  // From channel `first` of a group on, in place or packed to `memory`.
  Input input(const Packing& packing, const View& x, const Block& b, int64_t first, T* memory) const {
    const RegionPlan& plan = packing.input_plan;
    if (packing.in_place) {
      const auto& s = x.stride;
      const int64_t at = b.image * s[0] + (b.group * in_ + first) * s[1] + b.from[0] * s[2] + b.from[1] * s[3];
      return {static_cast<const T*>(x.at(at)), s[1], s[2], s[3]};
    }
    packing.input.pack(b, first, memory);
    return {memory, plan.channel_stride, plan.depth_stride, plan.row_stride};
  }

  // The sums of channels of grad_output, of a group from `first` on, over the blocks of a strand.
  void add_strand(const Packing& packing, const View& x, int64_t strand, int64_t group, int64_t first, T* memory, T* totals) const {
    T *const grad = memory + odd_lines<T>(packing.input_plan.size), *const sums = memory + packing.size();
    const int64_t channels = std::min(packing.channels(), p_.out_channels / groups_ - first), of_image = blocks_[0] * blocks_[1],
                  of_channel = in_ * taps_ * k_.lanes;
    std::memset(static_cast<void*>(sums), 0, size_t(channels * of_channel) * sizeof(T));
    for (int64_t i = strand * blocks() / strands_; i < (strand + 1) * blocks() / strands_; ++i) {
      const Block b = packing.grad.block((i / of_image * groups_ + group) * of_image + i % of_image);
      packing.grad.pack(b, first, grad);
      Input from = input(packing, x, b, depthwise_ ? first : 0, memory);
      for (int64_t channel = 0; channel < channels; ++channel, from.first += depthwise_ ? from.channel : 0)
        multiply(packing, b, from, grad + channel * packing.grad_plan.channel_stride, sums + channel * of_channel);
    }
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t row = 0; row < in_; ++row)
        write(sums + channel * of_channel + row * taps_ * k_.lanes,
              totals + (depthwise_ ? first + channel : (group * in_ + row) * out_ + first + channel) * taps_);
  }

  // sums[tap][lane] -> totals[tap]
  void write(const T* sums, T* totals) const {
    for (int64_t tap = 0; tap < taps_; ++tap) {
      T sum = 0;
      for (int64_t lane = 0; lane < k_.lanes; ++lane) sum += *sums++;
      totals[tap] = sum;
    }
  }

  // Products of a channel of grad_output with all of its group's channels of the input, or of a depthwise layer with its own.
  void multiply(const Packing& packing, const Block& b, const Input& x, const T* grad, T* sums) const {
    const RegionPlan& gy = packing.grad_plan;
    for_each_piece(in_, tile_rows_, [&](int64_t row, int64_t rows) {
      for_each_piece(taps_, tile_taps_, [&](int64_t tap, int64_t taps) {
        const auto product = k_.position_product[rows][taps];
        PositionProduct<T> job{x.first + row * x.channel, x.channel, 0, grad, &packing.offsets[size_t(tap)], 0, 0, 0, sums + (row * taps_ + tap) * k_.lanes,
                               taps_ * k_.lanes};
        if (!by_row_) {
          add_chains(product, job, b.size[0], x.plane, gy.depth_stride, packing.grad.run_length(b));
          return;
        }
        for (int64_t d = 0; d < b.size[0]; ++d, job.rows += x.plane, job.taps += gy.depth_stride)
          add_chains(product, job, b.size[1], x.row, gy.row_stride, b.size[2]);
      });
    });
  }

  // Lines of positions, in chains of at most kChain multiply-adds.
  void add_chains(void (*multiply)(const PositionProduct<T>&), PositionProduct<T> job, int64_t lines, int64_t input_line, int64_t grad_line,
                  int64_t positions) const {
    const int64_t most = std::max<int64_t>(1, kChain / ceil_div(positions, k_.lanes));
    const T *const rows = job.rows, *const taps = job.taps;
    job.row_line = input_line;
    job.tap_line = grad_line;
    for (int64_t line = 0; line < lines; line += most)
      for (int64_t p = 0; p < positions; p += kChain * k_.lanes) {
        job.rows = rows + line * input_line + p;
        job.taps = taps + line * grad_line + p;
        job.lines = std::min(most, lines - line);
        job.positions = std::min(kChain * k_.lanes, positions - p);
        multiply(job);
      }
  }

  const Problem p_;
  const TileKernels<T>& k_;
  std::array<AxisPlan, 3> input_axis_, grad_axis_;
  bool depthwise_, by_row_;
  int64_t groups_, in_, out_, taps_ = 1;  // in and out: channels of a group
  int64_t tile_rows_ = 1, tile_taps_ = 1, strands_ = 1;
  int64_t channels_ = 1, packed_ = 1;  // of grad_output at once, and elements of both operands
  std::array<int64_t, 3> block_{}, blocks_{};
};

}  // namespace

template <class T>
std::unique_ptr<WeightGradPlan> plan_position_weight_grad(const Problem& p, const Kernels& kernels) {
  for (const Axis& a : p.axis)
    if (a.input == 0 || a.output == 0) return nullptr;
  if (p.batch == 0) return nullptr;
  auto plan = std::make_unique<PositionWeightGrad<T>>(p, kernels);
  if (plan->cycles == std::numeric_limits<double>::infinity()) return nullptr;
  return plan;
}

template std::unique_ptr<WeightGradPlan> plan_position_weight_grad<float>(const Problem&, const Kernels&);
template std::unique_ptr<WeightGradPlan> plan_position_weight_grad<double>(const Problem&, const Kernels&);

}  // namespace tconv3d
