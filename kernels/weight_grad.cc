// SPDX-License-Identifier: Apache-2.0
// Weight gradient: for every tap one matrix product with the positions as the reduction. The positions are cut into blocks; a block's input and
// grad_output are packed in panels, [channels of a tile][position][channel], then every (tap, group, column tile) adds its products. The blocks in
// turn are cut into strands with sums of their own, which are added at the end. Both cuts depend on the shape, the dtypes and the instruction set
// alone, so the order of additions is the same for any number of threads, whether they share the work of a block or take a strand each.
#include <cstring>
#include <limits>

#include "cost.h"
#include "engine.h"
#include "gather.h"
#include "kept_plans.h"
#include "weight_grad.h"

namespace tconv3d {

namespace {

// Packed bytes of a block, whatever the caches since they fix the order of additions. Sums that outgrow the second-level cache are read and written
// anew for each block, so then blocks are larger: 3dgan_l2, whose sums take 33 MB, 55 to 45 ms.
constexpr int64_t kBlockBytes = int64_t(1) << 20, kLargeBlockBytes = int64_t(8) << 20, kLargeSumsBytes = int64_t(4) << 20;
// Twice the bytes cost 5 % of the products (in the mean of 31 layers), and where there are few of them save up to a third: mednext_k3_dw512 3.0 to 2.4 ms,
// mednext_k5_dw64 22 to 17, page_example_1 0.48 to 0.37.
constexpr int64_t kMostBlockBytes = int64_t(4) << 20;
constexpr double kLargerBlock = 0.05;

// Threads that take a strand each meet once; those that share a block meet three times in it, and read what another core packed: gcnet_deconv5, 450
// blocks, took 67 to 126 ms on two threads and now 35. The sums of all strands fit so many bytes.
constexpr int64_t kStrandBytes = int64_t(4) << 20, kMostStrands = 64;
// Larger sums do not stay in the second-level cache: where one block holds all positions, they are formed and written part by part. pix2vox_l1, 268 MB
// of them in fresh memory, 35 to 19 ms on two threads.
constexpr int64_t kPartSumsBytes = int64_t(1) << 19;
constexpr double kWellSpread = 0.75;  // of the threads' time in strands, else they share blocks

// An operand of the products.
struct Side {
  const View* view;
  int64_t channels;  // per group
};

// A block of input positions: whole rows along w.
struct Block {
  std::array<int64_t, 3> from, size;  // image, d, h
};

// A part of the result: groups, and channels of the rows' and of the lanes' side. Its sums are [tap][group][row][lane].
struct Part {
  int64_t group, groups, row, rows, lane, lanes;  // lanes: padded
};

// Blocks that are added to the sums of one part. `options`: threads that share a block.
template <class T>
struct Strand {
  Part part;
  T *sums, *input, *grad;  // packed blocks
  bool first;              // no block added yet
  const Options& options;
};

// What lies on the rows and on the lanes of a tile. `in_place`: the rows' side is read where it is, by pointers, and not packed.
struct Layout {
  bool lanes_are_input, in_place;
  int64_t rows, vectors;
  double cycles;
};

// What a line adds to each tile that reads its rows in place. Two threads, ms, packed and in place: monai_swinunetr 21 and 12, nnunet_aniso 32 and 20,
// kb_l1_77 6.5 and 3.9; lines of 4 to 6 (nnunet_320_320_4, monai_unet_384_64) lose a sixth.
constexpr double kInPlaceLine = 36;

struct Lines {
  int64_t from_d, from_h, depth, rows, width;  // lines packed: [image][d][h], each width positions of all channels
};

template <class T>
class WeightGrad {
 public:
  WeightGrad(const Problem& p, const View& x, const View& gy, const View& gw, const Options& options, const Kernels& kernels)
      : p_(p), k_(tiles<T>(kernels)), options_(options), gw_(gw) {
    const int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
    taps_ = 1;
    for (const Axis& a : p.axis) taps_ *= a.kernel;
    // The side that wastes fewer lanes goes on them. Products commute: the bits are the same either way.
    layout_ = layout(layout(true, false).cycles < layout(false, false).cycles, false);
    // Few channels of grad_output on the rows: the taps along w join them, neighbours in memory as well.
    merges_ = p.groups == 1 && layout_.lanes_are_input && out <= kMergedChannels && p.axis[2].dilation == 1;
    // One channel in and out per group: the groups themselves go on the lanes of both operands, the taps along w on the rows. Tap by tap, each pass
    // read both operands from the second-level cache: mednext_k5_dw64 35 ms on one core, 28 with the taps together.
    depthwise_ = p.groups > 1 && in == 1 && out == 1;
    row_taps_ = merges_ || (depthwise_ && p.axis[2].kernel <= kMaxLaneTaps) ? p.axis[2].kernel : 1;
    if (depthwise_)
      for (layout_.vectors = kMaxLaneVectors; !k_.lane_product[row_taps_][layout_.vectors];) --layout_.vectors;
    else if (merges_)
      layout_ = layout(true, false, row_taps_);
    else
      layout_ = best_layout(x, gy);
    rows_ = layout_.lanes_are_input ? Side{&gy, out} : Side{&x, in};
    lanes_ = layout_.lanes_are_input ? Side{&x, in} : Side{&gy, out};
    lane_channels_ = depthwise_ ? p.groups : lanes_.channels;
    outer_groups_ = depthwise_ ? 1 : p.groups;
    padded_lanes_ = ceil_div(lane_channels_, k_.lanes) * k_.lanes;
    cycles_ = cut_blocks();
  }

  // Of products and packing.
  double cycles() const { return cycles_; }
  bool taps_share_tiles() const { return merges_ || depthwise_; }

  std::string describe() const {
    const std::string tile = depthwise_
                                 ? "tiles of " + by({row_taps_}) + " taps x " + by({layout_.vectors}) + " vectors of groups"
                                 : "tiles of " + by({layout_.rows}) + " rows x " + by({layout_.vectors}) + " vectors, " +
                                       (layout_.lanes_are_input ? "input" : "grad_output") + " on the lanes" + (layout_.in_place ? ", rows in place" : "");
    return "direct: " + tile + "; " + by({blocks()}) + " blocks of " + by({block_[0], block_[1], block_[2], p_.axis[2].input}) + " positions";
  }

  void run() {
    const std::vector<Part> parts = this->parts();
    if (blocks() == 1 && int64_t(parts.size()) >= 2 * options_.threads)
      run_parts(parts);
    else
      run_strands();
  }

 private:
  static constexpr int64_t kVectors = 4;
  static constexpr int64_t kMergedChannels = 4;

  // All positions in one block: the sums of a part stay in the second-level cache until they are written.
  void run_parts(const std::vector<Part>& parts) {
    Scratch packed(size_t(packed_size()) * sizeof(T));
    T* const input = reinterpret_cast<T*>(packed.data());
    const Block all = block(0);
    const Strand<T> whole{{}, nullptr, input, input + capacity(true) + slack(), true, options_};
    pack(whole, all);
    run_tasks<T>(int64_t(parts.size()), size(parts[0]), options_, [&](int64_t task, T* sums) {
      const Options alone;
      const Part& part = parts[size_t(task)];
      multiply({part, sums, whole.input, whole.grad, true, alone}, all);
      write(part, sums, alone);
    });
  }

  void run_strands() {
    const Part whole{0, outer_groups_, 0, rows_.channels, 0, padded_lanes_};
    const int64_t count = blocks(), strands = std::clamp<int64_t>(kStrandBytes / sums_bytes(), 1, std::clamp<int64_t>(count, 1, kMostStrands));
    Scratch sums(size_t(strands * size(whole)) * sizeof(T));
    const auto sums_of = [&](int64_t strand) { return reinterpret_cast<T*>(sums.data()) + strand * size(whole); };
    const auto add_strand = [&](int64_t strand, T* input, const Options& options) {
      Strand<T> s{whole, sums_of(strand), input, input + capacity(true) + slack(), true, options};
      for (int64_t i = strand * count / strands; i < (strand + 1) * count / strands; ++i, s.first = false) {
        const Block b = block(i);
        pack(s, b);
        multiply(s, b);
      }
      if (s.first) std::memset(static_cast<void*>(s.sums), 0, size_t(size(whole)) * sizeof(T));  // an empty input
    };
    const int64_t rounds = ceil_div(strands, options_.threads);
    if (options_.threads > 1 && double(strands) > kWellSpread * double(rounds * options_.threads)) {
      const Options alone;
      run_tasks<T>(strands, packed_size(), options_, [&](int64_t strand, T* input) { add_strand(strand, input, alone); });
    } else {
      Scratch packed(size_t(packed_size()) * sizeof(T));
      for (int64_t strand = 0; strand < strands; ++strand) add_strand(strand, reinterpret_cast<T*>(packed.data()), options_);
    }
    for (int64_t strand = 1; strand < strands; ++strand) k_.add_runs(sums_of(0), sums_of(0), sums_of(strand), size(whole));
    write(whole, sums_of(0), options_);
  }

  int64_t size(const Part& part) const { return taps_ * part.groups * part.rows * part.lanes; }
  int64_t packed_size() const { return capacity(true) + capacity(false) + 2 * slack(); }

  // The tiles of the result, where it is cut into them at all.
  std::vector<Part> parts() const {
    std::vector<Part> parts;
    if (row_taps_ > 1 || depthwise_) return parts;
    const int64_t lanes = layout_.vectors * k_.lanes;
    const int64_t rows = std::max<int64_t>(1, int64_t(cache_bytes()) / 2 / (taps_ * lanes * layout_.rows * int64_t(sizeof(T)))) * layout_.rows;
    for (int64_t group = 0; group < outer_groups_; ++group)
      for (int64_t lane = 0; lane < padded_lanes_; lane += lanes)
        for (int64_t row = 0; row < rows_.channels; row += rows)
          parts.push_back({group, 1, row, std::min(rows, rows_.channels - row), lane, std::min(lanes, padded_lanes_ - lane)});
    return parts;
  }

  // The tile with the fewest cycles for one position and tap of a group.
  Layout layout(bool lanes_are_input, bool in_place, int64_t row_taps = 1) const {
    const int64_t in = p_.in_channels / p_.groups, out = p_.out_channels / p_.groups;
    const int64_t rows = row_taps * (lanes_are_input ? out : in), lanes = lanes_are_input ? in : out;
    const double line = in_place ? kInPlaceLine / double(std::max<int64_t>(1, p_.axis[2].input)) : 0;
    Layout best{lanes_are_input, in_place, 1, 1, std::numeric_limits<double>::infinity()};
    for (int64_t v = 1; v <= kVectors; ++v)
      for (int64_t r = 1; r <= (in_place ? kMaxPointerRows : kMaxRows) && r <= rows; ++r) {
        if (!k_.spatial[v][r] || (in_place && !k_.pointer[v][r])) continue;
        const double cycles = double(ceil_div(rows, r) * ceil_div(lanes, v * k_.lanes)) * (step_cycles(r, v, 1, k_.lanes * int64_t(sizeof(T))) + line);
        if (cycles < best.cycles) best = {lanes_are_input, in_place, r, v, cycles};
      }
    return best;
  }

  // The layout with the fewest cycles for products and packing, each in its own blocks. The rows are read where they are if nothing is to be widened.
  Layout best_layout(const View& x, const View& gy) {
    Layout best;
    double least = std::numeric_limits<double>::infinity();
    for (bool lanes_are_input : {false, true})
      for (bool in_place : {false, true}) {
        if (in_place && (lanes_are_input ? gy : x).element_size() != int64_t(sizeof(T))) continue;
        layout_ = layout(lanes_are_input, in_place);
        const double cycles = cut_blocks();
        if (cycles < least) best = layout_, least = cycles;
      }
    return best;
  }

  int64_t slack() const { return kVectors * k_.lanes; }

  // Channels of one operand in a packed panel: those of a tile, so that its steps lie side by side. Where a step was a whole position, a power of
  // two apart, its lines shared four of the first-level cache's sets and each fourth step was on a new page.
  struct PanelShape {
    int64_t channels, width;  // of a group, and of a panel

    int64_t panels() const { return ceil_div(channels, width); }
  };

  PanelShape panel_shape(bool input) const {
    if (depthwise_ || input == layout_.lanes_are_input) {
      const int64_t channels = depthwise_ ? p_.groups : lanes_.channels;
      return {channels, std::min(layout_.vectors * k_.lanes, channels)};
    }
    return {rows_.channels, merges_ ? rows_.channels : std::min(layout_.rows, rows_.channels)};
  }

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

  // Positions of one operand in the largest block.
  int64_t most_positions(bool input) const {
    const auto most = [&](size_t a, int64_t size) {
      const Axis& axis = p_.axis[a];
      return input ? std::min(size, axis.input) : std::min(axis.output, (size - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1);
    };
    return block_[0] * most(0, block_[1]) * most(1, block_[2]) * (input ? p_.axis[2].input : p_.axis[2].output);
  }

  int64_t capacity(bool input) const {
    const PanelShape panel = panel_shape(input);
    return most_positions(input) * outer_groups_ * panel.panels() * panel.width;
  }

  // Without padding, which depends on the instruction set.
  int64_t sums_bytes() const { return std::max<int64_t>(1, taps_ * p_.in_channels * (p_.out_channels / p_.groups) * int64_t(sizeof(T))); }

  bool fits(int64_t bytes) const { return (most_positions(true) * p_.in_channels + most_positions(false) * p_.out_channels) * int64_t(sizeof(T)) <= bytes; }

  // Cuts the positions into blocks: of a megabyte, or larger ones where what they save in halo, packed again for each block, is more than what they
  // lose beyond the second-level cache. Returns the cycles of products and packing.
  double cut_blocks() {
    extent_ = {p_.batch, p_.axis[0].input, p_.axis[1].input};
    for (size_t a = 0; a < 3; ++a) block_[a] = std::max<int64_t>(1, extent_[a]);
    if (sums_bytes() >= kPartSumsBytes && fits(kLargeBlockBytes)) return product_cycles() + kPackedSample * packed_samples();
    const bool large = sums_bytes() > kLargeSumsBytes;
    const int64_t smallest = large ? kLargeBlockBytes : kBlockBytes, largest = large ? kLargeBlockBytes : kMostBlockBytes;
    std::array<int64_t, 3> best{};
    double least = std::numeric_limits<double>::infinity(), spill = 1;
    for (int64_t bytes = smallest; bytes <= largest; bytes *= 2, spill += kLargerBlock) {
      grow_block(bytes);
      const double cycles = spill * product_cycles() + kPackedSample * packed_samples();
      if (cycles < least) best = block_, least = cycles;
    }
    block_ = best;
    return least;
  }

  // Of all positions and taps.
  double product_cycles() const {
    const double positions = double(extent_[0] * extent_[1] * extent_[2] * p_.axis[2].input);
    return positions * double(taps_) * (depthwise_ ? double(padded_lanes_ / k_.lanes) : double(p_.groups) * layout_.cycles / double(row_taps_));
  }

  // Elements packed for all blocks, halo included.
  double packed_samples() const {
    double samples = 0;
    for (bool input : {true, false})
      if (is_packed(input)) samples += double(most_positions(input)) * double(input ? p_.in_channels : p_.out_channels);
    return double(blocks()) * samples;
  }

  int64_t blocks() const {
    int64_t blocks = 1;
    for (size_t a = 0; a < 3; ++a) blocks *= ceil_div(extent_[a], block_[a]);
    return blocks;
  }

  void grow_block(int64_t most) {
    block_ = {1, 1, 1};
    for (size_t a = 3; a-- > 0;)
      while (block_[a] < extent_[a]) {
        const int64_t before = block_[a];
        block_[a] = std::min(extent_[a], before * 2);
        if (fits(most)) continue;
        block_[a] = before;
        return;
      }
  }

  Block block(int64_t i) const {
    Block b;
    for (size_t a = 3; a-- > 0;) {
      const int64_t blocks = ceil_div(extent_[a], block_[a]);
      b.from[a] = i % blocks * block_[a];
      b.size[a] = std::min(block_[a], extent_[a] - b.from[a]);
      i /= blocks;
    }
    return b;
  }

  bool is_packed(bool input) const { return !layout_.in_place || input == layout_.lanes_are_input; }

  void pack(const Strand<T>& s, const Block& b) const {
    for (bool input : {true, false})
      if (is_packed(input)) pack(s, b, input);
  }

  void pack(const Strand<T>& s, const Block& b, bool input) const {
    const Lines l = lines(b, input);
    const View& v = *(input == layout_.lanes_are_input ? lanes_ : rows_).view;
    const PanelShape panel = panel_shape(input);
    const int64_t positions = b.size[0] * l.depth * l.rows * l.width, panels = panel.panels();
    T* const to = input ? s.input : s.grad;
    const int64_t at_once = rows_at_once(v, l.width, l.rows), pieces = ceil_div(l.rows, at_once);
    parallel_for(
        b.size[0] * l.depth * pieces, s.options.threads,
        [&](int64_t task, int) {
          const int64_t row = task % pieces * at_once, plane = task / pieces, d = l.from_d + plane % l.depth, image = b.from[0] + plane / l.depth;
          const int64_t origin = image * v.stride[0] + d * v.stride[2] + (l.from_h + row) * v.stride[3];
          const int64_t first = (plane * l.rows + row) * l.width, n = std::min(at_once, l.rows - row) * l.width;
          for (int64_t i = 0; i < outer_groups_ * panels; ++i) {
            const int64_t from = i % panels * panel.width, channels = std::min(panel.width, panel.channels - from);
            T* const at = to + (i * positions + first) * panel.width;
            if (channels < panel.width) std::memset(static_cast<void*>(at), 0, size_t(n * panel.width) * sizeof(T));
            k_.pack_positions(at, panel.width, v.at(origin + (i / panels * panel.channels + from) * v.stride[1]), v.stride[1], channels, v.stride[4], n,
                              v.dtype);
          }
        },
        s.options.stop);
  }

  // Lines of input and of grad_output that meet under one tap of d and h, from the first of each in the block on: the same for all channels, and along w.
  struct Meeting {
    int64_t kd = -1, kh = -1;
    std::vector<int64_t> input, grad;
    bool even = false;               // at equal distances
    std::vector<const T*> pointers;  // room for those of a tile that reads its rows in place
  };

  // All taps, with the strand's threads.
  void multiply(const Strand<T>& s, const Block& b) const {
    const int64_t lane_tiles = ceil_div(s.part.lanes, layout_.vectors * k_.lanes);
    std::vector<Meeting> meetings(size_t(s.options.threads));
    parallel_for(
        taps_ / row_taps_ * s.part.groups * lane_tiles, s.options.threads,
        [&](int64_t task, int worker) {
          multiply(s, b, task / lane_tiles / s.part.groups * row_taps_, s.part.group + task / lane_tiles % s.part.groups, task % lane_tiles,
                   meetings[size_t(worker)]);
        },
        s.options.stop);
  }

  // The sums of one tap, or of a row of the kernel where its taps lie on the rows, for one group and lane tile.
  void multiply(const Strand<T>& s, const Block& b, int64_t tap, int64_t group, int64_t lane_tile, Meeting& m) const {
    const Axis &ah = p_.axis[1], &aw = p_.axis[2];
    const int64_t kw = tap % aw.kernel, kh = tap / aw.kernel % ah.kernel, kd = tap / aw.kernel / ah.kernel;
    if (m.kd != kd || m.kh != kh) meet(s, b, kd, kh, m);
    if (row_taps_ == 1) {
      const auto [begin, end] = reach(kw);
      multiply(s, b, kw, begin, end, s.part.rows, group, lane_tile, s.first, m);
      return;
    }
    int64_t begin = 0, end = aw.input;
    for (int64_t k = 0; k < row_taps_; ++k) {
      begin = std::max(begin, reach(k)[0]);
      end = std::min(end, reach(k)[1]);
    }
    end = std::max(begin, end);
    multiply(s, b, 0, begin, end, row_taps_ * s.part.rows, group, lane_tile, s.first, m);
    for (int64_t k = 0; k < row_taps_; ++k) {  // at the edges, tap by tap
      const auto [first, last] = reach(k);
      if (first < std::min(begin, last)) multiply(s, b, k, first, std::min(begin, last), s.part.rows, group, lane_tile, false, m);
      if (std::max(end, first) < last) multiply(s, b, k, std::max(end, first), last, s.part.rows, group, lane_tile, false, m);
    }
  }

  void meet(const Strand<T>& s, const Block& b, int64_t kd, int64_t kh, Meeting& m) const {
    const Axis &ad = p_.axis[0], &ah = p_.axis[1];
    const Lattice x = lattice(s, b, true), gy = lattice(s, b, false);
    m.kd = kd;
    m.kh = kh;
    m.input.clear();
    m.grad.clear();
    for (int64_t n = 0; n < b.size[0]; ++n)
      for (int64_t id = x.from_d; id < x.from_d + b.size[1]; ++id) {
        const int64_t od = id * ad.stride + kd * ad.dilation - ad.crop;
        if (od < 0 || od >= ad.output) continue;
        for (int64_t ih = x.from_h; ih < x.from_h + b.size[2]; ++ih) {
          const int64_t oh = ih * ah.stride + kh * ah.dilation - ah.crop;
          if (oh < 0 || oh >= ah.output) continue;
          m.input.push_back(x.offset(n, id, ih));
          m.grad.push_back(gy.offset(n, od, oh));
        }
      }
    m.even = m.input.size() > 1;
    for (size_t i = 2; i < m.input.size() && m.even; ++i)
      m.even = m.input[i] - m.input[i - 1] == m.input[1] - m.input[0] && m.grad[i] - m.grad[i - 1] == m.grad[1] - m.grad[0];
  }

  // The w positions whose output for tap k exists: 0 <= i*stride + shift < output.
  std::array<int64_t, 2> reach(int64_t k) const {
    const Axis& a = p_.axis[2];
    const int64_t shift = k * a.dilation - a.crop, begin = std::clamp<int64_t>(ceil_div(-shift, a.stride), 0, a.input);
    return {begin, std::clamp<int64_t>(ceil_div(a.output - shift, a.stride), begin, a.input)};
  }

  // One operand in a block, packed or where it is: elements from sample to sample along each axis and channel.
  struct Lattice {
    const T* first;                                         // image, d and h where the block starts
    int64_t from_d, from_h, image, depth, row, step, tile;  // tile: from those channels of one tile of rows to the next one's

    int64_t offset(int64_t n, int64_t d, int64_t h) const { return n * image + (d - from_d) * depth + (h - from_h) * row; }
  };

  // From channel `channel` of `group` on.
  Lattice lattice(const Strand<T>& s, const Block& b, bool input, int64_t group = 0, int64_t channel = 0) const {
    const Lines l = lines(b, input);
    if (is_packed(input)) {
      const PanelShape panel = panel_shape(input);
      const int64_t step = panel.width, row = l.width * step, image = l.depth * l.rows * row, size = b.size[0] * image;
      const T* const first = (input ? s.input : s.grad) + (group * panel.panels() + channel / panel.width) * size;
      return {first, l.from_d, l.from_h, image, l.rows * row, row, step, merges_ ? layout_.rows : size};
    }
    const View& v = *rows_.view;
    const int64_t origin = b.from[0] * v.stride[0] + l.from_d * v.stride[2] + l.from_h * v.stride[3];
    const auto* first = static_cast<const T*>(v.at(origin + (group * rows_.channels + channel) * v.stride[1]));
    return {first, l.from_d, l.from_h, v.stride[0], v.stride[2], v.stride[3], v.stride[4], layout_.rows * v.stride[1]};
  }

  // One operand of a product: lines of steps `step` elements apart.
  struct Operand {
    const T* first;
    const int64_t* lines;  // from `first`
    int64_t step, tile;    // `tile`: as in Lattice
  };

  // Where products go: rows of so many vectors, `stride` apart. `set`: the first of all.
  struct Target {
    T* sums;
    int64_t stride, rows, vectors;
    bool set;
  };

  // `rows` from the first one of tap (m.kd, m.kh, kw) on, positions begin <= i < end along w.
  void multiply(const Strand<T>& s, const Block& b, int64_t kw, int64_t begin, int64_t end, int64_t rows, int64_t group, int64_t lane_tile, bool set,
                Meeting& m) const {
    const Axis &ah = p_.axis[1], &aw = p_.axis[2];
    const int64_t lane = lane_tile * layout_.vectors * k_.lanes, vectors = std::min(layout_.vectors, (s.part.lanes - lane) / k_.lanes);
    const int64_t first = ((m.kd * ah.kernel + m.kh) * aw.kernel + kw) * s.part.groups + group - s.part.group;
    const Target to{s.sums + first * s.part.rows * s.part.lanes + lane, s.part.lanes, rows, vectors, set};
    const bool input_on_lanes = layout_.lanes_are_input || depthwise_, grad_on_lanes = !layout_.lanes_are_input || depthwise_;
    const Lattice in = lattice(s, b, true, group, input_on_lanes ? s.part.lane + lane : s.part.row);
    const Lattice grad = lattice(s, b, false, group, grad_on_lanes ? s.part.lane + lane : s.part.row);
    // A tap that no position meets may lie farther away than an offset can say.
    const int64_t target = begin < end ? begin * aw.stride + kw * aw.dilation - aw.crop : 0;
    Operand x{in.first + begin * in.step, m.input.data(), in.step, in.tile};
    Operand gy{grad.first + target * grad.step, m.grad.data(), grad.step * aw.stride, grad.tile};
    int64_t count = begin < end ? int64_t(m.input.size()) : 0, steps = end - begin;
    if (steps == 1 && m.even) {  // the images of 1x1x1 inputs: their lines are the steps of one
      steps = count;
      count = 1;
      x.step = m.input[1] - m.input[0];
      gy.step = m.grad[1] - m.grad[0];
    }
    if (depthwise_)
      multiply_lanes(x, gy, count, steps, to);
    else if (layout_.lanes_are_input)
      multiply_tiles(gy, x, count, steps, to, m);
    else
      multiply_tiles(x, gy, count, steps, to, m);
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

  void multiply_lanes(const Operand& x, const Operand& gy, int64_t count, int64_t steps, const Target& to) const {
    for_each_slice(count, steps, to.set, [&](int64_t line, int64_t lines, int64_t step, int64_t n, bool accumulate) {
      k_.lane_product[to.rows][to.vectors]({x.first + step * x.step, gy.first + step * gy.step, x.lines + line, gy.lines + line, lines, n, x.step, gy.step,
                                            p_.axis[2].dilation * panel_shape(false).width, nullptr, to.sums, to.stride, accumulate});
    });
  }

  void multiply_tiles(const Operand& row, const Operand& lane, int64_t count, int64_t steps, const Target& to, Meeting& m) const {
    if (count == 0) {
      if (to.set)
        for (int64_t r = 0; r < to.rows; ++r) std::memset(static_cast<void*>(to.sums + r * to.stride), 0, size_t(to.vectors * k_.lanes) * sizeof(T));
      return;
    }
    if (layout_.in_place) m.pointers.resize(size_t(count * layout_.rows));
    // Slices outermost: that of the lanes stays in the first-level cache while the rows pass.
    for_each_slice(count, steps, to.set, [&](int64_t line, int64_t lines, int64_t step, int64_t n, bool accumulate) {
      const T *const lanes_from = lane.first + step * lane.step, *rows_from = row.first + step * row.step;
      for (int64_t first = 0; first < to.rows; first += layout_.rows, rows_from += row.tile) {
        const int64_t rows = std::min(layout_.rows, to.rows - first);
        T* const sums = to.sums + first * to.stride;
        if (!layout_.in_place) {
          k_.spatial[to.vectors][rows](
              {rows_from, row.lines + line, row.step, lanes_from, lane.lines + line, lines, n, lane.step, sums, to.stride, accumulate});
          continue;
        }
        for (int64_t l = 0; l < lines; ++l)
          for (int64_t r = 0; r < rows; ++r) m.pointers[size_t(l * rows + r)] = rows_from + row.lines[line + l] + r * rows_.view->stride[1];
        k_.pointer[to.vectors][rows]({m.pointers.data(), lanes_from, lane.lines + line, lines, n, row.step, lane.step, sums, to.stride, accumulate});
      }
    });
  }

  // Sums of a part -> gw (in, out per group, kd, kh, kw).
  void write(const Part& part, const T* sums, const Options& options) const {
    const int64_t row_stride = gw_.stride[layout_.lanes_are_input ? 1 : 0], lane_stride = gw_.stride[layout_.lanes_are_input || depthwise_ ? 0 : 1];
    const int64_t tap_stride = part.groups * part.rows * part.lanes, lanes = std::min(part.lanes, lane_channels_ - part.lane);
    parallel_for(
        part.groups * part.rows, options.threads,
        [&](int64_t task, int) {
          const int64_t group = part.group + task / part.rows, row = part.row + task % part.rows;
          const int64_t at = group * (p_.in_channels / p_.groups) * gw_.stride[0] + row * row_stride + part.lane * lane_stride;
          store_taps(p_, gw_, at, lane_stride, sums + task * part.lanes, tap_stride, lanes, k_);
        },
        options.stop);
  }

  const Problem& p_;
  const TileKernels<T>& k_;
  const Options& options_;
  const View& gw_;
  Side rows_, lanes_;
  Layout layout_;
  bool depthwise_, merges_;
  int64_t row_taps_ = 1;  // taps along w that share a tile
  int64_t padded_lanes_, lane_channels_, outer_groups_, taps_;
  std::array<int64_t, 3> extent_, block_;
  double cycles_;
};

// What the two-tap method must promise, and the cycles of the direct method from which on it is asked at all.
constexpr double kTwoTapGain = 1.1, kTwoTapWork = 2e6;

struct KeptChoice {
  std::unique_ptr<WeightGradPlan> plan;  // null: WeightGrad
};
thread_local KeptPlans<KeptChoice, 4> kept_choices;

template <class T>
std::unique_ptr<WeightGradPlan> best_plan(const Problem& p, const View& x, const View& gy, const Kernels& kernels) {
  const Algorithm algorithm = active_algorithm();
  if (algorithm == Algorithm::two_tap) return plan_two_tap_weight_grad<T>(p, kernels, true);
  const Options options;
  const WeightGrad<T> direct(p, x, gy, gy, options, kernels);
  double least = direct.cycles();
  std::unique_ptr<WeightGradPlan> best = plan_position_weight_grad<T>(p, kernels);
  if (best && best->cycles < least)
    least = best->cycles;
  else
    best = nullptr;
  // Few channels leave the two-tap method nothing to save.
  if (algorithm == Algorithm::direct || direct.cycles() < kTwoTapWork || direct.taps_share_tiles()) return best;
  auto two_tap = plan_two_tap_weight_grad<T>(p, kernels, false);
  return two_tap && two_tap->cycles * kTwoTapGain < least ? std::move(two_tap) : std::move(best);
}

template <class T>
std::shared_ptr<const KeptChoice> choose(const Problem& p, const View& x, const View& gy, const Kernels& kernels) {
  const std::array<int64_t, 4> rest{int64_t(x.dtype), int64_t(gy.dtype), int64_t(active_algorithm()), int64_t(reinterpret_cast<intptr_t>(&kernels))};
  return kept_choices.get(plan_key(rest, p), [&] { return std::make_shared<KeptChoice>(KeptChoice{best_plan<T>(p, x, gy, kernels)}); });
}

template <class T>
void run(const Problem& p, const View& x, const View& gy, const View& gw, const Options& options, const Kernels& kernels) {
  const auto choice = choose<T>(p, x, gy, kernels);
  if (!choice->plan || !choice->plan->run(x, gy, gw, options)) WeightGrad<T>(p, x, gy, gw, options, kernels).run();
}

template <class T>
std::string describe(const Problem& p, const View& stored) {
  const Kernels& kernels = active_kernels();
  if (const auto choice = choose<T>(p, stored, stored, kernels); choice->plan) return with_cycles(choice->plan->describe(), choice->plan->cycles);
  const Options options;
  const WeightGrad<T> direct(p, stored, stored, stored, options, kernels);
  return with_cycles(direct.describe(), direct.cycles());
}

}  // namespace

std::string describe_weight_grad(const Problem& p, DType dtype) {
  if (p.in_channels == 0 || p.out_channels == 0) return "nothing: the weight has no element";
  const View stored{nullptr, dtype, {}};
  return dtype == DType::float64 ? describe<double>(p, stored) : describe<float>(p, stored);
}

void weight_grad(const Problem& p, const View& x, const View& gy, const View& gw, const Options& options) {
  if (p.in_channels == 0 || p.out_channels == 0) return;  // no element to write
  const Kernels& kernels = active_kernels();
  double multiply_adds = double(p.batch) * double(p.in_channels) * double(p.out_channels / p.groups);
  for (const Axis& a : p.axis) multiply_adds *= double(a.input) * double(a.kernel);
  Options limited = options;
  limited.threads = useful_threads(multiply_adds / kernels.f32.lanes, options.threads);
  if (x.dtype == DType::float64)
    run<double>(p, x, gy, gw, limited, kernels);
  else
    run<float>(p, x, gy, gw, limited, kernels);
}

}  // namespace tconv3d
