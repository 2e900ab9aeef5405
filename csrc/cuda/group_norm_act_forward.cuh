#pragma once
// Kernels of group_norm_act's forward: three that stream, and one that holds its data on chip.
#include "group_norm_act_formulas.cuh"

namespace genimg_fast::cuda::group_norm {

// Where the moments of a group's parts are: parts[group * count + part].
template <class Acc>
struct Parts {
  Partial<Acc>* parts;
  int count;
};

// Moments of a thread's channels.  Deviations are from a value near the thread's own mean, that of its first access:
// what differs between such a value and the mean of all is itself variance, so no digit cancels that counts.
template <class T, int V, int A>
struct ThreadMoments {
  using Acc = Accumulator<T>;
  Acc pivot[A], sum[kSums<V, A>], squares[kSums<V, A>];

  __device__ __forceinline__ ThreadMoments() {
#pragma unroll
    for (int j = 0; j < kSums<V, A>; ++j) sum[j] = squares[j] = 0;
  }
  __device__ __forceinline__ void begin(Raw<T, V> first) {
    Acc x[V];
    unpack<T, V>(first, x);
    if constexpr (A == 1) {
      pivot[0] = sum_of(x) * (Acc(1) / V);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) pivot[j] = x[j];
    }
  }
  __device__ __forceinline__ void add(Raw<T, V> raw) {
    Acc x[V];
    unpack<T, V>(raw, x);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Acc d = x[j] - pivot[A == 1 ? 0 : j];
      Acc& s = squares[j % kSums<V, A>];
      sum[j % kSums<V, A>] += d;
      s = multiply_add(d, d, s);
    }
  }
  // Of that many accesses, about `origin`.
  template <class Origin>
  __device__ __forceinline__ void finish(int accesses, Origin& origin, Partial<Acc> (&result)[A]) {
    constexpr int P = A < 4 ? A : 4;
    if constexpr (A == 1) {
      sum_of(sum);
      sum_of(squares);
    }
    const Acc n = static_cast<Acc>(accesses) * (A == 1 ? V : 1), inverse = quotient(Acc(1), n);
#pragma unroll
    for (int part = 0; part < A / P; ++part) {
      origin.read(part);
#pragma unroll
      for (int j = 0; j < P; ++j) {
        const int k = part * P + j;
        const Acc mean = sum[k] * inverse;
        result[k] = {n, pivot[k] - origin.get(0, j) + mean, multiply_add(-mean, sum[k], squares[k])};
        if (accesses <= 0) result[k] = {Acc(0), Acc(0), Acc(0)};
      }
    }
  }
};

// Procedure overview: moments of the groups' parts.
//   1. Each thread reduces its accesses to moments.
//   2. Rows: each team combines its threads' moments, which are those of one part of a group.
//      Columns: the block combines them by channel, then a warp for each group those of its channels in the tile.
template <class T, int V, class Layout>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    reduce_moments(const __grid_constant__ Layout layout, const __grid_constant__ Sizes sizes, const T* input,
                   const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int A = kLanes<V, Layout>, U = A == 8 ? 2 : kChunk<V>;
  const auto origin_of = [&](int64_t group) { return gpu::convert<Acc>(input[sizes.origin(group)]); };
  Channels<T, V, Layout, 1> origin;
  Walk walk;
  if constexpr (Layout::columns) {
    walk = origin.make(layout, sizes, blockIdx.x,
                       [&](const Spot<1>& spot, Acc(&values)[1]) { values[0] = origin_of(spot.group[0]); });
  } else {
    walk = layout.template walk<V>(blockIdx.x, threadIdx.x);
    origin.values[0][0] = walk.left > 0 ? origin_of(walk.row) : Acc(0);
  }
  ThreadMoments<T, V, A> moments;
  bool begun = false;
  const auto chunk = [&](auto may_begin) {
    return [&](Place place, auto n) {
      Raw<T, V> raw[U];
      load_chunk<T, V>(input, place, n, raw);
      if (decltype(may_begin)::value && !begun) moments.begin(raw[0]);
      begun = true;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < n) moments.add(raw[u]);
      }
    };
  };
  in_chunks<T, V, U>(walk, chunk(std::true_type{}), chunk(std::false_type{}));
  Partial<Acc> mine[A];
  moments.finish(walk.left, origin, mine);

  if constexpr (!Layout::columns) {
    const Partial<Acc> sum = combine_team<Moments>(layout.team, mine[0]);
    if (threadIdx.x % layout.team == 0 && walk.row < layout.rows) {
      parts.parts[walk.row * parts.count + layout.slice_of(blockIdx.x)] = sum;
    }
  } else {
    const Partial<Acc>* channels = combine_columns<Moments>(layout, mine);
    const int tile = layout.tile_of(blockIdx.x);
    const int64_t first =
        layout.sample_of(blockIdx.x) * sizes.groups + sizes.by_group_channels(layout.first_access(tile) * V);
    const int part = layout.slice_of(blockIdx.x) * layout.parts + tile % layout.parts;
    combine_groups<Moments, V>(layout, sizes.group_channels, channels, [&](int k, const Partial<Acc>& sum) {
      parts.parts[(first + k) * parts.count + part] = sum;
    });
  }
}

// Procedure overview: a warp for each group combines its parts and writes mean and invstd.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_moments(const Statistics<T> args, const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (group >= args.sizes.groups_in_all) return;
  Partial<Acc> sum{0, 0, 0};
#pragma unroll 4
  for (int p = threadIdx.x % 32; p < parts.count; p += 32) {
    sum = Moments::combine(sum, parts.parts[group * parts.count + p]);
  }
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Moments>(sum, lane_mask);
  if (threadIdx.x % 32 == 0) {
    args.mean[group] = gpu::convert<Acc>(args.input[args.sizes.origin(group)]) + sum.a;
    args.invstd[group] = Acc(1) / square_root(sum.b / sum.n + args.eps);
  }
}

// Procedure overview: the elementwise part of forward.
//   1. The values of the block's channels are made.
//   2. Each thread normalises, adds the residual unless Plain, activates and writes its accesses.
template <class T, class Y, int V, class Layout, int Kind, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain>)
    normalize(const __grid_constant__ Layout layout, const __grid_constant__ ForwardArguments<T, Y> args) {
  using Acc = Accumulator<T>;
  constexpr int U = kLanes<V, Layout> == 8 ? 2 : kChunk<V>, P = kPart<V, Layout>, S = kRatio<T, Y>;
  const unsigned block = block_from_end();
  Channels<T, V, Layout, 3> of;
  const Walk walk = of.make(layout, args.sizes, block, [&](const Spot<1>& spot, Acc(&values)[3]) {
    set_coefficients(args.parameters, spot, __ldg(args.mean + spot.group[0]), __ldg(args.invstd + spot.group[0]),
                     values);
  });
  if (walk.left == 0) return;
  const bool has_residual = !Plain && args.residual;
  in_chunks<T, V, U>(walk, [&](Place place, auto n) {
    Raw<T, V> raw[U];
    Raw<Y, V> residual[U], output[U] = {};
    load_chunk<T, V>(args.input, place, n, raw);
    if (has_residual) load_chunk<Y, V, S>(args.residual, place, n, residual);
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      of.read(part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < n) {
          Acc v[P], r[P];
          unpack_part<T, V, P>(raw[u], part, v);
          if (has_residual) unpack_part<Y, V, P>(residual[u], part, r);
#pragma unroll
          for (int j = 0; j < P; ++j) {
            v[j] = of.preactivation(of.centred(v[j], j), j);
            if (has_residual) v[j] += r[j];
          }
          args.activation.template apply<Y, Kind>(v);
          pack_part<Y, V, P>(v, part, output[u]);
        }
      }
    }
    store_chunk<Y, V, S>(args.output, place, n, output);
  });
}

// Contiguous groups that a block holds on chip: `accesses` each, by a team of threads each.
struct OnChip {
  int64_t groups;
  int accesses;
  int team, threads;  // team: a power of two; threads: of the block, a multiple of it
  int parked;         // accesses that each thread keeps in shared memory, the others are in registers
  Divider channel;    // by the accesses of a channel
};

// Accesses that a thread keeps in registers.
template <int V>
constexpr int kKept = V == 1 ? 8 : 4;

// The sums of a team of threads, for all of them, with the same bits.
template <class Acc>
__device__ __forceinline__ void sum_team(int team, Acc& a, Acc& b) {
  SHARED(Acc, warps, [2][kOnChipThreads / 32]);
  for (int lane_mask = min(team, 32) / 2; lane_mask > 0; lane_mask /= 2) {
    a += __shfl_xor_sync(0xffffffffu, a, lane_mask);
    b += __shfl_xor_sync(0xffffffffu, b, lane_mask);
  }
  if (team <= 32) return;
  const int warp = threadIdx.x / 32, first = threadIdx.x / team * (team / 32);
  __syncthreads();  // the last sums may still be being read
  if (threadIdx.x % 32 == 0) {
    warps[0][warp] = a;
    warps[1][warp] = b;
  }
  __syncthreads();
  a = warps[0][first];
  b = warps[1][first];
  for (int w = 1; w < team / 32; ++w) {
    a += warps[0][first + w];
    b += warps[1][first + w];
  }
}

// Procedure overview: all of forward with one read of the input, contiguous groups.
//   1. Each thread loads its accesses, the first ones into registers, the others into its own places in shared memory
//      (thread t's access r lies at parked[r * threads + t]), and sums them; its team computes the mean.
//   2. From what they hold, the same threads sum deviations and their squares.  The sum of the deviations, which would
//      be zero, corrects both moments for the rounding of the mean.
//   3. The team writes mean and invstd and leaves the coefficients of its channels in shared memory.
//   4. Each thread normalises what it holds and writes the output.
template <class T, class Y, int V>
__global__ void __launch_bounds__(kOnChipThreads, sizeof(T) == 8 ? 1 : 2)
    forward_rows_on_chip(const OnChip plan, const ForwardArguments<T, Y> args) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  using Word = Raw<T, V>;
  using Added = Raw<Y, V>;
  constexpr int R = kKept<V>, U = 4;
  DYN_SHARED(unsigned char, memory);
  Word* const parked = reinterpret_cast<Word*>(memory) + threadIdx.x;
  const int team = plan.team, lane = threadIdx.x % team, local = threadIdx.x / team;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (plan.threads / team) + local;
  const int left = group < plan.groups ? plan.accesses - lane : 0;  // of them every team-th
  const int64_t base = (group * plan.accesses + lane) * V;
  const T* const input = args.input + base;
  Pair* const pairs =
      reinterpret_cast<Pair*>(memory + sizeof(Word) * plan.parked * plan.threads) + local * args.sizes.group_channels;

  Word kept[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r * team < left) kept[r] = load<T, V>(input + int64_t{r * team} * V);
  }
  // Calls visit(word) for every access that the thread holds.
  const auto for_each = [&](auto visit) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r * team < left) visit(kept[r]);
    }
    for (int r = R; r * team < left; ++r) visit(parked[(r - R) * plan.threads]);
  };
  for (int r = R; r * team < left; r += U) {
    Word raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if ((r + u) * team < left) raw[u] = load<T, V>(input + int64_t{(r + u) * team} * V);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if ((r + u) * team < left) parked[(r - R + u) * plan.threads] = raw[u];
    }
  }
  const Acc inverse = Acc(1) / (static_cast<Acc>(plan.accesses) * V);
  Acc sum = 0, unused = 0;
  for_each([&](Word word) {
    Acc x[V];
    unpack<T, V>(word, x);
    sum += sum_of(x);
  });
  sum_team(team, sum, unused);
  Acc mean = sum * inverse;

  Acc rest = 0, squares = 0;
  for_each([&](Word word) {
    Acc x[V], square[V];
    unpack<T, V>(word, x);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      x[j] -= mean;
      square[j] = x[j] * x[j];
    }
    rest += sum_of(x);
    squares += sum_of(square);
  });
  sum_team(team, rest, squares);
  const Acc correction = rest * inverse;
  const Acc variance = multiply_add(-correction, rest, squares) * inverse;
  const Acc invstd = Acc(1) / square_root(variance + args.eps);
  mean += correction;

  const int64_t first_row = group * args.sizes.group_channels;
  if (group < plan.groups) {
    if (lane == 0) {
      args.mean[group] = mean;
      args.invstd[group] = invstd;
    }
    const int first_channel = args.sizes.template spot<1>(first_row).channel;
    for (int c = lane; c < args.sizes.group_channels; c += team) {
      const Coefficients<Acc> k = coefficients(args.parameters, first_channel + c, first_row + c, mean, invstd);
      pairs[c].x = k.a;
      pairs[c].y = k.b;
    }
  }
  __syncthreads();

  const auto write = [&](int r, Word word, Added residual) {
    const Pair pair = pairs[plan.channel(lane + r * team)];
    const Coefficients<Acc> k{mean, pair.x, pair.y};
    Acc v[V];
    unpack<T, V>(word, v);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = k.preactivation(v[j] - k.mean);
    if (args.residual) {
      Acc added[V];
      unpack<Y, V>(residual, added);
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] += added[j];
    }
    args.activation.template apply<Y, kAny>(v);
    store<Y, V>(args.output + base + int64_t{r * team} * V, pack<Y, V>(v));
  };
  Added residual[U] = {};
  const auto load_residual = [&](int r) {
    if (args.residual) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if ((r + u) * team < left) residual[u] = load<Y, V>(args.residual + base + int64_t{(r + u) * team} * V);
      }
    }
  };
#pragma unroll
  for (int r = 0; r < R; r += U) {
    load_residual(r);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if ((r + u) * team < left) write(r + u, kept[r + u], residual[u]);
    }
  }
  for (int r = R; r * team < left; r += U) {
    load_residual(r);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if ((r + u) * team < left) write(r + u, parked[(r - R + u) * plan.threads], residual[u]);
    }
  }
}

// Procedure overview: all of forward with one read of the input, channels_last; a block holds all rows of a tile.
//   1. Each thread loads its accesses and sums them by channel; the block adds up its groups' channels.
//   2. As above, deviations and their squares.
//   3. The block writes mean and invstd; each thread computes the coefficients of its channels.
//   4. Each thread normalises what it holds and writes the output.
template <class T, class Y, int V>
__global__ void __launch_bounds__(kThreads, 2)
    forward_columns_on_chip(const Columns layout, const ForwardArguments<T, Y> args) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  using Word = Raw<T, V>;
  constexpr int R = kKept<V>, U = 4, S = kRatio<T, Y>;
  DYN_SHARED(Word, memory);
  SHARED(Pair, groups, [kMaxWidth * V]);
  Word* const parked = memory + threadIdx.x;
  const Walk walk = layout.template walk<V>(blockIdx.x, threadIdx.x);
  const auto at = [&](int r) { return walk.offset * static_cast<int64_t>(sizeof(Word)) + r * walk.step; };

  Word kept[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r < walk.left) kept[r] = __ldg(access_at<T, V>(args.input, at(r)));
  }
  for (int r = R; r < walk.left; r += U) {
    Word raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (r + u < walk.left) raw[u] = __ldg(access_at<T, V>(args.input, at(r + u)));
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (r + u < walk.left) parked[(r - R + u) * kThreads] = raw[u];
    }
  }
  // Calls visit(x) with the elements of every access that the thread holds.
  const auto for_each = [&](auto visit) {
    Acc x[V];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r < walk.left) {
        unpack<T, V>(kept[r], x);
        visit(x);
      }
    }
    for (int r = R; r < walk.left; ++r) {
      unpack<T, V>(parked[(r - R) * kThreads], x);
      visit(x);
    }
  };
  Partial<Acc> mine[V];
#pragma unroll
  for (int j = 0; j < V; ++j) mine[j] = {Acc(0), Acc(0), Acc(0)};
  for_each([&](const Acc(&x)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) mine[j].a += x[j];
  });
  const Acc inverse = Acc(1) / (static_cast<Acc>(args.sizes.group_channels) * static_cast<Acc>(layout.rows));
  const Partial<Acc>* channels = combine_columns<Sums>(layout, mine);
  combine_groups<Sums, V>(layout, args.sizes.group_channels, channels,
                          [&](int k, const Partial<Acc>& sum) { groups[k].x = sum.a * inverse; });
  __syncthreads();

  const int column = static_cast<int>(threadIdx.x) % layout.width;
  Acc mean[V];
  int local[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    local[j] = args.sizes.by_group_channels(column * V + j);
    mean[j] = walk.left > 0 ? groups[local[j]].x : Acc(0);
    mine[j] = {Acc(0), Acc(0), Acc(0)};
  }
  for_each([&](const Acc(&x)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Acc d = x[j] - mean[j];
      mine[j].a += d;
      mine[j].b = multiply_add(d, d, mine[j].b);
    }
  });
  channels = combine_columns<Sums>(layout, mine);
  const int64_t first_group = layout.sample_of(blockIdx.x) * args.sizes.groups +
                              args.sizes.by_group_channels(layout.first_access(layout.tile_of(blockIdx.x)) * V);
  combine_groups<Sums, V>(layout, args.sizes.group_channels, channels, [&](int k, const Partial<Acc>& sum) {
    const Acc correction = sum.a * inverse;
    const Acc variance = multiply_add(-correction, sum.a, sum.b) * inverse;
    groups[k].x += correction;
    groups[k].y = Acc(1) / square_root(variance + args.eps);
    args.mean[first_group + k] = groups[k].x;
    args.invstd[first_group + k] = groups[k].y;
  });
  __syncthreads();

  if (walk.left == 0) return;
  const int channel = layout.first_access(layout.tile_of(blockIdx.x)) * V + column * V;
  Coefficients<Acc> of[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const Pair group = groups[local[j]];
    of[j] = coefficients(args.parameters, channel + j, walk.row + j, group.x, group.y);
  }
  const auto write = [&](int r, Word word) {
    Acc v[V];
    unpack<T, V>(word, v);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = of[j].preactivation(v[j] - of[j].mean);
    if (args.residual) {
      Acc added[V];
      unpack<Y, V>(__ldg(access_at<Y, V>(args.residual, at(r) * S)), added);
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] += added[j];
    }
    args.activation.template apply<Y, kAny>(v);
    *access_at<Y, V>(args.output, at(r) * S) = pack<Y, V>(v);
  };
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r < walk.left) write(r, kept[r]);
  }
  for (int r = R; r < walk.left; ++r) write(r, parked[(r - R) * kThreads]);
}

}  // namespace genimg_fast::cuda::group_norm
