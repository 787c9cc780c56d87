// One call of the NEON kernel from a file: test_neon.py writes what `ncakern._cpu` would get, and runs this under qemu.
// In: lines "name value...", then "array name item_bytes count" with the bytes after each such line. Out: all arrays.
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "nca.h"

using namespace ncakern;

namespace ncakern {
namespace neon {
void fwd(const ForwardArgs&);
void bwd(const BackwardArgs&);
}  // namespace neon
}  // namespace ncakern

namespace {

struct Call {
  std::map<std::string, std::string> options;
  std::map<std::string, std::vector<char>> arrays;
  std::vector<std::string> order;

  explicit Call(const char* path) {
    std::ifstream file(path, std::ios::binary);
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string name;
      words >> name;
      if (name != "array") {
        std::getline(words, options[name]);
        continue;
      }
      int64_t item, count;
      words >> name >> item >> count;
      order.push_back(name);
      arrays[name].resize(item * count);
      file.read(arrays[name].data(), item * count);
    }
  }
  void write(const char* path) const {
    std::ofstream file(path, std::ios::binary);
    for (const std::string& name : order) file.write(arrays.at(name).data(), arrays.at(name).size());
  }

  template <class T>
  void get(const char* name, T** pointer) {
    *pointer = arrays.count(name) ? (T*)arrays[name].data() : nullptr;
  }
  template <class T>
  void read(const char* name, T* values, int n = 1) const {
    std::istringstream words(options.at(name));
    for (int i = 0; i < n; ++i) words >> values[i];
  }
  // The position of the option's word in `names`, which are in the order of the enumeration.
  template <class Enum>
  void choose(const char* name, const std::vector<std::string>& names, Enum* value) const {
    std::string word;
    read(name, &word);
    for (size_t i = 0; i < names.size(); ++i)
      if (names[i] == word) *value = Enum(i);
  }
};

void read_common(Call& call, RolloutArgs& a) {
  call.read("batch", &a.batch), call.read("channels", &a.channels), call.read("filters", &a.filters);
  call.read("hidden", &a.hidden), call.read("frozen_channels", &a.frozen_channels), call.read("threads", &a.threads);
  call.read("size", a.size, 3), call.read("kernel", a.kernel, 3);
  call.read("origin", a.origin, 3), call.read("extent", a.extent, 3);
  call.read("steps", &a.steps), call.read("keep_every", &a.keep_every), call.read("seed", &a.seed);
  call.read("fire_threshold", &a.fire_threshold);
  for (int i = 0; i < 2; ++i) {
    std::string word;  // streams do not read "inf"
    call.read(i == 0 ? "clamp_low" : "clamp_high", &word);
    a.clamp[i] = std::strtof(word.c_str(), nullptr);
  }
  a.has_clamp = a.clamp[0] > -INFINITY || a.clamp[1] < INFINITY;
  call.read("first_step", &a.first_step), call.read("first_sample", &a.first_sample);
  call.choose("perception", {"depthwise", "dense"}, &a.perception);
  call.choose("padding", {"reflect", "zeros", "replicate", "circular"}, &a.padding);
  call.choose("norm", {"none", "batch", "instance"}, &a.norm);
  call.choose("activation", {"relu", "leaky_relu", "silu", "gelu", "tanh"}, &a.activation);
  call.choose("storage", {"float32", "bfloat16", "float16"}, &a.storage);
  call.get("state", &a.state), call.get("perceive_from", &a.perceive_from);
  call.get("perceive_weight", &a.perceive_weight), call.get("perceive_bias", &a.perceive_bias);
  call.get("hidden_weight", &a.hidden_weight), call.get("hidden_bias", &a.hidden_bias);
  call.get("norm_weight", &a.norm_weight), call.get("norm_bias", &a.norm_bias), call.get("out_weight", &a.out_weight);
  call.get("out_bias", &a.out_bias);
  call.get("scale", &a.scale), call.get("shift", &a.shift), call.get("kept", &a.kept), call.get("stats", &a.stats);
}

void run_bwd(Call& call) {
  BackwardArgs a{};
  read_common(call, a);
  call.get("d_out", &a.d_out), call.get("d_state", &a.d_state), call.get("d_perceive_from", &a.d_perceive_from);
  call.get("d_perceive_weight", &a.d_perceive_weight), call.get("d_perceive_bias", &a.d_perceive_bias);
  call.get("d_hidden_weight", &a.d_hidden_weight), call.get("d_hidden_bias", &a.d_hidden_bias);
  call.get("d_norm_weight", &a.d_norm_weight), call.get("d_norm_bias", &a.d_norm_bias);
  call.get("d_out_weight", &a.d_out_weight), call.get("d_out_bias", &a.d_out_bias), call.get("d_scale", &a.d_scale),
      call.get("d_shift", &a.d_shift);
  neon::bwd(a);
}

void run_fwd(Call& call) {
  ForwardArgs a{};
  read_common(call, a);
  call.get("out", &a.out);
  neon::fwd(a);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: run_call IN OUT\n", 2;
  Call call(argv[1]);
  call.arrays.count("d_out") ? run_bwd(call) : run_fwd(call);
  call.write(argv[2]);
}
