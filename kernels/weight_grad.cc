// SPDX-License-Identifier: Apache-2.0
// Weight gradient: for every tap one matrix product with the positions as the reduction. The positions are cut into blocks; a block's input and
// grad_output are packed with channels last, then every (tap, group, column tile) adds its products. The blocks in turn are cut into strands with
// sums of their own, which are added at the end. Both cuts depend on the shape alone, so the order of additions is the same for any number of
// threads, whether they share the work of a block or take a strand each.
#include <cstring>
#include <limits>

#include "cost.h"
#include "engine.h"
#include "gather.h"

namespace tconv3d {

namespace {

constexpr int64_t kChain = 1024;  // terms added in one chain of multiply-adds
// Packed bytes of a block, by the shape alone since they fix the order of additions. Sums that outgrow the second-level cache are read and written
// anew for each block, so then blocks are larger: 3dgan_l2, whose sums take 33 MB, 55 to 45 ms.
constexpr int64_t kBlockBytes = int64_t(1) << 20, kLargeBlockBytes = int64_t(8) << 20, kLargeSumsBytes = int64_t(4) << 20;

// Threads that take a strand each meet once; those that share a block meet three times in it, and read what another core packed: gcnet_deconv5, 450
// blocks, took 67 to 126 ms on two threads and now 35. The sums of all strands fit so many bytes.
constexpr int64_t kStrandBytes = int64_t(4) << 20, kMostStrands = 64;
constexpr double kWellSpread = 0.75;  // of the threads' time in strands, else they share blocks

struct Side {
  const View* view;
  int64_t channels;  // per group
};

// A block of input positions: whole rows along w.
struct Block {
  std::array<int64_t, 3> from, size;  // image, d, h
};

// A run of blocks and what it adds up. `options`: threads that share a block.
template <class T>
struct Strand {
  T *sums, *input, *grad;  // packed blocks
  bool first;              // no block added yet
  const Options& options;
};

struct Lines {
  int64_t from_d, from_h, depth, rows, width;  // lines packed: [image][d][h], each width positions of all channels
};

template <class T>
class WeightGrad {
 public:
  WeightGrad(const Problem& p, const View& x, const View& gy, const View& gw, const Options& options, const Kernels& kernels)
      : p_(p), k_(tiles<T>(kernels)), options_(options), gw_(gw) {
    const Side input{&x, p.in_channels / p.groups}, grad{&gy, p.out_channels / p.groups};
    // The side that wastes fewer lanes goes on them. Products commute: the bits are the same either way.
    lanes_are_input_ = shape(grad.channels, input.channels) < shape(input.channels, grad.channels);
    rows_ = lanes_are_input_ ? grad : input;
    lanes_ = lanes_are_input_ ? input : grad;
    // Few channels of grad_output on the rows: the taps along w join them, neighbours in memory as well.
    const bool merges = p.groups == 1 && lanes_are_input_ && rows_.channels <= kMergedChannels && p.axis[2].dilation == 1;
    // One channel in and out per group: the groups themselves go on the lanes of both operands, the taps along w on the rows. Tap by tap, each pass
    // read both operands from the second-level cache: mednext_k5_dw64 35 ms on one core, 28 with the taps together.
    depthwise_ = p.groups > 1 && rows_.channels == 1 && lanes_.channels == 1;
    row_taps_ = merges || (depthwise_ && p.axis[2].kernel <= kMaxLaneTaps) ? p.axis[2].kernel : 1;
    shape(row_taps_ * rows_.channels, lanes_.channels);
    if (depthwise_)
      for (tile_vectors_ = kMaxLaneVectors; !k_.lane_product[row_taps_][tile_vectors_];) --tile_vectors_;
    lane_channels_ = depthwise_ ? p.groups : lanes_.channels;
    outer_groups_ = depthwise_ ? 1 : p.groups;
    padded_lanes_ = ceil_div(lane_channels_, k_.lanes) * k_.lanes;
    taps_ = 1;
    for (const Axis& a : p.axis) taps_ *= a.kernel;
    block_ = block_size();
  }

  void run() {
    const std::array<int64_t, 3> extent{p_.batch, p_.axis[0].input, p_.axis[1].input};
    std::array<int64_t, 3> blocks;
    for (size_t a = 0; a < 3; ++a) blocks[a] = ceil_div(extent[a], block_[a]);
    const int64_t count = blocks[0] * blocks[1] * blocks[2],
                  strands = std::clamp<int64_t>(kStrandBytes / sums_bytes(), 1, std::clamp<int64_t>(count, 1, kMostStrands));
    const int64_t size = taps_ * outer_groups_ * rows_.channels * padded_lanes_, packed = capacity(true) + capacity(false) + 2 * slack();
    Scratch sums(size_t(strands * size) * sizeof(T));
    sums_ = reinterpret_cast<T*>(sums.data());
    const auto add_strand = [&](int64_t strand, T* buffer, const Options& options) {
      Strand<T> s{sums_ + strand * size, buffer, buffer + capacity(true) + slack(), true, options};
      for (int64_t i = strand * count / strands; i < (strand + 1) * count / strands; ++i, s.first = false) {
        Block b{{i / blocks[2] / blocks[1], i / blocks[2] % blocks[1], i % blocks[2]}, {}};
        for (size_t a = 0; a < 3; ++a) {
          b.from[a] *= block_[a];
          b.size[a] = std::min(block_[a], extent[a] - b.from[a]);
        }
        add(s, b);
      }
      if (s.first) std::memset(static_cast<void*>(s.sums), 0, size_t(size) * sizeof(T));  // an empty input
    };
    const int64_t rounds = ceil_div(strands, options_.threads);
    if (options_.threads > 1 && double(strands) > kWellSpread * double(rounds * options_.threads)) {
      const Options alone;
      run_tasks<T>(strands, packed, options_, [&](int64_t strand, T* buffer) { add_strand(strand, buffer, alone); });
    } else {
      Scratch buffer(size_t(packed) * sizeof(T));
      for (int64_t strand = 0; strand < strands; ++strand) add_strand(strand, reinterpret_cast<T*>(buffer.data()), options_);
    }
    for (int64_t strand = 1; strand < strands; ++strand) k_.add_runs(sums_, sums_, sums_ + strand * size, size);
    write();
  }

 private:
  static constexpr int64_t kVectors = 4;
  static constexpr int64_t kMergedChannels = 4;

  // The tile for so many channels on the rows and on the lanes, and its cycles for one position.
  double shape(int64_t rows, int64_t lanes) {
    double best = std::numeric_limits<double>::infinity();
    for (int64_t v = 1; v <= kVectors; ++v)
      for (int64_t r = 1; r <= kMaxRows && r <= rows; ++r) {
        if (!k_.spatial[v][r]) continue;
        const double cycles = double(ceil_div(rows, r) * ceil_div(lanes, v * k_.lanes)) * step_cycles(r, v, 1, k_.lanes * int64_t(sizeof(T)));
        if (cycles < best) best = cycles, tile_rows_ = r, tile_vectors_ = v;
      }
    return best;
  }

  int64_t slack() const { return kVectors * k_.lanes; }

  // Lines of input, or of the grad_output that a block of so many input lines touches.
  Lines lines(const Block& b, bool input) const {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    if (input) return {b.from[1], b.from[2], b.size[1], b.size[2], w.input};
    const auto reach = [](const Axis& a, int64_t from, int64_t size) {
      const int64_t first = std::clamp<int64_t>(from * a.stride - a.crop, 0, a.output);
      return std::array<int64_t, 2>{first,
                                    std::clamp<int64_t>((from + size - 1) * a.stride + (a.kernel - 1) * a.dilation - a.crop + 1, first, a.output) - first};
    };
    const auto rd = reach(d, b.from[1], b.size[1]), rh = reach(h, b.from[2], b.size[2]);
    return {rd[0], rh[0], rd[1], rh[1], w.output};
  }

  int64_t capacity(bool input) const {
    const auto most = [&](size_t a, int64_t size) {
      const Axis& axis = p_.axis[a];
      return input ? std::min(size, axis.input) : std::min(axis.output, (size - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1);
    };
    const int64_t channels = input ? p_.in_channels : p_.out_channels, width = input ? p_.axis[2].input : p_.axis[2].output;
    return block_[0] * most(0, block_[1]) * most(1, block_[2]) * width * channels;
  }

  // Without padding, which depends on the instruction set.
  int64_t sums_bytes() const { return std::max<int64_t>(1, taps_ * p_.groups * rows_.channels * lanes_.channels * int64_t(sizeof(T))); }

  std::array<int64_t, 3> block_size() {
    const int64_t extent[3] = {p_.batch, p_.axis[0].input, p_.axis[1].input};
    const int64_t most = sums_bytes() > kLargeSumsBytes ? kLargeBlockBytes : kBlockBytes;
    block_ = {1, 1, 1};
    for (int a = 2; a >= 0; --a) {
      int64_t& size = block_[size_t(a)];
      while (size < extent[a]) {
        const int64_t before = size;
        size = std::min(extent[a], size * 2);
        if ((capacity(true) + capacity(false)) * int64_t(sizeof(T)) <= most) continue;
        size = before;
        return block_;
      }
    }
    return block_;
  }

  void add(const Strand<T>& s, const Block& b) const {
    pack(s, b, true);
    pack(s, b, false);
    const int64_t lane_tiles = ceil_div(padded_lanes_, tile_vectors_ * k_.lanes);
    parallel_for(
        taps_ / row_taps_ * outer_groups_ * lane_tiles, s.options.threads,
        [&](int64_t task, int) { multiply(s, b, task / lane_tiles / outer_groups_ * row_taps_, task / lane_tiles % outer_groups_, task % lane_tiles); },
        s.options.stop);
  }

  void pack(const Strand<T>& s, const Block& b, bool input) const {
    const Lines l = lines(b, input);
    const View& v = *(input == lanes_are_input_ ? lanes_ : rows_).view;
    const int64_t channels = input ? p_.in_channels : p_.out_channels;
    T* const to = input ? s.input : s.grad;
    const int64_t at_once = rows_at_once(v, l.width, l.rows), pieces = ceil_div(l.rows, at_once);
    parallel_for(
        b.size[0] * l.depth * pieces, s.options.threads,
        [&](int64_t task, int) {
          const int64_t row = task % pieces * at_once, plane = task / pieces, d = l.from_d + plane % l.depth, image = b.from[0] + plane / l.depth;
          k_.pack_positions(to + (plane * l.rows + row) * l.width * channels, channels,
                            v.at(image * v.stride[0] + d * v.stride[2] + (l.from_h + row) * v.stride[3]), v.stride[1], channels, v.stride[4],
                            std::min(at_once, l.rows - row) * l.width, v.dtype);
        },
        s.options.stop);
  }

  // The sums of one tap, or of a row of the kernel where its taps lie on the rows, for one group and lane tile.
  void multiply(const Strand<T>& s, const Block& b, int64_t tap, int64_t group, int64_t lane_tile) const {
    const Axis &ah = p_.axis[1], &aw = p_.axis[2];
    const int64_t kw = tap % aw.kernel, kh = tap / aw.kernel % ah.kernel, kd = tap / aw.kernel / ah.kernel;
    if (row_taps_ == 1) {
      const auto [begin, end] = reach(kw);
      multiply(s, b, {kd, kh, kw}, begin, end, rows_.channels, group, lane_tile, s.first);
      return;
    }
    int64_t begin = 0, end = aw.input;
    for (int64_t k = 0; k < row_taps_; ++k) {
      begin = std::max(begin, reach(k)[0]);
      end = std::min(end, reach(k)[1]);
    }
    end = std::max(begin, end);
    multiply(s, b, {kd, kh, 0}, begin, end, row_taps_ * rows_.channels, group, lane_tile, s.first);
    for (int64_t k = 0; k < row_taps_; ++k) {  // at the edges, tap by tap
      const auto [first, last] = reach(k);
      if (first < std::min(begin, last)) multiply(s, b, {kd, kh, k}, first, std::min(begin, last), rows_.channels, group, lane_tile, false);
      if (std::max(end, first) < last) multiply(s, b, {kd, kh, k}, std::max(end, first), last, rows_.channels, group, lane_tile, false);
    }
  }

  // The w positions whose output for tap k exists: 0 <= i*stride + shift < output.
  std::array<int64_t, 2> reach(int64_t k) const {
    const Axis& a = p_.axis[2];
    const int64_t shift = k * a.dilation - a.crop, begin = std::clamp<int64_t>(ceil_div(-shift, a.stride), 0, a.input);
    return {begin, std::clamp<int64_t>(ceil_div(a.output - shift, a.stride), begin, a.input)};
  }

  // `rows` from the first channel of `tap` on, positions begin <= i < end along w. `set`: the first of all products.
  void multiply(const Strand<T>& s, const Block& b, const std::array<int64_t, 3>& tap, int64_t begin, int64_t end, int64_t rows, int64_t group,
                int64_t lane_tile, bool set) const {
    const Axis &ad = p_.axis[0], &ah = p_.axis[1], &aw = p_.axis[2];
    const auto [kd, kh, kw] = tap;
    const int64_t shift = kw * aw.dilation - aw.crop;
    const int64_t first_lane = lane_tile * tile_vectors_ * k_.lanes, vectors = std::min(tile_vectors_, (padded_lanes_ - first_lane) / k_.lanes);
    T* const sums = s.sums + (((kd * ah.kernel + kh) * aw.kernel + kw) * outer_groups_ + group) * rows_.channels * padded_lanes_ + first_lane;
    const Lines in = lines(b, true), out = lines(b, false);
    std::vector<const T*> x, gy;
    x.reserve(size_t(b.size[0] * in.depth * in.rows));
    gy.reserve(x.capacity());
    for (int64_t n = 0; n < b.size[0] && begin < end; ++n)
      for (int64_t d = 0; d < in.depth; ++d)
        for (int64_t h = 0; h < in.rows; ++h) {
          const int64_t od = (in.from_d + d) * ad.stride + kd * ad.dilation - ad.crop, oh = (in.from_h + h) * ah.stride + kh * ah.dilation - ah.crop;
          if (od < 0 || od >= ad.output || oh < 0 || oh >= ah.output) continue;
          x.push_back(s.input + (((n * in.depth + d) * in.rows + h) * in.width + begin) * p_.in_channels + group * (p_.in_channels / p_.groups));
          gy.push_back(s.grad + (((n * out.depth + od - out.from_d) * out.rows + oh - out.from_h) * out.width + begin * aw.stride + shift) * p_.out_channels +
                       group * (p_.out_channels / p_.groups));
        }
    int64_t steps = end - begin, input_step = p_.in_channels, grad_step = p_.out_channels * aw.stride;
    if (steps == 1) lines_to_steps(x, gy, &steps, &input_step, &grad_step);
    if (depthwise_)
      multiply_lanes(x, gy, steps, input_step, grad_step, rows, first_lane, vectors, sums, set);
    else if (lanes_are_input_)
      multiply_tiles(gy, x, steps, grad_step, input_step, rows, first_lane, vectors, sums, set);
    else
      multiply_tiles(x, gy, steps, input_step, grad_step, rows, first_lane, vectors, sums, set);
  }

  // Lines of one position each that follow at equal distances become the steps of one line: the images of 1x1x1 inputs, in the same order.
  static void lines_to_steps(std::vector<const T*>& x, std::vector<const T*>& gy, int64_t* steps, int64_t* x_step, int64_t* gy_step) {
    if (x.size() < 2) return;
    const int64_t dx = x[1] - x[0], dgy = gy[1] - gy[0];
    for (size_t i = 2; i < x.size(); ++i)
      if (x[i] - x[i - 1] != dx || gy[i] - gy[i - 1] != dgy) return;
    *steps = int64_t(x.size());
    *x_step = dx;
    *gy_step = dgy;
    x.resize(1);
    gy.resize(1);
  }

  // Calls f(first line, lines, first step, steps, accumulate) for slices of at most kChain terms: the error grows with a slice and not with all
  // positions. The slices depend on the shape alone. One empty slice where there is nothing, so that the first block sets its sums.
  template <class F>
  void for_each_slice(int64_t lines, int64_t steps, bool set, F f) const {
    const int64_t most_steps = std::clamp<int64_t>(steps, 1, kChain), most_lines = std::max<int64_t>(1, kChain / most_steps);
    bool accumulate = !set;
    for (int64_t step = 0; step == 0 || step < steps; step += most_steps)
      for (int64_t line = 0; line == 0 || line < lines; line += most_lines) {
        f(line, std::min(most_lines, lines - line), step, std::min(most_steps, steps - step), accumulate);
        accumulate = true;
      }
  }

  void multiply_lanes(const std::vector<const T*>& x, const std::vector<const T*>& gy, int64_t steps, int64_t x_step, int64_t gy_step, int64_t taps,
                      int64_t first_lane, int64_t vectors, T* sums, bool set) const {
    std::vector<const T*> from_x(x.size()), from_gy(gy.size());
    for_each_slice(int64_t(x.size()), steps, set, [&](int64_t line, int64_t lines, int64_t step, int64_t count, bool accumulate) {
      for (size_t i = size_t(line); i < size_t(line + lines); ++i) {
        from_x[i] = x[i] + first_lane + step * x_step;
        from_gy[i] = gy[i] + first_lane + step * gy_step;
      }
      k_.lane_product[taps][vectors](
          {from_x.data() + line, from_gy.data() + line, lines, count, x_step, gy_step, p_.axis[2].dilation * p_.out_channels, sums, padded_lanes_, accumulate});
    });
  }

  void multiply_tiles(const std::vector<const T*>& row_lines, const std::vector<const T*>& lane_lines, int64_t steps, int64_t row_step, int64_t lane_step,
                      int64_t all_rows, int64_t first_lane, int64_t vectors, T* sums, bool set) const {
    if (lane_lines.empty()) {
      if (set)
        for (int64_t row = 0; row < all_rows; ++row) std::memset(static_cast<void*>(sums + row * padded_lanes_), 0, size_t(vectors * k_.lanes) * sizeof(T));
      return;
    }
    std::vector<int64_t> row_offset(row_lines.size()), lane_offset(lane_lines.size());
    for (size_t i = 0; i < lane_lines.size(); ++i) {
      row_offset[i] = row_lines[i] - row_lines[0];
      lane_offset[i] = lane_lines[i] - lane_lines[0];
    }
    for (int64_t row = 0; row < all_rows; row += tile_rows_) {
      const int64_t rows = std::min(tile_rows_, all_rows - row);
      for_each_slice(int64_t(row_lines.size()), steps, set, [&](int64_t line, int64_t lines, int64_t step, int64_t count, bool accumulate) {
        k_.spatial[vectors][rows]({row_lines[0] + row + step * row_step, row_offset.data() + line, row_step, lane_lines[0] + first_lane + step * lane_step,
                                   lane_offset.data() + line, lines, count, lane_step, sums + row * padded_lanes_, padded_lanes_, accumulate});
      });
    }
  }

  // sums [tap][group][row][lane] -> gw (in, out per group, kd, kh, kw). Where the kernel's elements are contiguous, lanes and taps change places
  // block by block: element by element, a 268 MB gradient took a second.
  void write() const {
    const int64_t row_stride = gw_.stride[lanes_are_input_ ? 1 : 0], lane_stride = gw_.stride[lanes_are_input_ ? 0 : 1];
    const int64_t kh = p_.axis[1].kernel, kw = p_.axis[2].kernel, tap_stride = outer_groups_ * rows_.channels * padded_lanes_;
    const bool contiguous = gw_.element_size() == int64_t(sizeof(T)) && gw_.stride[4] == 1 && gw_.stride[3] == kw && gw_.stride[2] == kh * kw;
    const DType accumulated = sizeof(T) == 8 ? DType::float64 : DType::float32;
    parallel_for(
        outer_groups_ * rows_.channels, options_.threads,
        [&](int64_t task, int) {
          const int64_t group = task / rows_.channels, row = task % rows_.channels;
          const int64_t at = group * (p_.in_channels / p_.groups) * gw_.stride[0] + row * row_stride;
          const T* from = sums_ + task * padded_lanes_;
          const int64_t stride = depthwise_ ? gw_.stride[0] : lane_stride;
          if (contiguous) {
            k_.pack_positions(static_cast<T*>(gw_.at(at)), stride, from, tap_stride, taps_, 1, lane_channels_, accumulated);
            return;
          }
          for (int64_t tap = 0; tap < taps_; ++tap)
            k_.store_run(gw_.at(at + tap / (kh * kw) * gw_.stride[2] + tap / kw % kh * gw_.stride[3] + tap % kw * gw_.stride[4]), stride,
                         from + tap * tap_stride, 1, lane_channels_, gw_.dtype);
        },
        options_.stop);
  }

  const Problem& p_;
  const TileKernels<T>& k_;
  const Options& options_;
  const View& gw_;
  Side rows_, lanes_;
  bool lanes_are_input_, depthwise_;
  int64_t row_taps_ = 1;  // taps along w that share a tile
  int64_t tile_rows_ = 1, tile_vectors_ = 1, padded_lanes_, lane_channels_, outer_groups_, taps_;
  std::array<int64_t, 3> block_;
  T* sums_ = nullptr;
};

}  // namespace

void weight_grad(const Problem& p, const View& x, const View& gy, const View& gw, const Options& options) {
  const Kernels& kernels = active_kernels();
  double multiply_adds = double(p.batch) * double(p.in_channels) * double(p.out_channels / p.groups);
  for (const Axis& a : p.axis) multiply_adds *= double(a.input) * double(a.kernel);
  Options limited = options;
  limited.threads = useful_threads(multiply_adds / kernels.f32.lanes, options.threads);
  if (x.dtype == DType::float64)
    WeightGrad<double>(p, x, gy, gw, limited, kernels).run();
  else
    WeightGrad<float>(p, x, gy, gw, limited, kernels).run();
}

}  // namespace tconv3d
