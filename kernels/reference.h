// SPDX-License-Identifier: Apache-2.0
// The definition in seven loops, in double precision: oracle of the self-test on machines without Python.
#pragma once

#include <vector>

#include "geometry.h"

namespace tconv3d {

// x (batch, in, d, h, w), w (in, out per group, kd, kh, kw), y (batch, out, d, h, w), all C-contiguous. visit(y index, x index, w index) for every product.
template <class Visit>
void for_each_product(const Problem& p, Visit visit) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
  const auto along = [](const Axis& a, auto f) {
    for (int64_t i = 0; i < a.input; ++i)
      for (int64_t k = 0; k < a.kernel; ++k) {
        const int64_t o = i * a.stride + k * a.dilation - a.crop;
        if (o >= 0 && o < a.output) f(i, k, o);
      }
  };
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t ci = 0; ci < p.in_channels; ++ci)
      for (int64_t m = 0; m < out; ++m) {
        const int64_t co = ci / in * out + m;
        along(d, [&](int64_t id, int64_t kd, int64_t od) {
          along(h, [&](int64_t ih, int64_t kh, int64_t oh) {
            along(w, [&](int64_t iw, int64_t kw, int64_t ow) {
              visit((((n * p.out_channels + co) * d.output + od) * h.output + oh) * w.output + ow,
                    (((n * p.in_channels + ci) * d.input + id) * h.input + ih) * w.input + iw,
                    (((ci * out + m) * d.kernel + kd) * h.kernel + kh) * w.kernel + kw);
            });
          });
        });
      }
}

}  // namespace tconv3d
