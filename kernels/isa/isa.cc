// SPDX-License-Identifier: Apache-2.0
#include "isa/isa.h"

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

struct Entry {
  const char* name;
  bool runs;
  Kernels (*table)();
};

const Entry kEntries[] = {
#define X(name, runs) {#name, bool(runs), name::table},
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

void activate(const Entry* e) { active.store(new Kernels(e->table())); }  // kept for ever: a running call may hold the old one

}  // namespace

const Kernels& active_kernels() {
  if (!active.load(std::memory_order_acquire)) activate(preferred());
  return *active.load(std::memory_order_acquire);
}

void set_active_kernels(const char* name) { activate(find(name)); }

const char* available_isa(int index) {
  for (const Entry& e : kEntries)
    if (e.runs && index-- == 0) return e.name;
  return nullptr;
}

}  // namespace tconv3d
