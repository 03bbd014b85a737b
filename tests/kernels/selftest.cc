// SPDX-License-Identifier: Apache-2.0
// The engine against the definition, without Python: for cross-compiled instruction sets (under an emulator) and for sanitizers.
// usage: selftest [cases]
#include <cstdio>
#include <cstdlib>

#include "cases.h"

using namespace tconv3d;

namespace {

Generator generator(20240);

template <class T>
bool run_case(Family family, const char* algorithm, int threads, bool large) {
  set_active_algorithm(algorithm);
  Case<T> c(generator, large ? draw_large_problem(generator) : draw_problem(generator));
  Options options;
  options.threads = threads;
  options.family = family;
  return c.forward_is_right(options) && c.input_grad_is_right(options) && c.weight_grad_is_right(options);
}

}  // namespace

int main(int argc, char** argv) {
  start_pool();
  start_stores();
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  const Family families[] = {Family::automatic, Family::spatial,  Family::phased,    Family::depthwise,
                             Family::rows,      Family::channels, Family::automatic, Family::automatic};
  for (int isa = 0; available_isa(isa); ++isa) {
    set_active_kernels(available_isa(isa));
    int wrong = 0;
    for (int i = 0; i < cases; ++i) {
      const char* const algorithm = i / 2 % 8 == 6 ? "two_tap" : i / 2 % 8 == 7 ? "col2im" : "automatic";
      const bool large = i / 2 % 8 == 0;
      wrong +=
          !(i % 2 ? run_case<float>(families[i / 2 % 8], algorithm, 1 + i % 3, large) : run_case<double>(families[i / 2 % 8], algorithm, 1 + i % 3, large));
    }
    std::printf("%s: %d cases, %d wrong\n", available_isa(isa), cases, wrong);
    if (wrong) return 1;
  }
  return 0;
}
