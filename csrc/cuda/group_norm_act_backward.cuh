#pragma once
// Kernels of group_norm_act's backward.  With g' the gradient behind the activation, M the elements of a group, and of
// a channel of a sample S1 = sum(g') and S2 = sum(g' * (x - mean)):
//   dx     = a * g' - invstd * sum(u * S1) / M - (x - mean) * invstd^3 * sum(u * S2) / M    (sums over the group)
//   dscale = S2 * invstd * weight + S1 * bias           dshift = S1
//   dweight = sum over samples(S2 * invstd * (1 + scale))    dbias = sum over samples(S1 * (1 + scale))
#include "group_norm_act_formulas.cuh"

namespace genimg_fast::cuda::group_norm {

// Between the kernels: (S1, S2) of each row's slices in sums[slice * rows + row], then in sums[row] the row's parts of
// (dbias, dweight), unless the kernel that finds them adds them up itself and sums is null; and in terms[group] the
// group's (p, q) of dx = a * g' + p + (x - mean) * q.
template <class Acc>
struct Between {
  typename PairOf<Acc>::type* sums;
  typename PairOf<Acc>::type* terms;
  int slices;
};

// Of a row whose S1 and S2 are known: writes grad_scale and grad_shift, returns its parts of (grad_bias, grad_weight).
template <class T, class Acc>
__device__ __forceinline__ typename PairOf<Acc>::type store_row(const SmallGradients<T>& args, int channel, int64_t row,
                                                                Acc invstd, Acc plain, Acc weighted) {
  const Acc gain = args.parameters.gain_of(row);
  if (args.grad_scale) {
    const Acc weight = args.parameters.weight_of(channel), bias = args.parameters.bias_of(channel);
    args.grad_scale[row] = multiply_add(weighted * invstd, weight, plain * bias);
  }
  if (args.grad_shift) args.grad_shift[row] = plain;
  typename PairOf<Acc>::type parts;
  parts.x = plain * gain;
  parts.y = weighted * invstd * gain;
  return parts;
}

template <class T>
__device__ __forceinline__ void store_parameters(const SmallGradients<T>& args, int64_t channel, double grad_bias,
                                                 double grad_weight) {
  using Acc = Accumulator<T>;
  if (args.grad_bias) args.grad_bias[channel] = static_cast<Acc>(grad_bias);
  if (args.grad_weight) args.grad_weight[channel] = static_cast<Acc>(grad_weight);
}

// (p, q) of a group, from its sum(u * S1) and sum(u * S2).
template <class T, class Acc>
__device__ __forceinline__ typename PairOf<Acc>::type terms_of(const SmallGradients<T>& args, Acc invstd, Acc plain,
                                                               Acc weighted) {
  typename PairOf<Acc>::type terms;
  terms.x = -invstd * (plain * args.inverse_count);
  terms.y = -invstd * (invstd * (invstd * (weighted * args.inverse_count)));
  return terms;
}

// For each chunk of a thread's accesses, calls visit(j, x - mean, g') for each part of them, whose first element is j,
// then finish(place, n, left) with what visit has left of g', as elements of Left.  Plain: there is no residual.
template <class T, class Y, class Left, int V, class Layout, int Kind, bool Plain, int N, int P, class Visit,
          class Finish>
__device__ __forceinline__ void for_each_access(const BackwardArguments<T, Y>& args, Channels<T, V, Layout, N, P>& of,
                                                const Walk& walk, const Visit& visit, const Finish& finish) {
  using Acc = Accumulator<T>;
  constexpr int U = kGradientChunk<V>, S = kRatio<T, Y>;
  const bool has_residual = !Plain && args.residual;
  in_chunks<T, V, U>(walk, [&](Place place, auto n) {
    Raw<T, V> input[U];
    Raw<Y, V> grads[U], residual[U];
    Raw<Left, V> left[U] = {};
    load_chunk<Y, V, S>(args.grad_output, place, n, grads);
    load_chunk<T, V>(args.input, place, n, input);
    if (has_residual) load_chunk<Y, V, S>(args.residual, place, n, residual);
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      of.read(part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < n) {
          Acc grad[P], centred[P], v[P], r[P];
          unpack_part<Y, V, P>(grads[u], part, grad);
          unpack_part<T, V, P>(input[u], part, centred);
          if (has_residual) unpack_part<Y, V, P>(residual[u], part, r);
#pragma unroll
          for (int j = 0; j < P; ++j) {
            centred[j] = of.centred(centred[j], j);
            v[j] = of.preactivation(centred[j], j);
            if (has_residual) v[j] += r[j];
          }
          args.activation.template differentiate<Y, Kind>(v, grad);
          visit(part * P, centred, grad);
          pack_part<Left, V, P>(grad, part, left[u]);
        }
      }
    }
    finish(place, n, left);
  });
}

// Procedure overview: S1 and S2 of each row's slices, and unless Plain, in the same read grad_residual, which is g'.
//   1. The values of the block's channels are made.
//   2. Each thread computes g' of its accesses and the two sums.
//   3. Sums are combined by teams (Rows) or by columns of the tile (Columns).
template <class T, class Y, int V, class Layout, int Kind, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain>)
    reduce_gradients(const __grid_constant__ Layout layout, const __grid_constant__ BackwardArguments<T, Y> args,
                     const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  constexpr int P = kPart<V, Layout>;
  Channels<T, V, Layout, 3> of;
  const Walk walk = of.make(layout, args.sizes, blockIdx.x, [&](const Spot<1>& spot, Acc(&values)[3]) {
    set_coefficients(args.parameters, spot, args.mean[spot.group[0]], args.invstd[spot.group[0]], values);
  });
  constexpr int S = kSums<V, kLanes<V, Layout>>;
  Acc plain[S], weighted[S];
#pragma unroll
  for (int j = 0; j < S; ++j) plain[j] = weighted[j] = 0;
  for_each_access<T, Y, Y, V, Layout, Kind, Plain>(
      args, of, walk,
      [&](int first, const Acc(&centred)[P], const Acc(&grad)[P]) {
#pragma unroll
        for (int j = 0; j < P; ++j) {
          Acc& sum = weighted[(first + j) % S];
          plain[(first + j) % S] += grad[j];
          sum = multiply_add(grad[j], centred[j], sum);
        }
      },
      [&](Place place, auto n, const auto& grads) {
        if (!Plain && args.grad_residual) store_chunk<Y, V, kRatio<T, Y>>(args.grad_residual, place, n, grads);
      });
  if constexpr (!Layout::columns) {
    // In double from here on: terms have either sign, and what is left of them is small beside the sums on the way.
    const auto sum = combine_team<Sums>(layout.team, Partial<double>{0, sum_of(plain), sum_of(weighted)});
    if (threadIdx.x % layout.team == 0 && walk.row < layout.rows) {
      Pair pair;
      pair.x = static_cast<Acc>(sum.a);
      pair.y = static_cast<Acc>(sum.b);
      between.sums[layout.slice_of(blockIdx.x) * layout.rows + walk.row] = pair;
    }
  } else {
    Partial<Acc> mine[V];
#pragma unroll
    for (int j = 0; j < V; ++j) mine[j] = {Acc(0), plain[j], weighted[j]};
    const Partial<Acc>* channels = combine_columns<Sums>(layout, mine);
    const unsigned block = gpu::opaque(static_cast<int>(blockIdx.x));
    const int tile = layout.tile_of(block), held = layout.accesses(tile) * V;
    const int64_t first = layout.slice_of(block) * args.sizes.rows_in_all + layout.sample_of(block) * layout.channels +
                          int64_t{layout.first_access(tile)} * V;
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
//      and grad_bias.
//   2. The team adds up u * S1 and u * S2 over the group's rows and writes the group's terms.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_gradients(const Finish plan, const SmallGradients<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  const int lane = threadIdx.x % plan.team, reader = lane % plan.readers, rows = plan.team / plan.readers;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / plan.team) + threadIdx.x / plan.team;
  const bool valid = group < args.sizes.groups_in_all;
  const int64_t first_row = valid ? group * args.sizes.group_channels : 0;
  const int first_channel = args.sizes.template spot<1>(first_row).channel;
  const Acc invstd = valid ? args.invstd[group] : Acc(0);
  Partial<double> total{0, 0, 0};
  for (int base = 0; base < args.sizes.group_channels; base += rows) {
    const int c = base + lane / plan.readers;
    const bool mine = valid && c < args.sizes.group_channels;
    const int64_t row = first_row + c;
    Partial<double> sum{0, 0, 0};
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
      const double u = args.parameters.u(first_channel + c, row);
      total.a = multiply_add(u, sum.a, total.a);
      total.b = multiply_add(u, sum.b, total.b);
      between.sums[row] =
          store_row(args, first_channel + c, row, invstd, static_cast<Acc>(sum.a), static_cast<Acc>(sum.b));
    }
  }
  total = combine_team<Sums>(plan.team, total);
  if (valid && lane == 0) {
    between.terms[group] = terms_of(args, invstd, static_cast<Acc>(total.a), static_cast<Acc>(total.b));
  }
}

// Procedure overview: grad_input, once the groups' terms are known.
//   1. The values of the block's channels are made.
//   2. Each thread recomputes g' and writes grad_input.
template <class T, class Y, int V, class Layout, int Kind, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain && Kind != kSilu>)
    apply_gradients(const __grid_constant__ Layout layout, const __grid_constant__ BackwardArguments<T, Y> args,
                    const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  constexpr int P = kLanes<V, Layout> == 8 ? 2 : kPart<V, Layout>;
  const unsigned block = block_from_end();
  Channels<T, V, Layout, 5, P> of;
  const Walk walk = of.make(layout, args.sizes, block, [&](const Spot<1>& spot, Acc(&values)[5]) {
    set_coefficients(args.parameters, spot, args.mean[spot.group[0]], args.invstd[spot.group[0]], values);
    const auto terms = __ldg(between.terms + spot.group[0]);
    values[kP] = terms.x;
    values[kQ] = terms.y;
  });
  for_each_access<T, Y, T, V, Layout, Kind, Plain>(
      args, of, walk,
      [&](int, const Acc(&centred)[P], Acc(&grad)[P]) {
#pragma unroll
        for (int j = 0; j < P; ++j) {
          grad[j] = multiply_add(of.get(kA, j), grad[j], multiply_add(centred[j], of.get(kQ, j), of.get(kP, j)));
        }
      },
      [&](Place place, auto n, const auto& grads) { store_chunk<T, V>(args.grad_input, place, n, grads); });
}

// Procedure overview: grad_weight and grad_bias.
//   1. A block takes 32 channels; each of its warps adds up every eighth sample.
//   2. The first warp adds up what the warps found.
template <class T>
__global__ void __launch_bounds__(kThreads)
    parameter_gradients(const SmallGradients<T> args, const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  constexpr int kWarps = kThreads / 32;
  SHARED(double2, found, [kThreads]);
  const int warp = threadIdx.x / 32;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32;
  gpu::wait_for_previous_kernel();
  double2 sum;
  sum.x = sum.y = 0;
  if (channel < args.sizes.channels) {
#pragma unroll 4
    for (int64_t row = warp * int64_t{args.sizes.channels} + channel; row < args.sizes.rows_in_all;
         row += kWarps * int64_t{args.sizes.channels}) {
      const auto pair = gpu::ld_cg(between.sums + row);
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
    store_parameters(args, channel, sum.x, sum.y);
  }
}

}  // namespace genimg_fast::cuda::group_norm
