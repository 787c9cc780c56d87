// The whole algorithm in the order it builds on itself; included once per instruction set.
#include "simd.inl"
#include "perceive.inl"
#include "engine.inl"
#include "rollout_fwd.inl"
#include "rollout_bwd.inl"
