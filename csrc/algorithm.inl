// The whole algorithm in the order it builds on itself; included once per instruction set.
// clang-format off
#include "simd.inl"
#include "perceive.inl"
#include "grid.inl"
#include "perceiver.inl"
#include "engine.inl"
#include "rollout_fwd.inl"
#include "moments.inl"
#include "gradient_sums.inl"
#include "dense_adjoint.inl"
#include "adjoint.inl"
#include "cell_gradients.inl"
#include "rollout_bwd.inl"
// clang-format on
