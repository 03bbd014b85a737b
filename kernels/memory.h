// SPDX-License-Identifier: Apache-2.0
// Large buffers on huge pages, and bounded stores that keep idle ones: touching fresh memory costs more than the arithmetic of many layers.
#pragma once

#include <cstddef>
#include <memory>

namespace tconv3d {

// Asks for 2 MiB pages for the aligned inside of a large output that is about to be written, whoever allocated it: first touch of 268 MB costs 47 ms instead
// of 182 ms. A hint; never fails.
void advise_output(void* data, size_t bytes);

// Bytes of second-level cache per core, for block sizes.
size_t cache_bytes();

// Makes the stores of idle memory and their fork handlers; called once, when the library is loaded. Throws std::invalid_argument for a
// TCONV3D_OUTPUT_POOL that is no number.
void start_stores();

constexpr size_t kMostIdleScratch = size_t(32) << 20;

// A buffer, 64-byte aligned, from the store of idle scratch (at most so many bytes of it) or fresh. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// Memory of an output array, from the store of idle outputs or fresh; release_output gives it back once nothing sees the array any more.
// At most output_pool_limit() bytes lie idle: TCONV3D_OUTPUT_POOL mebibytes (0 turns it off), else a sixteenth of the memory, at most 1 GiB.
struct Buffer {
  void* data;
  size_t bytes;  // as allocated
};
Buffer acquire_output(size_t bytes);
void release_output(Buffer buffer);
size_t output_pool_limit();
// Frees every idle buffer of both stores.
void release_idle_memory();

}  // namespace tconv3d
