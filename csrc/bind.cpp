// Python bindings: numpy arrays in, checked for dtype, size and contiguity, pointers out; the GIL is released while
// the kernel runs. The meaning of the arguments is checked by the Python side.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "nca.h"
#include "peak.h"
#include "storage.h"

namespace py = pybind11;
using namespace ncakern;

namespace {

template <class Enum>
Enum parse(const std::map<std::string, Enum>& values, const char* name, const std::string& value) {
  const auto found = values.find(value);
  if (found == values.end()) throw py::value_error(std::string(name) + " has no value '" + value + "'");
  return found->second;
}

const Variant& find_variant(const std::string& name) {
  int count;
  const Variant* table = variants(&count);
  for (int i = 0; i < count; ++i)
    if (name == table[i].name) {
      if (!table[i].supported()) throw py::value_error("this CPU does not support the instruction set '" + name + "'");
      return table[i];
    }
  throw py::value_error("this build has no instruction set '" + name + "'");
}

using Forward = void (*)(const ForwardArgs&);

Forward find_amx(const RolloutArgs& args) {
  if (!amx::supported()) throw py::value_error("this machine has no AMX tiles for bfloat16");
  if (args.storage != Storage::kBFloat16 || args.perception != Perception::kDense || args.norm != Norm::kNone)
    throw py::value_error("AMX tiles compute dense perception without norm on a bfloat16 state only");
  return amx::fwd;
}

// Reads the arrays of one call by name.
class Arrays {
 public:
  explicit Arrays(const py::dict& arrays) : arrays_(arrays) {}

  // The data of a contiguous array with `count` items of `item` bytes; null where the array is absent or None.
  void* get(const char* name, int64_t count, int64_t item) const {
    if (!arrays_.contains(name) || arrays_[name].is_none()) return nullptr;
    const py::array array = py::cast<py::array>(arrays_[name]);
    if (!(array.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be contiguous");
    if (array.itemsize() != item)
      throw py::type_error(std::string(name) + " must have items of " + std::to_string(item) + " bytes");
    if (array.size() != count)
      throw py::value_error(std::string(name) + " must have " + std::to_string(count) + " items; got " +
                            std::to_string(array.size()));
    return const_cast<void*>(array.data());
  }
  template <class T>
  T* get(const char* name, int64_t count) const {
    return static_cast<T*>(get(name, count, sizeof(T)));
  }

 private:
  const py::dict& arrays_;
};

struct Sizes {
  int64_t state, hidden_weight, perceive_weight, kept, stats;
};

Sizes read(const Arrays& arrays, const py::dict& options, RolloutArgs* args) {
  auto number = [&](const char* name) { return py::cast<int64_t>(options[name]); };
  auto text = [&](const char* name) { return py::cast<std::string>(options[name]); };
  args->batch = int(number("batch")), args->channels = int(number("channels"));
  args->filters = int(number("filters")), args->hidden = int(number("hidden"));
  const auto size = py::cast<std::array<int, 3>>(options["size"]),
             kernel = py::cast<std::array<int, 3>>(options["kernel"]);
  const auto origin = py::cast<std::array<int64_t, 3>>(options["origin"]);
  const auto extent = py::cast<std::array<int64_t, 3>>(options["extent"]);
  for (int i = 0; i < 3; ++i) {
    args->size[i] = size[i], args->kernel[i] = kernel[i];
    args->origin[i] = origin[i], args->extent[i] = extent[i];
  }
  args->perception = parse<Perception>({{"depthwise", Perception::kDepthwise}, {"dense", Perception::kDense}},
                                       "perception", text("perception"));
  args->padding = parse<Padding>({{"reflect", Padding::kReflect},
                                  {"zeros", Padding::kZeros},
                                  {"replicate", Padding::kReplicate},
                                  {"circular", Padding::kCircular}},
                                 "padding", text("padding"));
  args->norm = parse<Norm>({{"none", Norm::kNone}, {"batch", Norm::kBatch}, {"instance", Norm::kInstance}}, "norm",
                           text("norm"));
  args->activation = parse<Activation>({{"relu", Activation::kRelu}, {"leaky_relu", Activation::kLeakyRelu}},
                                       "activation", text("activation"));
  args->storage =
      parse<Storage>({{"float32", Storage::kFloat32}, {"bfloat16", Storage::kBFloat16}, {"float16", Storage::kFloat16}},
                     "storage", text("storage"));
  args->frozen_channels = int(number("frozen_channels"));
  args->steps = int(number("steps")), args->keep_every = int(number("keep_every"));
  args->fire_threshold = py::cast<uint64_t>(options["fire_threshold"]),
  args->seed = py::cast<uint64_t>(options["seed"]);
  args->first_step = py::cast<uint32_t>(options["first_step"]);
  args->first_sample = py::cast<uint32_t>(options["first_sample"]);
  args->threads = int(number("threads"));

  const int64_t C = args->channels, F = args->filters, h = args->hidden, V = (1 + F) * C;
  const int64_t taps = int64_t{kernel[0]} * kernel[1] * kernel[2];
  const bool dense = args->perception == Perception::kDense, has_norm = args->norm != Norm::kNone;
  const int64_t item = args->storage == Storage::kFloat32 ? 4 : 2;
  Sizes sizes;
  sizes.state = int64_t{args->batch} * size[0] * size[1] * size[2] * C;
  sizes.perceive_weight = F * C * taps * (dense ? C : 1), sizes.hidden_weight = h * V;
  sizes.kept = sizes.state * ((args->steps + args->keep_every - 1) / args->keep_every - 1);
  sizes.stats = int64_t{args->steps} * (args->norm == Norm::kInstance ? args->batch : 1) * (V + V * V);
  args->state = arrays.get("state", sizes.state, item);
  args->perceive_from = arrays.get("perceive_from", sizes.state, item);
  args->perceive_weight = arrays.get<float>("perceive_weight", sizes.perceive_weight);
  args->perceive_bias = arrays.get<float>("perceive_bias", F * C);
  args->hidden_weight = arrays.get<float>("hidden_weight", sizes.hidden_weight);
  args->hidden_bias = arrays.get<float>("hidden_bias", h);
  args->norm_weight = has_norm ? arrays.get<float>("norm_weight", h) : nullptr;
  args->norm_bias = has_norm ? arrays.get<float>("norm_bias", h) : nullptr;
  args->out_weight = arrays.get<float>("out_weight", C * h);
  args->scale = arrays.get<float>("scale", args->batch * h);
  args->shift = arrays.get<float>("shift", args->batch * h);
  args->kept = sizes.kept > 0 ? arrays.get("kept", sizes.kept, item) : nullptr;
  args->stats = has_norm && sizes.stats > 0 ? arrays.get<double>("stats", sizes.stats) : nullptr;
  return sizes;
}

void fwd(const py::dict& tensors, const py::dict& options) {
  const Arrays arrays(tensors);
  ForwardArgs args{};
  const Sizes sizes = read(arrays, options, &args);
  args.out = arrays.get("out", sizes.state, storage_bytes(args.storage));
  const auto compute =
      py::cast<bool>(options["use_amx"]) ? find_amx(args) : find_variant(py::cast<std::string>(options["isa"])).fwd;
  const py::gil_scoped_release unlocked;
  compute(args);
}

void bwd(const py::dict& tensors, const py::dict& options) {
  const Arrays arrays(tensors);
  BackwardArgs args{};
  const Sizes sizes = read(arrays, options, &args);
  const int64_t item = storage_bytes(args.storage), C = args.channels, h = args.hidden;
  args.d_out = arrays.get("d_out", sizes.state, item);
  args.d_state = arrays.get("d_state", sizes.state, item);
  args.d_perceive_from = arrays.get("d_perceive_from", sizes.state, item);
  args.d_perceive_weight = arrays.get<float>("d_perceive_weight", sizes.perceive_weight);
  args.d_perceive_bias = arrays.get<float>("d_perceive_bias", args.filters * C);
  args.d_hidden_weight = arrays.get<float>("d_hidden_weight", sizes.hidden_weight);
  args.d_hidden_bias = arrays.get<float>("d_hidden_bias", h);
  args.d_norm_weight = arrays.get<float>("d_norm_weight", h);
  args.d_norm_bias = arrays.get<float>("d_norm_bias", h);
  args.d_out_weight = arrays.get<float>("d_out_weight", C * h);
  args.d_scale = arrays.get<float>("d_scale", args.batch * h);
  args.d_shift = arrays.get<float>("d_shift", args.batch * h);
  const Variant& variant = find_variant(py::cast<std::string>(options["isa"]));
  const py::gil_scoped_release unlocked;
  variant.bwd(args);
}

void moments(const py::dict& tensors, const py::dict& options) {
  const Arrays arrays(tensors);
  MomentsArgs args{};
  read(arrays, options, &args);
  const auto begin = py::cast<std::array<int, 3>>(options["inner_begin"]),
             end = py::cast<std::array<int, 3>>(options["inner_end"]);
  for (int i = 0; i < 3; ++i) args.inner.begin[i] = begin[i], args.inner.end[i] = end[i];
  const Variant& variant = find_variant(py::cast<std::string>(options["isa"]));
  const py::gil_scoped_release unlocked;
  variant.moments(args);
}

// name -> whether this CPU can run it, best first.
py::dict list_variants() {
  int count;
  const Variant* table = variants(&count);
  py::dict result;
  for (int i = 0; i < count; ++i) result[table[i].name] = table[i].supported();
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Fused NCA rollouts on the CPU; called through ncakern.backends.cpu and ncakern.arrays.";
  module.def("fwd", &fwd, py::arg("arrays"), py::arg("options"));
  module.def("bwd", &bwd, py::arg("arrays"), py::arg("options"));
  module.def("moments", &moments, py::arg("arrays"), py::arg("options"));
  module.def("variants", &list_variants);
  module.def("has_amx", &amx::supported);
  module.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("rounds"), py::arg("isa"),
             py::call_guard<py::gil_scoped_release>());
}
