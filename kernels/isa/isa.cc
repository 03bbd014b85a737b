// SPDX-License-Identifier: Apache-2.0
#include "isa/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace tconv3d {

#define X(name, runs) \
  namespace name {    \
  Kernels table();    \
  }
#include "isa.inc"
#undef X

namespace {

#if defined(__x86_64__)
// Asked of the processor: Clang before 18 does not know the name.
[[maybe_unused]] bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

struct Entry {
  const char* name;
  bool runs;
  const Kernels* (*kernels)();
};

template <Kernels (*table)()>
const Kernels* made_once() {
  static const Kernels kernels = table();
  return &kernels;
}

const Entry kEntries[] = {
#define X(name, runs) {#name, bool(runs), made_once<name::table>},
#include "isa.inc"
#undef X
};

const Entry* find(const std::string& name) {
  std::string there;
  for (const Entry& e : kEntries) {
    if (!e.runs) continue;
    if (name == e.name) return &e;
    there += (there.empty() ? "" : ", ") + std::string(e.name);
  }
  throw std::invalid_argument("TCONV3D_ISA: '" + name + "' is not an instruction set that this build and machine have; there is: " + there);
}

const Entry* preferred() {
  if (const char* name = std::getenv("TCONV3D_ISA"); name && *name) return find(name);
  for (const Entry& e : kEntries)
    if (e.runs) return &e;
  throw std::invalid_argument("no instruction set");
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

const Kernels& active_kernels() {
  const Kernels* found = active.load(std::memory_order_acquire);
  if (!found) active.store(found = preferred()->kernels(), std::memory_order_release);
  return *found;
}

void set_active_kernels(const char* name) { active.store(find(name)->kernels(), std::memory_order_release); }

const char* available_isa(int index) {
  for (const Entry& e : kEntries)
    if (e.runs && index-- == 0) return e.name;
  return nullptr;
}

}  // namespace tconv3d
