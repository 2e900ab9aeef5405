// The formulas of the recurrent cells for one SIMD level.  Included by the bodies of kernels that need them.

#include "vec_math.h"

template <class A>
struct LstmStep {
  Vec<A> i, f, g, o, c, h;
};
// From the gates before their activations, and the cell state before the step.
template <class A>
SIMD_INLINE LstmStep<A> lstm_step(Vec<A> i, Vec<A> f, Vec<A> g, Vec<A> o, Vec<A> c) {
  LstmStep<A> s{sigmoid<A>(i), sigmoid<A>(f), tanh<A>(g), sigmoid<A>(o), c, c};
  s.c = mul_add(s.f, c, s.i * s.g);
  s.h = s.o * tanh<A>(s.c);
  return s;
}

// Gradients at the gates before their activations, and at the cell state before the step.
template <class A>
struct LstmGradients {
  Vec<A> i, f, g, o, c;
};
// From the gates after their activations, c before the step, tanh(c) after it, and the gradients at h and c after it.
template <class A>
SIMD_INLINE LstmGradients<A> lstm_gradients(const LstmStep<A>& s, Vec<A> c_before, Vec<A> tanh_c, Vec<A> dh,
                                            Vec<A> dc) {
  const Vec<A> one = splat(A(1));
  dc = mul_add(dh * s.o, mul_add(-tanh_c, tanh_c, one), dc);
  return {dc * s.g * (s.i * (1 - s.i)), dc * c_before * (s.f * (1 - s.f)), dc * s.i * mul_add(-s.g, s.g, one),
          dh * tanh_c * (s.o * (1 - s.o)), dc * s.f};
}

template <class A>
struct GruStep {
  Vec<A> r, z, n, hn, h;
};
// From r and z before their activations, the two parts of n before its activation, and the state before the step.
template <class A>
SIMD_INLINE GruStep<A> gru_step(Vec<A> r, Vec<A> z, Vec<A> xn, Vec<A> hn, Vec<A> h) {
  GruStep<A> s{sigmoid<A>(r), sigmoid<A>(z), h, hn, h};
  s.n = tanh<A>(mul_add(s.r, hn, xn));
  s.h = mul_add(s.z, h - s.n, s.n);
  return s;
}

// Gradients at r, z and n before their activations, at hn, and at the state before the step.
template <class A>
struct GruGradients {
  Vec<A> r, z, n, hn, h;
};
template <class A>
SIMD_INLINE GruGradients<A> gru_gradients(const GruStep<A>& s, Vec<A> h_before, Vec<A> dh) {
  const Vec<A> dn = dh * (1 - s.z) * mul_add(-s.n, s.n, splat(A(1)));
  return {dn * s.hn * (s.r * (1 - s.r)), dh * (h_before - s.n) * (s.z * (1 - s.z)), dn, dn * s.r, dh * s.z};
}
