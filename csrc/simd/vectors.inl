// Vectors of kVL floats.
// Included inside the namespace and target region of one instruction set, which defines kVL and kRegisters.

typedef float vf __attribute__((vector_size(kVL * 4), may_alias));
typedef float vf_unaligned __attribute__((vector_size(kVL * 4), may_alias, aligned(4)));
typedef int32_t vi __attribute__((vector_size(kVL * 4), may_alias));

#define NCA_INLINE static inline __attribute__((always_inline))

NCA_INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
NCA_INLINE void store(float* p, vf v) { *(vf_unaligned*)p = v; }
// "vf{} + s" would not fold to a broadcast, because of signed zeros; "s - vf{}" does.
NCA_INLINE vf splat(float s) { return s - vf{}; }

// Keeps a loaded vector in its register: left alone, the compiler folds the load into every use of it, and the loads
// become the bottleneck.
#if defined(__x86_64__)
NCA_INLINE vf in_register(vf v) {
  __asm__("" : "+v"(v));
  return v;
}
#elif defined(__aarch64__)
NCA_INLINE vf in_register(vf v) {
  __asm__("" : "+w"(v));
  return v;
}
#else
NCA_INLINE vf in_register(vf v) { return v; }
#endif

// A pointer of which the compiler knows nothing: it neither moves loads through it out of a loop, where they would take
// the registers of the accumulators, nor splits its offsets into an index register each.
template <class T>
NCA_INLINE T* opaque(T* p) {
  __asm__ volatile("" : "+r"(p));
  return p;
}

// A few whole vectors: what memcpy would spend on its call is more than the copy itself.
NCA_INLINE void copy(const float* from, float* to, int n) {
  for (int i = 0; i < n; i += kVL) store(to + i, load(from + i));
}
NCA_INLINE void add(const float* from, float* to, int n) {
  for (int i = 0; i < n; i += kVL) store(to + i, load(to + i) + load(from + i));
}

// v where the mask's bits are ones, 0 where they are zeros, whatever v is.
NCA_INLINE vf masked(vf v, vf mask) { return (vf)((vi)v & (vi)mask); }
