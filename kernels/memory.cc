// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tconv3d {

namespace {

constexpr size_t kMiB = size_t(1) << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// What is allocated for so many bytes.
size_t whole_pages(size_t bytes) { return round_up(std::max<size_t>(bytes, 1), bytes >= 4 * kMiB ? 2 * kMiB : 4096); }

void advise_huge(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t begin = (uintptr_t(data) + 2 * kMiB - 1) & ~(2 * kMiB - 1), end = (uintptr_t(data) + bytes) & ~(2 * kMiB - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

Buffer allocate(size_t bytes) {
  const size_t alignment = bytes >= kMiB ? 2 * kMiB : 4096;
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
  advise_huge(p, bytes);
  return {p, bytes};
}

// Idle buffers, at most `limit` bytes. A buffer serves a request that it exceeds by less than `most_waste` times, both in whole pages.
class IdleStore {
 public:
  IdleStore(size_t limit, double most_waste) : limit_(limit), most_waste_(most_waste) { buffers_.reserve(kMost); }

  Buffer take(size_t bytes) {
    bytes = whole_pages(bytes);  // as buffers are: else one page would be too wasteful for a request of a few bytes, and never serve it again
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = buffers_.end();
      for (auto it = buffers_.begin(); it != buffers_.end(); ++it)
        if (it->bytes >= bytes && double(it->bytes) <= most_waste_ * double(bytes) && (best == buffers_.end() || it->bytes <= best->bytes)) best = it;
      if (best != buffers_.end()) {
        const Buffer found = *best;
        held_ -= found.bytes;
        buffers_.erase(best);
        return found;
      }
    }
    return allocate(bytes);
  }

  // The oldest idle buffers make room for the newest.
  void give_back(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!buffers_.empty() && (held_ + buffer.bytes > limit_ || buffers_.size() == kMost)) drop_oldest();
    if (held_ + buffer.bytes > limit_) {
      std::free(buffer.data);
      return;
    }
    buffers_.push_back(buffer);
    held_ += buffer.bytes;
  }

  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!buffers_.empty()) drop_oldest();
  }

  size_t limit() const { return limit_; }
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr size_t kMost = 64;

  void drop_oldest() {
    held_ -= buffers_.front().bytes;
    std::free(buffers_.front().data);
    buffers_.erase(buffers_.begin());
  }

  const size_t limit_;
  const double most_waste_;
  std::mutex mutex_;
  std::vector<Buffer> buffers_;
  size_t held_ = 0;
};

size_t wanted_output_pool() {
  if (const char* text = std::getenv("TCONV3D_OUTPUT_POOL"); text && *text) {
    char* end = nullptr;
    const long long mebibytes = std::strtoll(text, &end, 10);
    if (*end || mebibytes < 0 || mebibytes > (1 << 20))
      throw std::invalid_argument("TCONV3D_OUTPUT_POOL: '" + std::string(text) + "' is not a number of mebibytes from 0 to 1048576; 0 turns the pool off");
    return size_t(mebibytes) * kMiB;
  }
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page > 0 ? std::min(size_t(pages) * size_t(page) / 16, 1024 * kMiB) : 256 * kMiB;
}

struct Stores {
  IdleStore scratch{kMostIdleScratch, 4};
  IdleStore outputs{wanted_output_pool(), 1.25};
  size_t cache_bytes = 0;
};
Stores* stores = nullptr;  // never destroyed: arrays and workers may outlive static destructors

size_t found_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  if (const long found = sysconf(_SC_LEVEL2_CACHE_SIZE); found > 0) return size_t(found);
#endif
  return 512 * 1024;
}

void lock_stores() { stores->scratch.lock(), stores->outputs.lock(); }
void unlock_stores() { stores->outputs.unlock(), stores->scratch.unlock(); }

}  // namespace

void advise_output(void* data, size_t bytes) {
  if (bytes >= 4 * kMiB) advise_huge(data, bytes);
}

void start_stores() {
  stores = new Stores;
  stores->cache_bytes = found_cache_bytes();
  pthread_atfork(lock_stores, unlock_stores, unlock_stores);  // a child finds the locks free
}

size_t cache_bytes() { return stores->cache_bytes; }

Scratch::Scratch(size_t bytes) {
  const Buffer buffer = stores->scratch.take(bytes);
  data_ = static_cast<char*>(buffer.data);
  bytes_ = buffer.bytes;
}

Scratch::~Scratch() { stores->scratch.give_back({data_, bytes_}); }

Buffer acquire_output(size_t bytes) { return stores->outputs.take(bytes); }
void release_output(Buffer buffer) { stores->outputs.give_back(buffer); }
size_t output_pool_limit() { return stores->outputs.limit(); }

void release_idle_memory() {
  stores->scratch.clear();
  stores->outputs.clear();
}

}  // namespace tconv3d
