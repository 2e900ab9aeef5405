// The activations of the normalisations for one SIMD level.  Included after vec_math.h, once per level; no include
// guard.

// The identity is a leaky ReLU of slope 1.
template <Activation Kind, class A>
SIMD_INLINE Vec<A> activate(typename VecType<A>::type v, A slope) {
  if constexpr (Kind == Activation::relu) return v <= 0 ? Vec<A>{} : v;
  if constexpr (Kind == Activation::silu) return v * sigmoid<A>(v);
  return v > 0 ? v : v * splat(slope);
}

// Gradient before the activation, g', from the one behind it.
template <Activation Kind, class A>
SIMD_INLINE Vec<A> through_activation(typename VecType<A>::type g, typename VecType<A>::type v, A slope) {
  if constexpr (Kind == Activation::relu) return v <= 0 ? Vec<A>{} : g;
  if constexpr (Kind == Activation::silu) {
    const Vec<A> s = sigmoid<A>(v);
    return g * (s * mul_add(v, 1 - s, splat(A(1))));
  }
  return v > 0 ? g : g * splat(slope);
}
