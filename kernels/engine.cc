// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "cost.h"
#include "gather.h"
#include "kept_plans.h"

namespace tconv3d {

namespace {

// For every target of an axis: does a phase of the plan reach it?
std::vector<char> reached_targets(const AxisPlan& a) {
  std::vector<char> reached(size_t(a.target_size), 0);
  for (const Phase& p : a.phases)
    for (int64_t j = 0; j < p.count; ++j) reached[size_t(p.first + j * a.target_step)] = 1;
  return reached;
}

// Writes the bias into the rows that no tap reaches (kernel < stride, common factors of stride and dilation, one sample with a dilation); into all rows where
// the plan leaves gaps within rows, or where there is no plan.
template <class T>
void fill_bias(const Gather& g, bool all, const Options& options, const Kernels& kernels) {
  const TileKernels<T>& k = tiles<T>(kernels);
  const int64_t channels = g.groups * g.columns, depth = g.axis[0].target_size, rows = g.axis[1].target_size, width = g.axis[2].target_size;
  const View& t = g.target;
  if (g.batch * channels == 0 || depth == 0 || rows == 0 || width == 0) return;
  const std::vector<char> depth_reached = reached_targets(g.axis[0]), row_reached = reached_targets(g.axis[1]);
  if (channels > 1 && t.stride[1] == 1) {  // channels last: channel by channel, each cache line would be visited for every channel in it
    std::vector<T> bias(size_t(channels), T(0));
    if (g.bias) k.load_run(bias.data(), 1, g.bias->data, g.bias->stride[0], channels, g.bias->dtype);
    const auto fill_positions = [&](int64_t task, int) {
      const int64_t d = task % depth, plane = task / depth * t.stride[0] + d * t.stride[2];
      for (int64_t h = 0; h < rows; ++h)
        if (all || !depth_reached[size_t(d)] || !row_reached[size_t(h)])
          for (int64_t w = 0; w < width; ++w) k.store_run(t.at(plane + h * t.stride[3] + w * t.stride[4]), 1, bias.data(), 1, channels, t.dtype);
    };
    parallel_for(g.batch * depth, options.threads, fill_positions, options.stop);
    return;
  }
  const auto fill = [&](int64_t task, int) {
    const int64_t d = task % depth, channel = task / depth % channels, image = task / depth / channels;
    const bool whole_plane = all || !depth_reached[size_t(d)];
    if (!whole_plane && g.axis[1].covered) return;
    T bias = 0;
    if (g.bias) k.load_run(&bias, 1, g.bias->at(channel * g.bias->stride[0]), 1, 1, g.bias->dtype);
    const int64_t plane = image * t.stride[0] + channel * t.stride[1] + d * t.stride[2];
    if (whole_plane && t.stride[4] == 1 && t.stride[3] == width) {
      k.fill_run(t.at(plane), 1, bias, rows * width, t.dtype);
      return;
    }
    for (int64_t h = 0; h < rows; ++h)
      if (whole_plane || !row_reached[size_t(h)]) k.fill_run(t.at(plane + h * t.stride[3]), t.stride[4], bias, width, t.dtype);
  };
  parallel_for(g.batch * channels * depth, options.threads, fill, options.stop);
}

enum class Direction { forward, input_grad };

int64_t chunk_of(const Problem& p, Direction direction) {
  int64_t taps = 1;  // of the phase with the most: a dilation that shares factors with the stride leaves some phases to the others
  for (const Axis& a : p.axis) taps *= direction == Direction::forward ? ceil_div(a.kernel, a.stride / std::gcd(a.stride, a.dilation)) : a.kernel;
  return channel_chunk(taps);
}

struct KeptPlan {
  std::array<AxisPlan, 3> axis;
  std::unique_ptr<Plan> plan;  // null where no tap reaches any target
  bool covered;                // every target is written by the plan
};
thread_local KeptPlans<KeptPlan, 11> kept_plans;

Method method_by(Algorithm algorithm, const Problem& p, Direction direction, const Gather& g, const Kernels& kernels) {
  const bool col2im = direction == Direction::forward && col2im_applies(p);
  switch (algorithm) {
    case Algorithm::direct:
      return kDirect;
    case Algorithm::two_tap:
      return two_tap_everywhere(g);
    case Algorithm::col2im:
      return col2im ? kCol2im : kDirect;
    case Algorithm::automatic:
      break;
  }
  const Method pairs = two_tap_where_it_pays(g, kernels.f32.lanes);
  return pairs == kDirect && col2im && col2im_pays(g, kernels.f32.lanes) ? kCol2im : pairs;
}

// To turn the sums to channels last, for the families that do: a third of monai_swinunetr. Sums of several groups share lines whoever stores them.
double turned_cycles(const Gather& g, const PlanContext& context) {
  constexpr double kTurnedSum = 2;
  if (!context.target_is_rows || g.groups > 1 || g.columns == 1) return 0;
  return kTurnedSum * double(target_elements(g)) / context.threads;
}

template <class T>
std::unique_ptr<Plan> choose(const Problem& p, const Gather& g, Direction direction, const Options& options, Algorithm algorithm, const PlanContext& context) {
  const Family family = options.family;
  const Method method = family != Family::automatic ? kDirect : options.method ? *options.method : method_by(algorithm, p, direction, g, context.kernels);
  const std::vector<Phase>& along_w = g.axis[2].phases;  // a part of a whole may have none but those without taps: the bias alone
  const bool reached = std::any_of(along_w.begin(), along_w.end(), [](const Phase& phase) { return !phase.taps.empty(); });
  if (method == kCol2im && reached && col2im_applies(p)) return plan_col2im<T>(g, context);
  if (method != kDirect && method != kCol2im) return plan_two_tap<T>(g, context, method);
  std::unique_ptr<Plan> best;
  const double turned = turned_cycles(g, context);
  const auto consider = [&](Family candidate, auto make) {
    if (family != Family::automatic && family != candidate) return;
    std::unique_ptr<Plan> plan = make();
    if (candidate != Family::channels && candidate != Family::depthwise) plan->cycles += turned;
    if (!best || plan->cycles < best->cycles) best = std::move(plan);
  };
  consider(Family::spatial, [&] { return plan_spatial<T>(g, context); });
  consider(Family::rows, [&] { return plan_rows<T>(g, context); });
  consider(Family::depthwise, [&] { return plan_depthwise<T>(g, context); });
  consider(Family::channels, [&] { return plan_channels<T>(g, context); });
  if (direction == Direction::forward) consider(Family::phased, [&] { return plan_phased<T>(p, g, context); });
  if (!best || best->cycles == std::numeric_limits<double>::infinity()) best = plan_spatial<T>(g, context);
  return best;
}

Gather gather(const Problem& p, Direction direction, const std::array<AxisPlan, 3>& axis, const View& source, const View& w, const View& target,
              const View* bias) {
  const int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
  const bool forward = direction == Direction::forward;
  return {p.batch,
          p.groups,
          forward ? in : out,
          forward ? out : in,
          axis,
          source,
          w,
          target,
          bias,
          in * w.stride[0],
          w.stride[forward ? 0 : 1],
          w.stride[forward ? 1 : 0],
          {w.stride[2], w.stride[3], w.stride[4]},
          {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel}};
}

template <class T>
std::shared_ptr<const KeptPlan> plan_for(const Problem& p, Direction direction, const View& source, const View& w, const View& target, const Options& options,
                                         const Kernels& kernels) {
  const PlanContext context{kernels, options.threads, chunk_of(p, direction), is_rows<T>(source), is_rows<T>(target)};
  const Algorithm algorithm = active_algorithm();
  const Method handed = options.method.value_or(Method{-2, -2, -2});
  const std::array<int64_t, 11> rest{int64_t(direction),
                                     int64_t(sizeof(T)),
                                     int64_t(algorithm),
                                     int64_t(options.family),
                                     int64_t(reinterpret_cast<intptr_t>(&kernels)),
                                     options.threads,
                                     context.source_is_rows,
                                     context.target_is_rows,
                                     handed[0],
                                     handed[1],
                                     handed[2]};
  return kept_plans.get(plan_key(rest, p), [&] {
    auto fresh = std::make_shared<KeptPlan>();
    bool reached = p.in_channels > 0 && p.out_channels > 0 && p.batch > 0;
    fresh->covered = true;
    for (size_t a = 0; a < 3; ++a) {
      const bool paired = options.method && (*options.method)[a] > 0;  // of a whole, of which this is a part
      fresh->axis[a] = direction == Direction::forward ? forward_axis(p.axis[a], a == 2, !paired) : input_grad_axis(p.axis[a]);
      reached = reached && fresh->axis[a].source_size > 0 && fresh->axis[a].positions > 0;
      fresh->covered = fresh->covered && fresh->axis[a].covered;
    }
    fresh->covered = fresh->covered && reached;
    if (reached) fresh->plan = choose<T>(p, gather(p, direction, fresh->axis, source, w, target, nullptr), direction, options, algorithm, context);
    return fresh;
  });
}

template <class T>
void run(const Problem& p, Direction direction, const View& source, const View& w, const View& target, const View* bias, const Options& options) {
  const Kernels& kernels = active_kernels();
  const std::shared_ptr<const KeptPlan> kept = plan_for<T>(p, direction, source, w, target, options, kernels);
  const Gather g = gather(p, direction, kept->axis, source, w, target, bias);
  if (!kept->covered) fill_bias<T>(g, !kept->plan || !kept->axis[2].covered, options, kernels);
  if (!kept->plan) return;
  Options limited = options;
  limited.threads = useful_threads(kept->plan->cycles * options.threads, options.threads);
  kept->plan->run(g, limited, kernels, chunk_of(p, direction));
}

void run(const Problem& p, Direction direction, const View& source, const View& w, const View& target, const View* bias, const Options& options) {
  // Nothing to write. The other axes may then be longer than any plan could list.
  const bool forward = direction == Direction::forward;
  if (p.batch == 0 || (forward ? p.out_channels : p.in_channels) == 0) return;
  for (const Axis& a : p.axis)
    if ((forward ? a.output : a.input) == 0) return;
  if (source.dtype == DType::float64)
    run<double>(p, direction, source, w, target, bias, options);
  else
    run<float>(p, direction, source, w, target, bias, options);
}

}  // namespace

namespace {

Algorithm algorithm_named(const std::string& name) {
  if (name == "automatic") return Algorithm::automatic;
  if (name == "direct") return Algorithm::direct;
  if (name == "two_tap") return Algorithm::two_tap;
  if (name == "col2im") return Algorithm::col2im;
  throw std::invalid_argument("TCONV3D_ALGORITHM: '" + name + "' is none of automatic, direct, two_tap, col2im");
}

std::atomic<int> chosen_algorithm{-1};

}  // namespace

Algorithm active_algorithm() {
  int found = chosen_algorithm.load(std::memory_order_relaxed);
  if (found < 0) {
    const char* name = std::getenv("TCONV3D_ALGORITHM");
    found = int(name && *name ? algorithm_named(name) : Algorithm::automatic);
    chosen_algorithm.store(found, std::memory_order_relaxed);
  }
  return Algorithm(found);
}

void set_active_algorithm(const char* name) { chosen_algorithm.store(int(algorithm_named(name)), std::memory_order_relaxed); }

std::string describe_plan(const Problem& p, DType dtype, bool backward, const Options& options) {
  const Direction direction = backward ? Direction::input_grad : Direction::forward;
  const auto contiguous = [&](int64_t c, int64_t d, int64_t h, int64_t w) { return View{nullptr, dtype, {c * d * h * w, d * h * w, h * w, w, 1}}; };
  const auto& a = p.axis;
  const View x = contiguous(p.in_channels, a[0].input, a[1].input, a[2].input),
             w = contiguous(p.out_channels / p.groups, a[0].kernel, a[1].kernel, a[2].kernel),
             y = contiguous(p.out_channels, a[0].output, a[1].output, a[2].output);
  const View &source = backward ? y : x, &target = backward ? x : y;
  const auto kept = dtype == DType::float64 ? plan_for<double>(p, direction, source, w, target, options, active_kernels())
                                            : plan_for<float>(p, direction, source, w, target, options, active_kernels());
  if (!kept->plan) return "nothing but the bias: no tap reaches the output";
  return with_cycles(kept->plan->describe(), kept->plan->cycles);
}

Method method_of(const Problem& p) {
  std::array<AxisPlan, 3> axis;
  for (size_t a = 0; a < 3; ++a) axis[a] = forward_axis(p.axis[a], a == 2);
  const View none{nullptr, DType::float32, {}};
  return method_by(active_algorithm(), p, Direction::forward, gather(p, Direction::forward, axis, none, none, none, nullptr), active_kernels());
}

void forward(const Problem& p, const View& x, const View& w, const View* bias, const View& y, const Options& options) {
  run(p, Direction::forward, x, w, y, bias, options);
}

void input_grad(const Problem& p, const View& gy, const View& w, const View& gx, const Options& options) {
  run(p, Direction::input_grad, gy, w, gx, nullptr, options);
}

void bias_grad(const Problem& p, const View& gy, const View& gb, const Options& options) {
  const Kernels& kernels = active_kernels();
  const int64_t depth = p.axis[0].output, rows = p.axis[1].output, width = p.axis[2].output;
  const auto sum = [&](auto zero) {
    using T = decltype(zero);
    const TileKernels<T>& k = tiles<T>(kernels);
    parallel_for(
        p.out_channels, options.threads,
        [&](int64_t channel, int) {
          constexpr int64_t kRun = 256;
          T run[kRun];
          double total = 0;
          for (int64_t n = 0; n < p.batch; ++n)
            for (int64_t d = 0; d < depth; ++d)
              for (int64_t h = 0; h < rows; ++h)
                for (int64_t w = 0; w < width; w += kRun) {
                  const int64_t count = std::min(kRun, width - w);
                  k.load_run(run, 1, gy.at(n * gy.stride[0] + channel * gy.stride[1] + d * gy.stride[2] + h * gy.stride[3] + w * gy.stride[4]), gy.stride[4],
                             count, gy.dtype);
                  double part[4] = {0, 0, 0, 0};
                  for (int64_t i = 0; i < count; ++i) part[i % 4] += double(run[i]);
                  total += (part[0] + part[1]) + (part[2] + part[3]);
                }
          const T result = T(total);
          k.store_run(gb.at(channel * gb.stride[0]), 1, &result, 1, 1, gb.dtype);
        },
        options.stop);
  };
  if (gy.dtype == DType::float64)
    sum(double{});
  else
    sum(float{});
}

}  // namespace tconv3d
