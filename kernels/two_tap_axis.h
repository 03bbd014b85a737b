// SPDX-License-Identifier: Apache-2.0
// One axis of the two-tap method. Two taps g0, g1 on neighbouring samples give two neighbouring targets by three products instead of four:
//
//     y[j]   = g0 s[n-1] + g1 s[n]   =  g0 (s[n-1] - s[n]) + (g0 + g1) s[n]
//     y[j+1] = g0 s[n]   + g1 s[n+1] =  g1 (s[n+1] - s[n]) + (g0 + g1) s[n]
//
// The middle product serves both. Three taps in a row give them by four products instead of six:
//
//     y[j]   = g0 (s[n-1] - s[n+1]) + sum + difference     sum        = (g0 + g1 + g2)/2 (s[n] + s[n+1])
//     y[j+1] = g2 (s[n+2] - s[n])   + sum - difference     difference = (g0 - g1 + g2)/2 (s[n+1] - s[n])
//
// n = 2q + parity: pairs lie at fixed source samples, so a target's bits do not depend on where a block starts. A tap without a neighbour (the one tap of k3
// s2's even phase) joins the first or the last product with the sample itself. Halves are exact: integers stay so while sums of magnitudes stay below 2^16 in
// float32 (3 times the sum, in halves, along each of three axes).
#pragma once

#include <string>

#include "engine.h"

namespace tconv3d {

// Transformed samples of one source phase: value[q] = s[step*q + at] + sign * s[step*q + other]; sign 0: the sample alone.
struct Kind {
  int64_t source_phase, at, other;
  int sign;

  bool operator==(const Kind& k) const { return source_phase == k.source_phase && at == k.at && sign == k.sign && (sign == 0 || other == k.other); }
};

// Taps of the kernel, by index, negative where there is none: first + second, or (first + sign * second + third) / 2.
struct TapSum {
  int64_t first, second = -1, third = -1;
  int sign = 1;

  bool operator==(const TapSum& t) const { return first == t.first && second == t.second && third == t.third && sign == t.sign; }
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

// The products of a phase, by index: of one target; or of two, then what both add (where taps have neighbours), then what the first adds and the second
// subtracts (where three taps were taken together).
using PhaseProducts = std::vector<size_t>;
inline int64_t targets_of(const PhaseProducts& p) { return std::min<int64_t>(int64_t(p.size()), 2); }

struct TransformedAxis {
  AxisPlan plan;                      // targets at positions q, two phases for each that a pair made
  int64_t step = 1;                   // source samples from position to position: 2 where paired
  int64_t reach = 1;                  // of a pair's kinds, in samples past its middle: 2 where three taps are taken together
  std::map<int64_t, int64_t> parity;  // of the pairs' middle samples, for each source phase
  std::vector<Kind> kinds;
  std::vector<Product> products;           // those of the targets, in the order of plan.phases, then the shared ones
  std::vector<PhaseProducts> phases;       // of the axis as it was
  std::vector<std::vector<TapSum>> lists;  // weights of the products; products with the same weights have the same list
  int64_t least_shift = 0, most_shift = 0;

  int64_t terms() const {  // of all lists together
    int64_t n = 0;
    for (const auto& list : lists) n += int64_t(list.size());
    return n;
  }
};

using TransformedAxes = std::array<TransformedAxis, 3>;

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
  if (axis.kinds.empty()) axis.least_shift = axis.most_shift = shift;
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

// Whether tap t and the next one read one sample after the other. The taps of a phase lie equally far apart, so all of them do or none.
inline bool neighbours(const std::vector<Tap>& taps, size_t t) { return t + 1 < taps.size() && taps[t + 1].offset == taps[t].offset + 1; }

}  // namespace two_tap_detail

// Whether the method applies.
inline bool has_pairs(const AxisPlan& a) {
  for (const Phase& phase : a.phases)
    for (const auto& [source, taps] : two_tap_detail::by_source(phase))
      if (two_tap_detail::neighbours(taps, 0)) return true;
  return false;
}

inline TransformedAxis direct_axis(const AxisPlan& a) {
  TransformedAxis axis;
  axis.plan = a;
  for (const Phase& phase : a.phases) {
    two_tap_detail::Chain chain;
    for (const Tap& t : phase.taps) axis.parity[t.source_phase] = 0;
    for (const Tap& t : phase.taps) two_tap_detail::add_term(axis, chain, {t.source_phase, 0, 0, 0}, t.offset, {t.kernel});
    axis.phases.push_back({two_tap_detail::add_product(axis, std::move(chain), phase.begin, phase.count)});
  }
  return axis;
}

// The chains of a phase whose targets are j = 2q + start and j + 1.
struct PhaseChains {
  two_tap_detail::Chain first, second, sum, difference;
};

inline PhaseChains pair_taps(TransformedAxis& axis, const Phase& phase, int64_t start, int64_t beside) {
  using namespace two_tap_detail;
  PhaseChains c;
  for (const auto& [source, taps] : by_source(phase)) {
    const int64_t p = axis.parity.at(source);
    for (size_t t = 0; t < taps.size(); ++t) {
      // From 2q + parity to the pair's middle sample: even, as paired_axis places the first pair and the others follow in twos.
      const int64_t shift = (taps[t].offset + 1 + start - p) / 2;
      if (neighbours(taps, t) && t + 3 == taps.size()) {  // of an odd number, the last three
        const int64_t k0 = taps[t].kernel, k1 = taps[t + 1].kernel, k2 = taps[t + 2].kernel;
        add_term(axis, c.first, {source, p - 1, p + 1, -1}, shift, {k0});
        add_term(axis, c.second, {source, p + 2, p, -1}, shift, {k2});
        add_term(axis, c.sum, {source, p, p + 1, 1}, shift, {k0, k1, k2, 1});
        add_term(axis, c.difference, {source, p + 1, p, -1}, shift, {k0, k1, k2, -1});
        axis.reach = 2;
        t += 2;
        continue;
      }
      if (neighbours(taps, t)) {
        const int64_t k0 = taps[t].kernel, k1 = taps[t + 1].kernel;
        add_term(axis, c.first, {source, p - 1, p, -1}, shift, {k0});
        add_term(axis, c.second, {source, p + 1, p, -1}, shift, {k1});
        add_term(axis, c.sum, {source, p, 0, 0}, shift, {k0, k1});
        ++t;
        continue;
      }
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t sample = taps[t].offset + start + half - p, at = floor_mod(sample, 2) ? beside : 0;
        add_term(axis, half ? c.second : c.first, {source, p + at, 0, 0}, (sample - at) / 2, {taps[t].kernel});
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
  std::vector<std::array<Chain, 2>> shared;  // of each phase: sum, difference
  for (const Phase& phase : a.phases) {
    int64_t start = 0;
    for (const auto& [source, taps] : by_source(phase)) {
      const bool pairs = neighbours(taps, 0);
      const int64_t offset = taps[0].offset;
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
    shared.push_back({std::move(c.sum), std::move(c.difference)});
  }
  std::stable_sort(halves.begin(), halves.end(), [](const Half& x, const Half& y) { return x.phase.first < y.phase.first; });
  axis.phases.resize(shared.size());
  for (Half& half : halves) {
    axis.phases[half.of].push_back(add_product(axis, std::move(half.chain), half.phase.begin, half.phase.count));
    axis.plan.phases.push_back(std::move(half.phase));
  }
  for (size_t f = 0; f < shared.size(); ++f) {
    const Product &first = axis.products[axis.phases[f][0]], &second = axis.products[axis.phases[f][1]];
    const int64_t begin = std::min(first.begin, second.begin), end = std::max(first.end, second.end);
    for (Chain& chain : shared[f])
      if (!chain.terms.empty()) axis.phases[f].push_back(add_product(axis, std::move(chain), begin, end));
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

inline TransformedAxes transformed(const std::array<AxisPlan, 3>& plans, const Method& method) {
  TransformedAxes axes;
  for (size_t a = 0; a < 3; ++a) axes[a] = method[a] ? paired_axis(plans[a], method[a]) : direct_axis(plans[a]);
  return axes;
}

// f(method) for all choices among the axes where `most` applies the method, but for none of them; all of them last.
template <class F>
void for_each_choice(const Method& most, F f) {
  for (int mask = 1; mask < 8; ++mask) {
    Method method = kDirect;
    bool applies = true;
    for (size_t a = 0; a < 3; ++a)
      if (mask >> a & 1) {
        method[a] = most[a];
        applies = applies && most[a];
      }
    if (applies) f(method);
  }
}

// For people: the paired ones of d, h and w.
inline std::string paired_axes(const TransformedAxes& axes) {
  std::string names;
  for (size_t a = 0; a < 3; ++a)
    if (axes[a].step == 2) names += "dhw"[a];
  return names;
}

}  // namespace tconv3d
