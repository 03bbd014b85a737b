// SPDX-License-Identifier: Apache-2.0
// What an instruction set offers to the portable code: tiles, row packing and row stores, as one table of function pointers.
// Only plain pointers cross this border; no vector type and no std:: code does.
#pragma once

#include <cstdint>

namespace tconv3d {

// Stored element types. float16 and bfloat16 are widened to float32 while packing and rounded once when stored.
enum class DType : int { float16, bfloat16, float32, float64 };

// Of sums, which are stored as they accumulate.
template <class T>
constexpr DType kAccumulated = sizeof(T) == 8 ? DType::float64 : DType::float32;

constexpr int kMaxRows = 14;                          // rows of the tallest tile (AVX-512: 14 x 2 accumulators of 32 registers)
constexpr int kMaxVectors = 8;                        // vectors of the widest tile
constexpr int kMaxPointerRows = 8;                    // row pointers that stay in general registers beside the counters (16 on x86-64)
constexpr int kMaxLaneTaps = 7, kMaxLaneVectors = 4;  // depthwise layers
constexpr int kMaxProductRows = 4, kMaxProductTaps = 8;

template <class T>
struct SpatialTile {
  const T* weights;              // [tap][channel][row]
  const int64_t* weight_offset;  // [taps], elements; null: tap after tap
  int64_t weight_step;           // from channel to channel; the number of rows where packed
  const T* region;               // packed input, at this tile's first position
  const int64_t* tap_offset;     // [taps], elements
  int64_t taps, channels, channel_stride;
  T* c;
  int64_t ldc;
  bool accumulate;
};

// A step of a phased tile: the first rows_h x rows_w phases use the samples at `offset`.
struct PhasedStep {
  int64_t offset;
  int rows_h, rows_w;
};

template <class T>
struct PhasedSamples {
  const T* weights;  // [step][channel][rows_h][rows_w][column]
  const T* region;   // packed input, at the first position of the tile, or of the first row
  const PhasedStep* steps;
  int64_t step_count, channels, channel_stride;
};

template <class T>
struct PhasedTile : PhasedSamples<T> {
  T* c;  // [phase h][phase w][column][position]
  int64_t ldc, phase_stride;
  bool accumulate;
};

// Rows of the target, formed by tiles of one column and stored from them. Element e of the row of phase f of h that belongs to row r of positions is
// out[first + r*row_stride + f*phase_stride + e], where e = 2*position + phase of w; the row's own elements are lead <= e < lead + width.
template <class T>
struct PhasedRows : PhasedSamples<T> {
  int64_t region_stride, rows, tiles;  // rows of positions, and tiles of each
  void* out;
  int64_t first, row_stride, phase_stride, lead, width;
  int64_t begin[2], end[2];  // of each phase of h, the rows of positions that have a target
  bool rows_follow;          // they are stored in the order of their addresses without gaps, up to out[last]: a vector may end in the next one
  int64_t last;
  T bias;
  bool stream;  // past the cache: rows of whole lines
};

template <class T>
struct PointerTile {
  const T* const* rows;  // [segment][row]
  const T* lanes;
  const int64_t* lane_offset;  // [segment], elements
  int64_t segments, steps, row_step, lane_step;
  T* c;
  int64_t ldc;
  bool accumulate;
};

template <class T>
struct LaneProduct {
  const T *a, *b;
  const int64_t *a_offset, *b_offset;  // [segment], elements
  int64_t segments, steps, a_step, b_step, b_tap;
  const T* bias;  // added to each row at last, or null
  T* c;
  int64_t ldc;
  bool accumulate;
};

// sums[r][t][lane] += sum over d < lines, p < positions of rows[r*row_stride + d*row_line + p] * taps[tap_offset[t] + d*tap_line + p]
template <class T>
struct PositionProduct {
  const T* rows;
  int64_t row_stride, row_line;
  const T* taps;
  const int64_t* tap_offset;  // [taps], elements
  int64_t tap_line, lines, positions;
  T* sums;
  int64_t sums_row;
};

// dst[m*dst_column + r*dst_pitch + i] += src[m*src_column + r*src_pitch + i] for m < columns, r < rows, i < n
template <class T>
struct RowsAdd {
  T* dst;
  int64_t dst_column, dst_pitch;
  const T* src;
  int64_t src_column, src_pitch, columns, rows, n;
};

constexpr int kMaxTurns = 4;  // the largest stride whose rows are loaded on vectors

// Rows of a packed region: `width` elements each, of which n, from src on, lie between zeros. Several phases that take turns in the source are loaded
// together: phase p from src + p on. Their stride is at most kMaxTurns, and they are stored as T.
template <class T>
struct RowsLoad {
  struct Phase {
    T* dst;
    int64_t left, n;
  };
  Phase phase[kMaxTurns];
  int64_t phases, pitch, width;
  const void* src;
  int64_t row_stride, stride, rows;
  int64_t ahead;         // elements from these rows to the ones that the next call reads, fetched meanwhile
  const T *begin, *end;  // of all that may be read, if it is stored as T
};

// Rows of the output: in each, `phases` runs of accumulators become one interleaved run of stored elements, bias added.
template <class T>
struct RowStore {
  void* out;           // the first row's first element
  int64_t out_stride;  // elements between neighbours of a row
  int64_t row_stride;  // elements between rows
  const T* const* c;   // [phases] of the first row
  int64_t c_row_stride;
  const int64_t* first;  // [phases] index in the row of the phase's first element
  const int64_t* count;  // [phases]
  int64_t phases, step, rows;
  T bias;
  bool stream;    // past the cache
  int64_t ahead;  // elements from these rows to the next channel's, which are stored soon and fetched meanwhile; 0: there are none
};

// Accumulators to positions with channels last: out[p*step + m] = bias[m] + c[m*ld + p] (store_positions, which reads whole vectors past n) or
// c[p*ld + m] (store_lanes), for p < n, m < columns.
template <class T>
struct PositionStore {
  T* out;
  int64_t step;
  const T* c;
  int64_t ld;
  const T* bias;
  int64_t columns, n;
  bool stream = false;  // past the cache, where positions follow each other without a gap
};

// Packed weights of one column tile: dst[tap][channel][column] for `channels` channels from `src`.
template <class T>
struct WeightPack {
  T* dst;
  const void* src;
  int64_t channel_stride, channels;
  const int64_t* column_offset;  // [columns] elements
  const int64_t* tap_offset;     // [taps][columns]: kernel element of this tap for this column's phase
  int64_t taps, columns, width;  // width >= columns; the rest is zero
};

// The same for weights whose kernel elements are contiguous, all elements and their panels at once:
// dst[element_offset[k] + channel*width + column] = src[channel*channel_stride + column*column_stride + k], left out where element_offset[k] < 0
template <class T>
struct KernelPack {
  T* dst;
  const void* src;
  int64_t channel_stride, channels, column_stride, columns, width, kernel;
  const int64_t* element_offset;
};

template <class T>
struct TileKernels {
  int lanes;
  void (*spatial[kMaxVectors + 1][kMaxRows + 1])(const SpatialTile<T>&);  // null where the registers do not suffice
  void (*phased[3][3][kMaxVectors + 1])(const PhasedTile<T>&);            // [phases h][columns][vectors], 1 or 2 phases and columns, always 2 phases w
  void (*phased_rows[3][kMaxVectors + 1])(const PhasedRows<T>&, DType);   // [phases h][vectors]
  void (*pointer[kMaxVectors + 1][kMaxPointerRows + 1])(const PointerTile<T>&);
  void (*lane_product[kMaxLaneTaps + 1][kMaxLaneVectors + 1])(const LaneProduct<T>&);
  void (*position_product[kMaxProductRows + 1][kMaxProductTaps + 1])(const PositionProduct<T>&);
  void (*combine_rows)(T* dst, int64_t dst_pitch, const T* a, const T* b, T factor, int64_t src_pitch, int64_t rows, int64_t n);
  void (*add_runs)(T* dst, const T* a, const T* b, int64_t n);
  void (*add_rows)(const RowsAdd<T>&);
  void (*half_sums)(T* dst, const T* a, const T* b, T sign, const T* c, int64_t n);
  void (*add_shared)(T* first, T* second, const T* sum, const T* difference, int64_t n);
  // dst[i * dst_stride] = src[i * src_stride], widened
  void (*load_run)(T* dst, int64_t dst_stride, const void* src, int64_t src_stride, int64_t n, DType);
  void (*load_rows)(const RowsLoad<T>&, DType);
  void (*store_run)(void* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t n, DType);
  void (*fill_run)(void* dst, int64_t dst_stride, T value, int64_t n, DType);
  void (*store_rows)(const RowStore<T>&, DType);
  // dst[offset[p]] = src[from[p] * src_stride] + bias
  void (*store_scattered)(void* dst, const int64_t* offset, const T* src, const int64_t* from, int64_t src_stride, int64_t n, T bias, DType);
  // dst[offset[m]] = src[m] + bias[m]; contiguous: offset[m] = offset[0] + m
  void (*store_columns)(void* dst, const int64_t* offset, bool contiguous, const T* src, const T* bias, int64_t n, DType);
  void (*store_positions)(const PositionStore<T>&);
  void (*store_lanes)(const PositionStore<T>&);
  void (*pack_weights)(const WeightPack<T>&, DType);
  void (*pack_kernels)(const KernelPack<T>&, DType);
  // dst[pos][channel] (ld elements a position) = src[channel*channel_stride + pos*pos_stride]: a transposition
  void (*pack_positions)(T* dst, int64_t ld, const void* src, int64_t channel_stride, int64_t channels, int64_t pos_stride, int64_t positions, DType);
};

struct Kernels {
  const char* name;
  TileKernels<float> f32;
  TileKernels<double> f64;
};

template <class T>
const TileKernels<T>& tiles(const Kernels&);
template <>
inline const TileKernels<float>& tiles<float>(const Kernels& k) {
  return k.f32;
}
template <>
inline const TileKernels<double>& tiles<double>(const Kernels& k) {
  return k.f64;
}

// The table in use: TCONV3D_ISA, else the best that this machine runs. Throws std::invalid_argument naming what there is.
const Kernels& active_kernels();
void set_active_kernels(const char* name);
// Names of the compiled sets that this machine runs, best first; nullptr past the end.
const char* available_isa(int index);

}  // namespace tconv3d
