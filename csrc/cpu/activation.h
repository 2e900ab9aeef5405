// The activations of the normalisations and convolutions for one SIMD level, of data that is stored as T.  Included
// after vec_math.h, once per level; no include guard.

// The identity is a leaky ReLU of slope 1.
template <Activation Kind, class T>
SIMD_INLINE Vec<Acc<T>> activate(typename VecType<Acc<T>>::type v, Acc<T> slope) {
  if constexpr (Kind == Activation::relu) return v <= 0 ? Vec<Acc<T>>{} : v;
  if constexpr (Kind == Activation::silu) return v * logistic(v, T()).sigmoid;
  if constexpr (Kind == Activation::tanh) return tanh<Acc<T>>(v);
  if constexpr (Kind == Activation::sigmoid) return logistic(v, T()).sigmoid;
  return v > 0 ? v : v * splat(slope);
}

// Gradient before the activation, g', from the one behind it.
template <Activation Kind, class T>
SIMD_INLINE Vec<Acc<T>> through_activation(typename VecType<Acc<T>>::type g, typename VecType<Acc<T>>::type v,
                                           Acc<T> slope) {
  if constexpr (Kind == Activation::relu) return v <= 0 ? Vec<Acc<T>>{} : g;
  if constexpr (Kind == Activation::silu) {
    const Logistic<Acc<T>> s = logistic(v, T());
    return g * (s.sigmoid * mul_add(v, s.opposite, splat(Acc<T>(1))));
  }
  return v > 0 ? g : g * splat(slope);
}
