// SPDX-License-Identifier: Apache-2.0
// One axis of the two-tap method. Two taps g0, g1 on neighbouring samples give two neighbouring targets by three products instead of four:
//
//     y[j]   = g0 s[n-1] + g1 s[n]   =  g0 (s[n-1] - s[n]) + (g0 + g1) s[n]
//     y[j+1] = g0 s[n]   + g1 s[n+1] =  g1 (s[n+1] - s[n]) + (g0 + g1) s[n]
//
// The middle product serves both. n = 2q + parity: pairs lie at fixed source samples, so a target's bits do not depend on where a block starts. A tap
// without a neighbour (the one tap of k3 s2's even phase, the third of three) joins the first or the last product with the sample itself. There are
// no fractions, so integers stay exact.
#pragma once

#include "geometry.h"

namespace tconv3d {

// Transformed samples of one source phase: value[q] = s[step*q + at], less s[step*q + minus] where there is a `minus`.
struct Kind {
  int64_t source_phase, at, minus;
  bool difference;

  bool operator==(const Kind& k) const {
    return source_phase == k.source_phase && at == k.at && difference == k.difference && (!difference || minus == k.minus);
  }
};

// A sum of one or two taps of the kernel, by index; second < 0: one.
struct TapSum {
  int64_t first, second;

  bool operator==(const TapSum& t) const { return first == t.first && second == t.second; }
};

// A chain of multiply-adds: kind[k][q + shift] for every term, with the weights of `list`, term by term.
struct Product {
  struct Term {
    size_t kind;
    int64_t shift;
  };
  std::vector<Term> terms;
  size_t list;
  int64_t begin, end;  // positions at which a target takes it in
};

// Products `first` and `second`, indices of Product, both take `shared` in; a phase whose taps form no pair has none.
struct SharedProduct {
  size_t first, second, shared;
};

struct TransformedAxis {
  AxisPlan plan;                      // targets at positions q, two phases for each that a pair made
  int64_t step = 1;                   // source samples from position to position: 2 where paired
  std::map<int64_t, int64_t> parity;  // of the pairs' middle samples, for each source phase
  std::vector<Kind> kinds;
  std::vector<Product> products;  // those of the targets, in the order of plan.phases, then the shared ones
  std::vector<SharedProduct> shared;
  std::vector<std::vector<size_t>> phases;  // the products of each phase of the axis as it was
  std::vector<std::vector<TapSum>> lists;   // weights of the products; products with the same weights have the same list
  int64_t least_shift = 0, most_shift = 0;

  int64_t terms() const {  // of all lists together
    int64_t n = 0;
    for (const auto& list : lists) n += int64_t(list.size());
    return n;
  }
};

namespace two_tap_detail {

inline size_t kind_index(TransformedAxis& axis, const Kind& kind) {
  const auto at = std::find(axis.kinds.begin(), axis.kinds.end(), kind);
  if (at != axis.kinds.end()) return size_t(at - axis.kinds.begin());
  axis.kinds.push_back(kind);
  return axis.kinds.size() - 1;
}

struct Chain {
  std::vector<Product::Term> terms;
  std::vector<TapSum> weights;
};

inline void add_term(TransformedAxis& axis, Chain& chain, const Kind& kind, int64_t shift, TapSum weight) {
  chain.terms.push_back({kind_index(axis, kind), shift});
  chain.weights.push_back(weight);
  axis.least_shift = std::min(axis.least_shift, shift);
  axis.most_shift = std::max(axis.most_shift, shift);
}

inline size_t add_product(TransformedAxis& axis, Chain chain, int64_t begin, int64_t end) {
  const auto at = std::find(axis.lists.begin(), axis.lists.end(), chain.weights);
  const size_t list = size_t(at - axis.lists.begin());
  if (at == axis.lists.end()) axis.lists.push_back(std::move(chain.weights));
  axis.products.push_back({std::move(chain.terms), list, begin, end});
  return axis.products.size() - 1;
}

// The taps of a phase by source phase, offsets ascending.
inline std::map<int64_t, std::vector<Tap>> by_source(const Phase& phase) {
  std::map<int64_t, std::vector<Tap>> taps;
  for (const Tap& t : phase.taps) taps[t.source_phase].push_back(t);
  for (auto& [source, list] : taps) std::sort(list.begin(), list.end(), [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
  return taps;
}

// The offset of the first of two neighbouring taps, if there are such.
inline bool first_pair(const std::vector<Tap>& taps, int64_t* offset) {
  for (size_t t = 0; t + 1 < taps.size(); ++t)
    if (taps[t + 1].offset == taps[t].offset + 1) return *offset = taps[t].offset, true;
  return false;
}

}  // namespace two_tap_detail

inline TransformedAxis direct_axis(const AxisPlan& a) {
  TransformedAxis axis;
  axis.plan = a;
  for (const Phase& phase : a.phases) {
    two_tap_detail::Chain chain;
    for (const Tap& t : phase.taps) axis.parity[t.source_phase] = 0;
    for (const Tap& t : phase.taps) two_tap_detail::add_term(axis, chain, {t.source_phase, 0, 0, false}, t.offset, {t.kernel, -1});
    axis.phases.push_back({two_tap_detail::add_product(axis, std::move(chain), phase.begin, phase.count)});
  }
  return axis;
}

// The three chains of a phase whose targets are j = 2q + start and j + 1.
struct PhaseChains {
  two_tap_detail::Chain first, second, shared;
};

inline PhaseChains pair_taps(TransformedAxis& axis, const Phase& phase, int64_t start, int64_t beside) {
  using namespace two_tap_detail;
  PhaseChains c;
  for (const auto& [source, taps] : by_source(phase)) {
    const int64_t p = axis.parity.at(source);
    for (size_t t = 0; t < taps.size(); ++t) {
      const int64_t middle = taps[t].offset + 1 + start - p;  // from 2q + parity to the pair's middle sample
      if (t + 1 < taps.size() && taps[t + 1].offset == taps[t].offset + 1 && middle % 2 == 0) {
        const int64_t k0 = taps[t].kernel, k1 = taps[t + 1].kernel;
        add_term(axis, c.first, {source, p - 1, p, true}, middle / 2, {k0, -1});
        add_term(axis, c.second, {source, p + 1, p, true}, middle / 2, {k1, -1});
        add_term(axis, c.shared, {source, p, 0, false}, middle / 2, {k0, k1});
        ++t;
        continue;
      }
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t sample = taps[t].offset + start + half - p, at = floor_mod(sample, 2) ? beside : 0;
        add_term(axis, half ? c.second : c.first, {source, p + at, 0, false}, (sample - at) / 2, {taps[t].kernel, -1});
      }
    }
  }
  return c;
}

// The axis with its targets in pairs. One source phase: the middles of all pairs have one parity, and each phase of targets starts where its own pairs
// do. Several source phases (input gradient): one phase of targets, which starts at 0, and the parity of each source phase follows. Lone taps
// read the sample before (beside = -1) or after (1) a middle. `pairing` holds both, as Method in engine.h says.
inline TransformedAxis paired_axis(const AxisPlan& a, int pairing) {
  using namespace two_tap_detail;
  const int64_t parity = (pairing - 1) % 2, beside = pairing > 2 ? 1 : -1;
  TransformedAxis axis;
  axis.plan = a;
  axis.plan.phases.clear();
  axis.plan.positions = 0;
  axis.plan.target_step = 2 * a.target_step;
  axis.step = 2;
  struct Half {
    Phase phase;
    Chain chain;
    size_t of;
  };
  std::vector<Half> halves;
  std::vector<Chain> shared;
  for (const Phase& phase : a.phases) {
    int64_t start = 0, offset = 0;
    for (const auto& [source, taps] : by_source(phase)) {
      const bool pairs = first_pair(taps, &offset);
      if (a.source_step == 1 && pairs) start = -floor_mod(offset + 1 + parity, 2);
      axis.parity[source] = a.source_step == 1 ? parity : pairs ? floor_mod(offset + 1, 2) : 0;
    }
    PhaseChains c = pair_taps(axis, phase, start, beside);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t first = start + half;  // j of q = 0
      Phase targets{phase.first + first * a.target_step, ceil_div(phase.count - first, 2), {}, first < 0};
      axis.plan.positions = std::max(axis.plan.positions, targets.count);
      halves.push_back({std::move(targets), std::move(half ? c.second : c.first), shared.size()});
    }
    shared.push_back(std::move(c.shared));
  }
  std::stable_sort(halves.begin(), halves.end(), [](const Half& x, const Half& y) { return x.phase.first < y.phase.first; });
  axis.phases.resize(shared.size());
  for (Half& half : halves) {
    axis.phases[half.of].push_back(add_product(axis, std::move(half.chain), half.phase.begin, half.phase.count));
    axis.plan.phases.push_back(std::move(half.phase));
  }
  for (size_t f = 0; f < shared.size(); ++f)
    if (!shared[f].terms.empty()) {
      const Product &first = axis.products[axis.phases[f][0]], &second = axis.products[axis.phases[f][1]];
      const size_t product = add_product(axis, std::move(shared[f]), std::min(first.begin, second.begin), std::max(first.end, second.end));
      axis.shared.push_back({axis.phases[f][0], axis.phases[f][1], product});
      axis.phases[f].push_back(product);
    }
  return axis;
}

// The parity that leaves fewer positions (k3 s2 p1 on an even size has none to spare with odd middles, and one more with even ones), and the side
// that reaches less far.
inline int best_pairing(const AxisPlan& a) {
  int best = 0;
  int64_t least = 0;
  for (const int pairing : {1, 3, 2, 4}) {
    const TransformedAxis axis = paired_axis(a, pairing);
    int64_t positions = 0;
    for (const Product& p : axis.products) positions += (p.end - p.begin + axis.most_shift - axis.least_shift) * int64_t(p.terms.size());
    if (best && positions >= least) continue;
    least = positions;
    best = pairing;
  }
  return best;
}

}  // namespace tconv3d
