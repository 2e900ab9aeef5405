#pragma once
// From what the threads of batch_norm_act's kernels found to one result per channel: by threads, blocks and tiles,
// always in the same order.
#include "batch_norm_act_layout.cuh"
#include "reductions.cuh"

namespace genimg_fast::cuda::batch_norm {

// The team of channel k is threads [k * team, (k + 1) * team); its members' partial results become total[k].
template <class Combine, class Acc>
__device__ __forceinline__ void combine_team(const Tiling& tiling, Partial<Acc> sum, Partial<Acc>* total) {
#pragma unroll 1
  for (int lane_mask = tiling.team / 2; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
  const int k = threadIdx.x / tiling.team;
  if (k < tiling.group && threadIdx.x % tiling.team == 0) total[k] = sum;
  __syncthreads();
}

// Combines what the block's threads found, channel by channel and in a fixed order, into total[0, group), for all
// threads to read.
template <class Combine, int A, class Acc>
__device__ __forceinline__ void combine_block(const Tiling& tiling, Partials<Acc, A> mine, Partial<Acc>* total) {
  SHARED(Partial<Acc>, partials, [kMaxPartials]);
  const int thread = threadIdx.x, lane = thread % 32;
  int contributions;
  if (A > 1 || tiling.linear) {
    // The lanes of a warp whose numbers agree modulo `columns` have the same channels: fold them by shuffles first.
    const int columns = A > 1 ? tiling.width : 1;
#pragma unroll 1
    for (int lane_mask = 16; lane_mask >= columns; lane_mask /= 2) {
      const Acc n = mine.n;
#pragma unroll
      for (int j = 0; j < A; ++j) {
        const Partial<Acc> sum = combine_with_lane<Combine>(Partial<Acc>{n, mine.a[j], mine.b[j]}, lane_mask);
        mine.n = sum.n;
        mine.a[j] = sum.a;
        mine.b[j] = sum.b;
      }
    }
    if (lane < columns) {
#pragma unroll
      for (int j = 0; j < A; ++j) {
        partials[((thread / 32) * columns + lane) * A + j] = {mine.n, mine.a[j], mine.b[j]};
      }
    }
    contributions = tiling.threads / 32;
  } else {
    partials[thread] = {mine.n, mine.a[0], mine.b[0]};
    contributions = tiling.rows * tiling.span;
  }
  __syncthreads();
  const int k = thread / tiling.team;
  Partial<Acc> sum{0, 0, 0};
  if (k < tiling.group) {
#pragma unroll 1
    for (int j = thread % tiling.team; j < contributions; j += tiling.team) {
      const int from = A > 1 || tiling.linear ? j * tiling.group + k
                                              : (j / tiling.span) * tiling.width + k * tiling.span + j % tiling.span;
      sum = Combine::combine(sum, partials[from]);
    }
  }
  combine_team<Combine>(tiling, sum, total);
}

// Where the slices of a tile leave their parts: slice s of channel c its (a, b) in staged[c * slices + s].  Where the
// kernel that needs the result does not combine them itself, a slice also counts itself in arrived[tile], which is zero
// at launch, and the last one combines them.
template <class Acc>
struct Parts {
  typename PairOf<Acc>::type* staged;
  unsigned* arrived;
};

template <class Acc>
__device__ __forceinline__ void stage(const Tiling& tiling, const Parts<Acc>& parts, int tile, int slice,
                                      const Partial<Acc>* total) {
  const int k = threadIdx.x;
  const int channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    typename PairOf<Acc>::type pair;
    pair.x = total[k].a;
    pair.y = total[k].b;
    parts.staged[int64_t{channel} * tiling.slices + slice] = pair;
  }
}

// Combines the staged parts of the tile's channels, in the same order whichever block does it, with Batch loads in
// flight.  tiling is that of the kernel that staged them.
template <class Combine, int Batch, class Acc>
__device__ __forceinline__ void combine_staged(const Tiling& tiling, const Parts<Acc>& parts, int tile,
                                               Partial<Acc>* total) {
  const int k = threadIdx.x / tiling.team;
  const int channel = tile * tiling.group + k;
  Partial<Acc> sum{0, 0, 0};
  if (k < tiling.group && channel < tiling.channels) {
    const auto* const staged = parts.staged + int64_t{channel} * tiling.slices;
#pragma unroll 1
    for (int s = threadIdx.x % tiling.team; s < tiling.slices; s += tiling.team * Batch) {
      Partial<Acc> batch[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        const int from = s + i * tiling.team;
        batch[i] = {0, 0, 0};
        if (from < tiling.slices) {
          const auto pair = gpu::ld_cg(staged + from);
          batch[i] = {static_cast<Acc>(tiling.count(from)), pair.x, pair.y};
        }
      }
#pragma unroll
      for (int half = Batch / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) batch[i] = Combine::combine(batch[i], batch[i + half]);
      }
      sum = Combine::combine(sum, batch[0]);
    }
  }
  combine_team<Combine>(tiling, sum, total);
}

}  // namespace genimg_fast::cuda::batch_norm
