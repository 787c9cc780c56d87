// Python bindings: numpy arrays in, checked one by one, pointers out; the GIL is released while the kernel runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <string>

#ifndef _WIN32
#include <pthread.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "arguments.h"
#include "interrupt.h"
#include "nca.h"
#include "peak.h"
#include "storage.h"

using namespace ncakern;

namespace {

// The process around a call.

// The threads of OpenMP do not live on in a forked child: a second thread there would be waited for without end.
bool is_forked_child = false;

// Python runs its signal handlers in the main thread only.
bool is_main_thread() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
  return pthread_main_np() != 0;
#else
  return false;
#endif
}

thread_local bool is_inside_handler = false;

// Runs Python's handlers of the signals that have come; true if one has raised. The error stays set.
bool has_raising_signal() {
  if (!is_main_thread()) return false;
  const PyGILState_STATE lock = PyGILState_Ensure();
  is_inside_handler = true;
  const bool has_raised = PyErr_CheckSignals() != 0;
  is_inside_handler = false;
  PyGILState_Release(lock);
  return has_raised;
}

template <class Args, class Compute>
void run(Args& args, Compute compute) {
  // A handler runs in the middle of a rollout, whose scratch memory is the thread's only one.
  if (is_inside_handler)
    throw std::runtime_error("a signal handler must not call ncakern while it interrupts a rollout of ncakern");
  Interrupt interrupt(&has_raising_signal);
  args.interrupt = &interrupt;
  {
    const py::gil_scoped_release unlocked;
    compute(args);
  }
  if (interrupt.is_set()) throw py::error_already_set();
}

// Instruction sets.

const Variant& find_variant(const std::string& name) {
  int count;
  const Variant* table = variants(&count);
  for (int i = 0; i < count; ++i)
    if (name == table[i].name) {
      if (!table[i].supported())
        throw py::value_error("this CPU does not support the instruction set isa='" + name + "'");
      return table[i];
    }
  throw py::value_error("this build has no instruction set isa='" + name + "'");
}

using Forward = void (*)(const ForwardArgs&);

Forward find_amx(const RolloutArgs& args) {
  if (!amx::supported()) throw py::value_error("use_amx: this machine has no AMX tiles for bfloat16");
  if (args.storage != Storage::kBFloat16 || args.perception != Perception::kDense || args.norm != Norm::kNone)
    throw py::value_error("use_amx: AMX tiles compute dense perception without norm on a bfloat16 state only");
  if (args.has_clamp) throw py::value_error("use_amx: AMX tiles know no clamp");
  if (args.activation != Activation::kRelu && args.activation != Activation::kLeakyRelu)
    throw py::value_error("use_amx: AMX tiles compute the activations relu and leaky_relu only");
  return amx::fwd;
}

// Sizes and options.

struct Sizes {
  int64_t state, perceive_weight, perceive_bias, hidden_weight, out_weight, modulation, num_kept, stats;
};

void read_spec(const Options& options, RolloutArgs* args) {
  args->perception =
      options.choice<Perception>("perception", {{"depthwise", Perception::kDepthwise}, {"dense", Perception::kDense}});
  args->padding = options.choice<Padding>("padding", {{"reflect", Padding::kReflect},
                                                      {"zeros", Padding::kZeros},
                                                      {"replicate", Padding::kReplicate},
                                                      {"circular", Padding::kCircular}});
  args->norm =
      options.choice<Norm>("norm", {{"none", Norm::kNone}, {"batch", Norm::kBatch}, {"instance", Norm::kInstance}});
  args->activation = options.choice<Activation>("activation", {{"relu", Activation::kRelu},
                                                               {"leaky_relu", Activation::kLeakyRelu},
                                                               {"silu", Activation::kSilu},
                                                               {"gelu", Activation::kGelu},
                                                               {"tanh", Activation::kTanh}});
  args->storage = options.choice<Storage>(
      "storage", {{"float32", Storage::kFloat32}, {"bfloat16", Storage::kBFloat16}, {"float16", Storage::kFloat16}});
  args->clamp[0] = float(options.real("clamp_low")), args->clamp[1] = float(options.real("clamp_high"));
  if (!(args->clamp[0] <= args->clamp[1])) throw py::value_error("clamp_low must be at most clamp_high");
  args->has_clamp = args->clamp[0] > -INFINITY || args->clamp[1] < INFINITY;
  args->fire_threshold = uint64_t(options.number("fire_threshold", 0, int64_t{1} << 32));
}

void read_sizes(const Options& options, RolloutArgs* args) {
  args->batch = options.integer("batch", 1), args->channels = options.integer("channels", 1);
  args->filters = options.integer("filters", 1), args->hidden = options.integer("hidden", 1);
  args->frozen_channels = options.integer("frozen_channels", 0, args->channels);
  options.triple("size", 1, kMaxInt, args->size);
  options.triple("kernel", 1, kMaxInt, args->kernel);
  options.triple("origin", 0, kMaxInt64, args->origin);
  options.triple("extent", 1, kMaxInt64, args->extent);
  for (int i = 0; i < 3; ++i) {
    const int reach = args->kernel[i] / 2, cells = args->size[i];
    if (args->kernel[i] % 2 == 0) throw py::value_error("kernel must be odd on every axis");
    if ((args->padding == Padding::kReflect && reach >= cells) ||
        (args->padding == Padding::kCircular && reach > cells))
      throw py::value_error("size must be larger for this kernel and padding: it would be padded by more than itself");
    if (args->origin[i] > args->extent[i] - cells) throw py::value_error("origin must place the tile inside extent");
  }
}

void read_call(const Options& options, RolloutArgs* args) {
  args->steps = options.integer("steps", 1);
  args->keep_every = std::min(args->steps, options.integer("keep_every", 1));
  args->seed = options.word("seed");
  args->first_step = uint32_t(options.number("first_step", 0, 0xFFFFFFFF));
  args->first_sample = uint32_t(options.number("first_sample", 0, 0xFFFFFFFF));
  args->threads = options.integer("threads", 1, kMaxThreads);
  if (is_forked_child) args->threads = 1;
}

// What the kernels count in 32 bits, with channels and hidden units rounded up to whole vectors.
void require_countable(const RolloutArgs& args) {
  const int64_t kVector = 16, Cp = (int64_t{args.channels} + kVector - 1) / kVector * kVector;
  const int64_t hp = (int64_t{args.hidden} + kVector - 1) / kVector * kVector, F = args.filters;
  const bool has_norm = args.norm != Norm::kNone;
  int64_t padded[3];
  for (int i = 0; i < 3; ++i) padded[i] = int64_t{args.size[i]} + 2 * args.kernel[i];
  const int64_t taps = count({args.kernel[0], args.kernel[1], args.kernel[2]}, "kernel");
  const int64_t V = count({1 + F, Cp}, "hidden_weight");
  const int64_t group_rows = std::max<int64_t>(1, 1024 / args.size[2]);
  const std::pair<const char*, int64_t> counts[] = {
      {"size (rows of depth, with padding)", padded[0]},
      {"size (rows of height, with padding)", padded[1]},
      {"size (values of a padded row)", count({padded[2], V}, "size")},
      {"size (cells of a group of padded rows)", count({group_rows, padded[2]}, "size")},
      {"perceive_weight (values)",
       count({taps, F, Cp, args.perception == Perception::kDense ? Cp : 1}, "perceive_weight")},
      {"hidden_weight (values)", count({V, hp}, "hidden_weight")},
      {"out_weight (values)", count({Cp, hp}, "out_weight")},
      {"batch (values of a modulation)", count({args.batch, hp}, "scale")},
      {"stats (covariances)", has_norm ? count({V, V}, "stats") : 0},
      {"steps (statistics)", args.norm == Norm::kInstance ? count({args.steps, args.batch}, "stats") : 0},
  };
  for (const auto& [name, number] : counts)
    if (number > kMaxInt)
      throw py::value_error(std::string(name) + " must be below 2**31; got " + std::to_string(number));
}

Sizes read_options(const Options& options, RolloutArgs* args) {
  read_spec(options, args);
  read_sizes(options, args);
  read_call(options, args);
  require_countable(*args);
  const int64_t B = args->batch, C = args->channels, F = args->filters, h = args->hidden, V = (1 + F) * C;
  const int64_t taps = int64_t{args->kernel[0]} * args->kernel[1] * args->kernel[2];
  const bool is_dense = args->perception == Perception::kDense;
  Sizes sizes;
  sizes.state = count({B, args->size[0], args->size[1], args->size[2], C}, "state");
  sizes.perceive_weight = F * C * taps * (is_dense ? C : 1), sizes.perceive_bias = F * C;
  sizes.hidden_weight = h * V, sizes.out_weight = C * h, sizes.modulation = B * h;
  sizes.num_kept = (int64_t{args->steps} + args->keep_every - 1) / args->keep_every - 1;
  const int64_t groups = args->norm == Norm::kInstance ? B : 1;
  sizes.stats = args->norm == Norm::kNone ? 0 : count({args->steps, groups, V + V * V}, "stats");
  return sizes;
}

// Arrays.

void read_inputs(Arrays& arrays, const Sizes& sizes, RolloutArgs* args) {
  const int64_t h = args->hidden;
  args->state = arrays.stored("state", sizes.state, args->storage);
  args->perceive_weight = arrays.floats("perceive_weight", sizes.perceive_weight);
  args->perceive_bias = arrays.floats("perceive_bias", sizes.perceive_bias);
  args->hidden_weight = arrays.floats("hidden_weight", sizes.hidden_weight);
  args->hidden_bias = arrays.floats("hidden_bias", h);
  args->out_weight = arrays.floats("out_weight", sizes.out_weight);
  if (args->norm != Norm::kNone) {
    args->norm_weight = arrays.floats("norm_weight", h);
    args->norm_bias = arrays.floats("norm_bias", h);
  }
  if (arrays.has("out_bias")) args->out_bias = arrays.floats("out_bias", args->channels);
  if (arrays.has("scale") || arrays.has("shift")) {
    args->scale = arrays.floats("scale", sizes.modulation);
    args->shift = arrays.floats("shift", sizes.modulation);
  }
  if (!arrays.has("perceive_from")) return;
  if (args->steps != 1) throw py::value_error("steps must be 1 when perceive_from is given");
  args->perceive_from = arrays.stored("perceive_from", sizes.state, args->storage);
}

void fwd(const py::dict& tensors, const py::dict& settings) {
  const Options options(settings);
  Arrays arrays(tensors);
  ForwardArgs args{};
  const Sizes sizes = read_options(options, &args);
  read_inputs(arrays, sizes, &args);
  args.out = arrays.stored_out("out", sizes.state, args.storage);
  if (arrays.has("kept"))
    args.kept = arrays.stored_out("kept", count({sizes.num_kept, sizes.state}, "kept"), args.storage);
  if (arrays.has("stats")) args.stats = arrays.doubles("stats", sizes.stats, true);
  if (sizes.num_kept == 0) args.kept = nullptr;
  if (sizes.stats == 0) args.stats = nullptr;
  arrays.require_all_used();
  run(args, options.flag("use_amx") ? find_amx(args) : find_variant(options.text("isa")).fwd);
}

void bwd(const py::dict& tensors, const py::dict& settings) {
  const Options options(settings);
  Arrays arrays(tensors);
  BackwardArgs args{};
  const Sizes sizes = read_options(options, &args);
  read_inputs(arrays, sizes, &args);
  const int64_t h = args.hidden;
  if (sizes.num_kept > 0)
    args.kept = const_cast<void*>(arrays.stored("kept", count({sizes.num_kept, sizes.state}, "kept"), args.storage));
  if (sizes.stats > 0) args.stats = arrays.doubles("stats", sizes.stats, false);
  args.d_out = arrays.stored("d_out", sizes.state, args.storage);
  args.d_state = arrays.stored_out("d_state", sizes.state, args.storage);
  args.d_perceive_weight = arrays.floats_out("d_perceive_weight", sizes.perceive_weight);
  args.d_perceive_bias = arrays.floats_out("d_perceive_bias", sizes.perceive_bias);
  args.d_hidden_weight = arrays.floats_out("d_hidden_weight", sizes.hidden_weight);
  args.d_hidden_bias = arrays.floats_out("d_hidden_bias", h);
  args.d_out_weight = arrays.floats_out("d_out_weight", sizes.out_weight);
  if (args.out_bias != nullptr) args.d_out_bias = arrays.floats_out("d_out_bias", args.channels);
  if (args.perceive_from != nullptr)
    args.d_perceive_from = arrays.stored_out("d_perceive_from", sizes.state, args.storage);
  if (args.norm != Norm::kNone) {
    args.d_norm_weight = arrays.floats_out("d_norm_weight", h);
    args.d_norm_bias = arrays.floats_out("d_norm_bias", h);
  }
  if (args.scale != nullptr) {
    args.d_scale = arrays.floats_out("d_scale", sizes.modulation);
    args.d_shift = arrays.floats_out("d_shift", sizes.modulation);
  }
  arrays.require_all_used();
  run(args, find_variant(options.text("isa")).bwd);
}

void moments(const py::dict& tensors, const py::dict& settings) {
  const Options options(settings);
  Arrays arrays(tensors);
  MomentsArgs args{};
  const Sizes sizes = read_options(options, &args);
  if (args.norm == Norm::kNone) throw py::value_error("norm must be 'batch' or 'instance'; got 'none'");
  if (args.steps != 1) throw py::value_error("steps must be 1; got " + std::to_string(args.steps));
  read_inputs(arrays, sizes, &args);
  args.stats = arrays.doubles("stats", sizes.stats, true);
  arrays.require_all_used();
  options.triple("inner_begin", 0, kMaxInt, args.inner.begin);
  options.triple("inner_end", 1, kMaxInt, args.inner.end);
  for (int i = 0; i < 3; ++i)
    if (args.inner.begin[i] >= args.inner.end[i] || args.inner.end[i] > args.size[i])
      throw py::value_error("inner_begin and inner_end must enclose cells inside size");
  run(args, find_variant(options.text("isa")).moments);
}

// The machine.

// name -> whether this CPU can run it, best first.
py::dict list_variants() {
  int count;
  const Variant* table = variants(&count);
  py::dict result;
  for (int i = 0; i < count; ++i) result[table[i].name] = table[i].supported();
  return result;
}

double measure_peak(const py::object& threads, const py::object& rounds, const std::string& isa) {
  py::dict given;
  given["threads"] = threads, given["rounds"] = rounds;
  const Options options(given);
  const int num_threads = is_forked_child ? 1 : options.integer("threads", 1, kMaxThreads);
  const int num_rounds = options.integer("rounds", 1, 1 << 20);
  find_variant(isa);  // raises where this CPU has not got it
  const py::gil_scoped_release unlocked;
  return fma_peak(num_threads, num_rounds, isa);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Fused NCA rollouts on the CPU; called through ncakern.backends.cpu and ncakern.arrays.";
  module.def("fwd", &fwd, py::arg("arrays"), py::arg("options"));
  module.def("bwd", &bwd, py::arg("arrays"), py::arg("options"));
  module.def("moments", &moments, py::arg("arrays"), py::arg("options"));
  module.def("variants", &list_variants);
  module.def("has_amx", &amx::supported);
  module.def("fma_peak", &measure_peak, py::arg("threads"), py::arg("rounds"), py::arg("isa"));
  module.def("is_forked_child", [] { return is_forked_child; });
#ifndef _WIN32
  pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
#endif
}
