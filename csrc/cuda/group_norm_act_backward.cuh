#pragma once
// Kernels of group_norm_act's backward.  With g' the gradient behind the activation, M the elements of a group, and of
// a channel of a sample S1 = sum(g') and S2 = sum(g' * (x - mean)):
//   dx     = a * g' - invstd * sum(u * S1) / M - (x - mean) * invstd^3 * sum(u * S2) / M    (sums over the group)
//   dscale = S2 * invstd * weight + S1 * bias           dshift = S1
//   dweight = sum over samples(S2 * invstd * (1 + scale))    dbias = sum over samples(S1 * (1 + scale))
#include "group_norm_act_formulas.cuh"

namespace genimg_fast::cuda::group_norm {

// Between the kernels: (S1, S2) of each row's slices in sums[slice * rows + row], then in sums[row] the row's parts of
// (dbias, dweight); and in terms[group] the group's (p, q) of dx = a * g' + p + (x - mean) * q.
template <class Acc>
struct Between {
  typename PairOf<Acc>::type* sums;
  typename PairOf<Acc>::type* terms;
  int slices;
};

// x - mean, and in place of grad the gradient behind the activation, of one access.
template <class T, int V, int A>
__device__ __forceinline__ void differentiate(const BackwardArguments<T>& args,
                                              const Coefficients<Accumulator<T>> (&of)[A], Raw<T, V> input,
                                              Raw<T, V> residual, Accumulator<T> (&centred)[V],
                                              Accumulator<T> (&grad)[V]) {
  using Acc = Accumulator<T>;
  unpack<T, V>(input, centred);
#pragma unroll
  for (int j = 0; j < V; ++j) centred[j] -= of[A == 1 ? 0 : j].mean;
  if (args.activation.kind == kIdentity) return;
  Acc v[V];
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = of[A == 1 ? 0 : j].preactivation(centred[j]);
  if (args.residual) {
    Acc r[V];
    unpack<T, V>(residual, r);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] += r[j];
  }
  args.activation.template differentiate<T>(v, grad);
}

// Calls visit(offset, x - mean, g') for each access of a thread.
template <class T, int V, int A, class Visit>
__device__ __forceinline__ void for_each_access(const BackwardArguments<T>& args,
                                                const Coefficients<Accumulator<T>> (&of)[A], const Walk& walk,
                                                const Visit& visit) {
  constexpr int U = kGradientChunk<V>;
  in_chunks<U>(walk, [&](const Walk& at, auto n) {
    Raw<T, V> grads[U], input[U], residual[U];
    load_chunk<T, V>(args.grad_output, at, n, grads);
    load_chunk<T, V>(args.input, at, n, input);
    if (args.residual) load_chunk<T, V>(args.residual, at, n, residual);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < n) {
        Accumulator<T> grad[V], centred[V];
        unpack<T, V>(grads[u], grad);
        differentiate<T, V, A>(args, of, input[u], residual[u], centred, grad);
        visit(at.offset + u * at.step, centred, grad);
      }
    }
  });
}

// Procedure overview: S1 and S2 of each row's slices, and in the same read grad_residual, which is g'.
//   1. Each thread computes the coefficients of its channels, then g' of its accesses and the two sums.
//   2. Sums are combined by teams (Rows) or by columns of the tile (Columns).
template <class T, int V, class Layout>
__global__ void __launch_bounds__(kThreads, sizeof(T) * V == 16 && Layout::columns ? 2 : 3)
    reduce_gradients(const Layout layout, const BackwardArguments<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  constexpr int A = kLanes<V, Layout>;
  const Walk walk = layout.template walk<V>(blockIdx.x, threadIdx.x);
  Acc plain[V], weighted[V];
#pragma unroll
  for (int j = 0; j < V; ++j) plain[j] = weighted[j] = 0;
  if (walk.left > 0) {
    Coefficients<Acc> of[A];
    load_coefficients<T>(args.parameters, args.mean, args.invstd, args.sizes.template spot<A>(walk.row), of);
    for_each_access<T, V>(args, of, walk, [&](int64_t offset, const Acc(&centred)[V], const Acc(&grad)[V]) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        plain[j] += grad[j];
        weighted[j] = multiply_add(grad[j], centred[j], weighted[j]);
      }
      if (args.grad_residual) store<T, V>(args.grad_residual + offset, pack<T, V>(grad));
    });
  }
  if constexpr (!Layout::columns) {
    const Partial<Acc> sum = combine_team<Sums>(layout.team, Partial<Acc>{Acc(0), sum_of(plain), sum_of(weighted)});
    if (threadIdx.x % layout.team == 0 && walk.row < layout.rows) {
      Pair pair;
      pair.x = sum.a;
      pair.y = sum.b;
      between.sums[layout.slice_of(blockIdx.x) * layout.rows + walk.row] = pair;
    }
  } else {
    Partial<Acc> mine[V];
#pragma unroll
    for (int j = 0; j < V; ++j) mine[j] = {Acc(0), plain[j], weighted[j]};
    const Partial<Acc>* channels = combine_columns<Sums>(layout, mine);
    const int tile = layout.tile_of(blockIdx.x), held = layout.accesses(tile) * V;
    const int64_t first = layout.slice_of(blockIdx.x) * args.sizes.rows_in_all +
                          layout.sample_of(blockIdx.x) * layout.channels + int64_t{layout.first_access(tile)} * V;
    for (int k = threadIdx.x; k < held; k += kThreads) {
      Pair pair;
      pair.x = channels[k].a;
      pair.y = channels[k].b;
      between.sums[first + k] = pair;
    }
  }
}

// How finish_gradients shares its work: a team of threads for each group, `readers` of them for a row's slices.
struct Finish {
  int team, readers;  // powers of two, readers at most 32 and at most team
};

// Procedure overview: a team for each group.
//   1. Its readers add up the slices of each row and write grad_scale, grad_shift and the row's parts of grad_weight
//   and
//      grad_bias.
//   2. The team adds up u * S1 and u * S2 over the group's rows and writes the group's terms.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_gradients(const Finish plan, const BackwardArguments<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  const int lane = threadIdx.x % plan.team, reader = lane % plan.readers, rows = plan.team / plan.readers;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / plan.team) + threadIdx.x / plan.team;
  const bool valid = group < args.sizes.groups_in_all;
  const int64_t first_row = valid ? group * args.sizes.group_channels : 0;
  const int first_channel = args.sizes.template spot<1>(first_row).channel;
  const Acc invstd = valid ? args.invstd[group] : Acc(0);
  Partial<Acc> total{0, 0, 0};
  for (int base = 0; base < args.sizes.group_channels; base += rows) {
    const int c = base + lane / plan.readers;
    const bool mine = valid && c < args.sizes.group_channels;
    const int64_t row = first_row + c;
    Partial<Acc> sum{0, 0, 0};
    if (mine) {
#pragma unroll 4
      for (int s = reader; s < between.slices; s += plan.readers) {
        const Pair pair = between.sums[s * args.sizes.rows_in_all + row];
        sum.a += pair.x;
        sum.b += pair.y;
      }
    }
    for (int lane_mask = plan.readers / 2; lane_mask > 0; lane_mask /= 2) {
      sum = combine_with_lane<Sums>(sum, lane_mask);
    }
    if (mine && reader == 0) {
      const Parameters<T>& parameters = args.parameters;
      const Acc weight = parameters.weight_of(first_channel + c), gain = parameters.gain_of(row);
      if (args.grad_scale) {
        args.grad_scale[row] = multiply_add(sum.b * invstd, weight, sum.a * parameters.bias_of(first_channel + c));
      }
      if (args.grad_shift) args.grad_shift[row] = sum.a;
      total.a = multiply_add(weight * gain, sum.a, total.a);
      total.b = multiply_add(weight * gain, sum.b, total.b);
      Pair parts;
      parts.x = sum.a * gain;
      parts.y = sum.b * invstd * gain;
      between.sums[row] = parts;
    }
  }
  total = combine_team<Sums>(plan.team, total);
  if (valid && lane == 0) {
    Pair terms;
    terms.x = -invstd * (total.a * args.inverse_count);
    terms.y = -invstd * (invstd * (invstd * (total.b * args.inverse_count)));
    between.terms[group] = terms;
  }
}

// Procedure overview: grad_input, once the groups' terms are known.
//   1. Each thread computes the coefficients of its channels.
//   2. It recomputes g' and writes grad_input.
template <class T, int V, class Layout>
__global__ void __launch_bounds__(kThreads, sizeof(T) * V == 16 && Layout::columns ? 2 : 3)
    apply_gradients(const Layout layout, const BackwardArguments<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  constexpr int A = kLanes<V, Layout>;
  const Walk walk = layout.template walk<V>(block_from_end(), threadIdx.x);
  if (walk.left == 0) return;
  Coefficients<Acc> of[A];
  const Spot<A> spot = args.sizes.template spot<A>(walk.row);
  load_coefficients<T>(args.parameters, args.mean, args.invstd, spot, of);
  typename PairOf<Acc>::type terms[A];
#pragma unroll
  for (int j = 0; j < A; ++j) terms[j] = __ldg(between.terms + spot.group[j]);
  for_each_access<T, V>(args, of, walk, [&](int64_t offset, const Acc(&centred)[V], Acc(&grad)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = A == 1 ? 0 : j;
      grad[j] = multiply_add(of[k].a, grad[j], multiply_add(centred[j], terms[k].y, terms[k].x));
    }
    store<T, V>(args.grad_input + offset, pack<T, V>(grad));
  });
}

// Procedure overview: grad_weight and grad_bias.
//   1. A block takes 32 channels; each of its warps adds up every eighth sample.
//   2. The first warp adds up what the warps found.
template <class T>
__global__ void __launch_bounds__(kThreads)
    parameter_gradients(const BackwardArguments<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  constexpr int kWarps = kThreads / 32;
  SHARED(Pair, found, [kThreads]);
  const int warp = threadIdx.x / 32;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32;
  Pair sum;
  sum.x = sum.y = 0;
  if (channel < args.sizes.channels) {
#pragma unroll 4
    for (int64_t row = warp * int64_t{args.sizes.channels} + channel; row < args.sizes.rows_in_all;
         row += kWarps * int64_t{args.sizes.channels}) {
      const Pair pair = __ldg(between.sums + row);
      sum.x += pair.x;
      sum.y += pair.y;
    }
  }
  found[threadIdx.x] = sum;
  __syncthreads();
  if (warp == 0 && channel < args.sizes.channels) {
    for (int w = 1; w < kWarps; ++w) {
      sum.x += found[w * 32 + threadIdx.x].x;
      sum.y += found[w * 32 + threadIdx.x].y;
    }
    if (args.grad_bias) args.grad_bias[channel] = sum.x;
    if (args.grad_weight) args.grad_weight[channel] = sum.y;
  }
}

}  // namespace genimg_fast::cuda::group_norm
