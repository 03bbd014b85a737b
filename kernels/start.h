// SPDX-License-Identifier: Apache-2.0
// What must exist before the first call of the engine. Whoever loads this library says so: Python's import, or a framework that loads
// it for its C symbols alone, as MindSpore does for an exported graph.
#pragma once

#include "memory.h"
#include "threads.h"

namespace tconv3d {

// Makes the thread pool and the stores, once however often it is called.
inline void start_engine() {
  static const bool started = [] {
    start_pool();
    start_stores();
    return true;
  }();
  static_cast<void>(started);
}

}  // namespace tconv3d
