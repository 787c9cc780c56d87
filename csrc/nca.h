// The contract between the bindings and the kernels: plain pointers and sizes, no Python, no torch.
#pragma once
#include <cstdint>

namespace ncakern {

class Interrupt;

enum class Perception { kDepthwise, kDense };
enum class Padding { kReflect, kZeros, kReplicate, kCircular };
enum class Norm { kNone, kBatch, kInstance };
enum class Activation { kRelu, kLeakyRelu, kSilu, kGelu, kTanh };
enum class Storage { kFloat32, kBFloat16, kFloat16 };

constexpr float kLeakySlope = 0.01f;
constexpr double kNormEps = 1e-5;

// One rollout. Arrays are contiguous in the order of DESIGN.md; a 2D state has size {1, H, W} and kernel {1, kh, kw}.
struct RolloutArgs {
  int batch, channels, filters, hidden;
  int size[3];    // D, H, W in cells
  int kernel[3];  // odd
  Perception perception;
  Padding padding;
  Norm norm;
  Activation activation;
  Storage storage;  // of state, perceive_from, out, kept and their gradients
  int frozen_channels;
  bool has_clamp;
  float clamp[2];  // the least and the largest value of a new state
  int steps, keep_every;
  uint64_t fire_threshold;  // floor(fire_rate * 2**32); a cell fires iff its Philox word is below
  uint64_t seed;
  uint32_t first_step, first_sample;
  int64_t origin[3], extent[3];  // of the tile in the whole grid, in cells
  int threads;
  Interrupt* interrupt;  // asked between pieces of work whether to go on: if not, no result is valid; null: always

  const void* state;             // [B, D, H, W, C]
  const void* perceive_from;     // the same shape, or null
  const float* perceive_weight;  // depthwise [F, C, *k], dense [F, C, C, *k]
  const float* perceive_bias;    // [F, C]
  const float* hidden_weight;    // [h, (1+F)*C]
  const float* hidden_bias;      // [h]
  const float* norm_weight;      // [h], or null without norm
  const float* norm_bias;
  const float* out_weight;  // [C, h]
  const float* out_bias;    // [C], or null
  const float* scale;       // [B, h], or null without modulation
  const float* shift;

  void* kept;     // [num_kept, B, D, H, W, C]: written by fwd, read by bwd; null keeps nothing
  double* stats;  // [steps, groups, V + V*V]: mean and covariance of the perception; null keeps nothing
};

struct ForwardArgs : RolloutArgs {
  void* out;  // [B, D, H, W, C]
};

// Cells begin <= i < end on each axis of a sample.
struct Box {
  int begin[3], end[3];
};

// The statistics of the given state, into stats, over the inner cells only; the others are their neighbours. Nothing is
// updated: `steps` is 1 for the size of stats, and neither perceive_from nor what follows the perception counts.
struct MomentsArgs : RolloutArgs {
  Box inner;
};

struct BackwardArgs : RolloutArgs {
  const void* d_out;
  void* d_state;
  void* d_perceive_from;  // null without perceive_from
  float *d_perceive_weight, *d_perceive_bias, *d_hidden_weight, *d_hidden_bias;
  float *d_norm_weight, *d_norm_bias, *d_out_weight;
  float* d_out_bias;  // null without out_bias
  float *d_scale, *d_shift;
};

// One instruction set. variants.inc lists them, dispatch.cpp chooses.
struct Variant {
  const char* name;
  int vector_length;  // floats per vector
  bool (*supported)();
  void (*fwd)(const ForwardArgs&);
  void (*bwd)(const BackwardArgs&);
  void (*moments)(const MomentsArgs&);
};

// The variants compiled into this build, best first.
const Variant* variants(int* count);

// Beside the variants: forward rollouts of dense perception without norm on a bfloat16 state, with bfloat16 products.
namespace amx {
bool supported();  // also asks the system for the use of the tiles
void fwd(const ForwardArgs&);
}  // namespace amx

}  // namespace ncakern
