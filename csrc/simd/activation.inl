// The activations of the hidden layer and their derivatives. The polynomials are fitted to the largest relative error.

typedef uint32_t vu __attribute__((vector_size(kVL * 4), may_alias));

// c[0] + c[1] x + ... + c[N - 1] x^(N - 1)
template <int N>
NCA_INLINE vf polynomial(vf x, const float (&c)[N]) {
  vf sum = splat(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = sum * x + splat(c[i]);
  return sum;
}

// e^x; infinite above 88 and zero below -87, where float32 ends.
NCA_INLINE vf exponential(vf x) {
  constexpr float kCoefficients[] = {4.999999345e-1f, 1.666652069e-1f, 4.166838742e-2f, 8.368710256e-3f,
                                     1.381461120e-3f};
  constexpr float kShift = 12582912.0f;  // 3 * 2^22, whose last bit counts ones: a sum with it is a whole number
  constexpr uint32_t kShiftBits = 0x4B400000u;
  const vf shifted = x * splat(1.44269504f) + splat(kShift), n = shifted - splat(kShift);
  const vf r = (x - n * splat(0.693359375f)) + n * splat(2.1219444005e-4f);  // x - n ln 2, in two parts
  const vf power = (vf)(((vu)shifted - (kShiftBits - 127u)) << 23);          // 2^n
  const vf result = (splat(1.0f) + (r + r * r * polynomial(r, kCoefficients))) * power;
  return x > splat(88.0f) ? splat(INFINITY) : (x < splat(-87.0f) ? vf{} : result);
}

NCA_INLINE vf magnitude(vf x) { return (vf)((vu)x & 0x7FFFFFFFu); }
NCA_INLINE vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exponential(-x)); }

NCA_INLINE vf hyperbolic_tangent(vf x) {
  constexpr float kCoefficients[] = {-3.333329800e-1f, 1.333192409e-1f, -5.378382721e-2f, 2.079596155e-2f,
                                     -5.895146438e-3f};
  const vf size = magnitude(x), square = x * x;
  const vf small = x + x * square * polynomial(square, kCoefficients);
  const vf large = splat(1.0f) - splat(2.0f) / (exponential(size + size) + splat(1.0f));
  const vf with_sign = (vf)((vu)large | ((vu)x & 0x80000000u));
  return size < splat(0.6f) ? small : with_sign;
}

// The normal distribution's density at x and its mass below.
struct Normal {
  vf density, mass;
};
NCA_INLINE Normal normal(vf x) {
  // Of half the scaled complementary error function at |x| / sqrt(2), over t.
  constexpr float kCoefficients[] = {1.2412171680e-1f, 1.2411990615e-1f,  1.1217720480e-1f, 8.7002836275e-2f,
                                     6.3765197150e-2f, -1.4379578605e-2f, 8.6493744450e-2f, -1.5517658195e-1f,
                                     9.0000360750e-2f, -1.8124778990e-2f};
  const vf t = splat(1.0f) / (splat(1.0f) + splat(0.44f * 0.70710678f) * magnitude(x));
  const vf bell = exponential(splat(-0.5f) * x * x), tail = t * polynomial(t, kCoefficients) * bell;
  return {splat(0.39894228f) * bell, x < vf{} ? tail : splat(1.0f) - tail};
}

template <Activation kKind>
NCA_INLINE vf activate(vf x) {
  if constexpr (kKind == Activation::kSilu) return x * sigmoid(x);
  if constexpr (kKind == Activation::kGelu) return x * normal(x).mass;
  if constexpr (kKind == Activation::kTanh) return hyperbolic_tangent(x);
  // x where the comparison is false, so that a NaN passes through, as in torch.
  const vf below = kKind == Activation::kLeakyRelu ? x * splat(kLeakySlope) : vf{};
  return x < vf{} ? below : x;
}

// The gradient of the input x from that of the result.
template <Activation kKind>
NCA_INLINE vf activate_bwd(vf x, vf d) {
  if constexpr (kKind == Activation::kSilu) {
    const vf s = sigmoid(x);
    return d * (s * (splat(1.0f) + x * (splat(1.0f) - s)));
  }
  if constexpr (kKind == Activation::kGelu) {
    const Normal at = normal(x);
    return d * (at.mass + x * at.density);
  }
  if constexpr (kKind == Activation::kTanh) {
    const vf t = hyperbolic_tangent(x);
    return d * (splat(1.0f) - t * t);
  }
  if constexpr (kKind == Activation::kLeakyRelu) return x > vf{} ? d : d * splat(kLeakySlope);
  return x <= vf{} ? vf{} : d;  // d where x is a NaN, as in torch
}

// body(a constant that is the kind)
template <class Body>
static void with_activation(Activation kind, Body body) {
  switch (kind) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kLeakyRelu:
      return body(std::integral_constant<Activation, Activation::kLeakyRelu>{});
    case Activation::kSilu:
      return body(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return body(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kTanh:
      return body(std::integral_constant<Activation, Activation::kTanh>{});
  }
}

// Rows of n cells in place: u becomes act(u).
template <Activation kKind>
static void activate_rows(float* u, int64_t stride, int n, int width) {
  for (int i = 0; i < n; ++i, u += stride)
    for (int j = 0; j < width; j += kVL) store(u + j, activate<kKind>(load(u + j)));
}
// The same, and d becomes the gradient of u.
template <Activation kKind>
static void activate_rows_bwd(float* u, float* d, int64_t stride, int n, int width) {
  for (int i = 0; i < n; ++i, u += stride, d += stride)
    for (int j = 0; j < width; j += kVL) {
      const vf value = load(u + j);
      store(d + j, activate_bwd<kKind>(value, load(d + j)));
      store(u + j, activate<kKind>(value));
    }
}
