// Kernels that test the emulator itself.  They use everything of gpu.cuh, so that one nvcc run over this file checks
// the other half of it.  Some are wrong on purpose; a comment "planted: ..." marks the line that a checker has to name.
#include "cluster_ring.cuh"
#include "gpu.cuh"
#include "selftest.h"

namespace selftest {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

__global__ void indices_kernel(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * threads + thread] += 1 + block * 1024 + thread;
}

// The usual split reduction: every block stores a partial sum, and the block that finishes last adds them up.
template <Bug kBug>
__global__ void __launch_bounds__(kSumThreads)
    split_sum_kernel(const float* __restrict__ x, float* partials, unsigned* finished, float* total, int n) {
  SHARED(float, warp_sums, [kSumThreads / 32]);
  float* sums = warp_sums;  // as a pointer, whose bounds UBSan does not know
  SHARED(bool, is_last, );
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int end = kBug == Bug::global_overrun ? n + 1 : n;
  float sum = 0;
  for (int i = blockIdx.x * kSumThreads + threadIdx.x; i < end; i += gridDim.x * kSumThreads) {
    sum += x[i];  // planted: global overrun
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    const int slot = kBug == Bug::shared_overrun ? warp + 1 : warp;
    sums[slot] = sum;  // planted: shared overrun
  }
  if (kBug != Bug::missing_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    float block_sum = 0;
    for (int i = 0; i < kSumThreads / 32; ++i) {
      block_sum += sums[i];  // planted: race without the barrier
    }
    partials[blockIdx.x] = block_sum;
    if (kBug != Bug::missing_fence) __threadfence();
    is_last = atomicAdd(finished, 1u) + 1 == gridDim.x;
    __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    float grid_sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) {
      grid_sum += gpu::ld_cg(partials + i);  // planted: race without the fence
    }
    *total = grid_sum;
  }
}

// Four rounds over one buffer.  Without the second barrier a fast thread overwrites what a slow one has yet to read.
__global__ void shared_reuse_kernel(bool second_barrier, float* out) {
  SHARED(float, values, [128]);
  float sum = 0;
  for (int round = 0; round < 4; ++round) {
    values[threadIdx.x] = round;
    __syncthreads();
    sum += values[(threadIdx.x + 64) % 128];
    if (second_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void warp_reverse_kernel(bool synchronise, float* out) {
  SHARED(float, values, [32]);
  values[threadIdx.x] = threadIdx.x;
  if (synchronise) __syncwarp();
  out[threadIdx.x] = values[31 - threadIdx.x];
}

__global__ void collectives_kernel(const int* in, int* out, int width) {
  const int lane = threadIdx.x, value = in[lane];
  int row = 0;
  const auto store = [&](int result) { out[row++ * 32 + lane] = result; };
  store(__shfl_sync(kFullWarp, value, 3, width));
  store(__shfl_up_sync(kFullWarp, value, 3, width));
  store(__shfl_down_sync(kFullWarp, value, 3, width));
  store(__shfl_xor_sync(kFullWarp, value, 1, width));
  store(static_cast<int>(__ballot_sync(kFullWarp, value % 2)));
  store(__any_sync(kFullWarp, value == in[0]));
  store(__all_sync(kFullWarp, value == in[0]));
  store(static_cast<int>(__match_any_sync(kFullWarp, value)));
}

__global__ void barrier_votes_kernel(const int* in, int* out) {
  const int predicate = in[threadIdx.x];
  const int count = __syncthreads_count(predicate);
  const int all = __syncthreads_and(predicate);
  const int any = __syncthreads_or(predicate);
  out[threadIdx.x] = count * 4 + (all != 0) * 2 + (any != 0);
}

__global__ void atomics_kernel(unsigned* cells) {
  const unsigned id = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&cells[0], 2);
  atomicSub(&cells[1], 1);
  atomicMax(&cells[2], id);
  atomicMin(&cells[3], id);
  atomicOr(&cells[4], 1u << (id % 32));
  atomicAnd(&cells[5], ~(1u << (id % 16)));
  atomicXor(&cells[6], id);
  atomicInc(&cells[7], 9);
  atomicDec(&cells[8], 9);
  atomicAdd(&cells[9], atomicExch(&cells[10], id));
  for (unsigned assumed = 0, old = 1; assumed != old;) {
    assumed = old;
    old = atomicCAS(&cells[11], assumed, assumed + 3);
  }
  atomicAdd(reinterpret_cast<float*>(&cells[12]), 0.5f);
}

// A plain counter behind a lock: the atomics alone order nothing, the fences do.
__global__ void spin_lock_kernel(unsigned* lock, unsigned* counter) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lock, 0u, 1u) != 0u) __nanosleep(10);
  __threadfence();
  *counter += 1;
  __threadfence();
  atomicExch(lock, 0u);
}

// Ends only if all blocks run at the same time.
__global__ void grid_barrier_kernel(unsigned* arrived) {
  if (threadIdx.x != 0) return;
  atomicAdd(arrived, 1u);
  while (atomicAdd(arrived, 0u) < gridDim.x) {
  }
}

// Clusters walk through tiles of cluster x share values, each block its share, in two buffers in turn; every value is
// written with its tile's sum added.
__global__ void cluster_walk_kernel(WalkBug bug, const float* x, float* out, int tiles, int share, bool bulk) {
  DYN_SHARED(float, buffers);
  SHARED(uint64_t, full, [2]);
  SHARED(float2, sums, [2]);
  SHARED(float, warp_sums, [2]);
  const int thread = threadIdx.x, threads = blockDim.x;
  const unsigned rank = gpu::cluster_rank(), size = gpu::cluster_size();
  const int first = blockIdx.x / size, step = gridDim.x / size;
  const auto start = [&](int tile) { return (static_cast<int64_t>(tile) * size + rank) * share; };
  const auto load = [&](int tile, int buffer) {
    float* to = buffers + buffer * share;
    const float* from = x + start(tile) + (bug == WalkBug::misaligned);
    if (bulk && thread == 0) {
      const unsigned bytes = share * sizeof(float), wrong = bug == WalkBug::bytes_missing      ? 16
                                                            : bug == WalkBug::bytes_unexpected ? -16
                                                                                               : 0;
      gpu::mbarrier_arrive_expect_tx(&full[buffer], bytes + wrong);
      gpu::bulk_copy(to, from, bytes / 2, &full[buffer]);
      gpu::bulk_copy(to + share / 2, from + share / 2, bytes / 2, &full[buffer]);
    } else if (!bulk) {
      for (int i = thread * 4; i < share; i += threads * 4) gpu::async_copy<16>(to + i, from + i);
      gpu::arrive_after_copies(&full[buffer]);
    }
  };

  if (thread < 2 && bug != WalkBug::no_init) gpu::mbarrier_init(&full[thread], bulk ? 1 : threads);
  gpu::fence_mbarrier_init();
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    if (first + i * step < tiles) load(first + i * step, i);
  }
  int turn = 0;
  for (int tile = first; tile < tiles; tile += step, ++turn) {
    const int buffer = turn % 2;
    float* values = buffers + buffer * share;
    if (bug != WalkBug::missing_wait) {
      gpu::mbarrier_wait(&full[buffer], bug == WalkBug::wrong_phase ? 0 : turn / 2 % 2);
    }
    float sum = 0;
    for (int i = thread; i < share; i += threads) {
      sum += values[i];  // planted: race without the wait
    }
    sum = warp_sum(sum);
    if (thread % 32 == 0) warp_sums[thread / 32] = sum;
    __syncthreads();
    if (thread == 0) sums[buffer] = {warp_sums[0] + warp_sums[1], 0};
    if (bug != WalkBug::early_peer_read) {
      gpu::cluster_arrive();
      gpu::cluster_wait();
    }
    float total = 0;
    for (unsigned peer = 0; peer < size; ++peer) {
      total += gpu::cluster_load(peer, &sums[buffer]).x;  // planted: race without the cluster's barrier
    }
    for (int i = thread; i < share; i += threads) {
      out[start(tile) + i] = values[i] + total;  // planted: race with the refill
    }
    gpu::fence_proxy_async();
    if (bug != WalkBug::refill_race) __syncthreads();
    if (tile + 2 * step < tiles) load(tile + 2 * step, buffer);
  }
  if (bug != WalkBug::early_exit) {
    gpu::cluster_arrive();
    gpu::cluster_wait();
  }
}

// The same in a ring of pieces, with a producer.
constexpr int kRingConsumers = 64, kRingWords = 2;

__global__ void ring_walk_kernel(RingBug bug, genimg_fast::cuda::ClusterTiling tiling, const float* x, float* out) {
  using namespace genimg_fast::cuda;
  constexpr int U = kRingWords;
  DYN_SHARED(uint4, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<float>, exchange, );
  SHARED(float, sum, );
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster<1>(tiling, ring, exchange);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    const Held<float, 4> held{x, slots};
    if (bug != RingBug::ignored_leave) return produce<1, U>(tiling, rank, tile, clusters, ring, held);
    const int stride = tiling.consumers * U;
    const uint32_t end = tiling.begin(rank + 1);
    for (Cursor next; tile < tiling.tiles; tile += clusters) {
      for (uint32_t word = tiling.begin(rank); word < end; word += stride, next.advance(tiling.slots)) {
        load_piece<1>(tiling, tile, word, min(word + stride, end), next.slot * stride, &ring.full[next.slot], held);
      }
    }
    return;
  }
  const auto words = tiling.words<1, U>(rank, threadIdx.x);
  Consumers consumers{&ring.met};
  Cursor cursor;
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    Partials<float, 1> mine{0, {0}, {0}};
    Cursor first = cursor;
    for_each_piece<U>(
        tiling, words, true, first,
        [&](const Cursor& at) {
          if (bug == RingBug::missing_wait) return;
          gpu::mbarrier_wait(&ring.full[at.slot], bug == RingBug::wrong_phase ? at.phase ^ 1 : at.phase);
        },
        [&](int place, uint32_t, auto count) {
          for (int u = 0; u < count.value; ++u) {
            const uint4 word = slots[place + 32 * u];
            mine.a[0] +=
                __uint_as_float(word.x) + __uint_as_float(word.y) + __uint_as_float(word.z) + __uint_as_float(word.w);
          }
        },
        [&](const Cursor& at) {
          if (bug == RingBug::early_leave) leave_piece(ring, at);
        });
    const auto total = combine_cluster<Sums, 4>(tiling, consumers, turn, rank, mine, exchange);
    if (threadIdx.x == 0) sum = total.a;
    consumers.meet();
    for_each_piece<U>(
        tiling, words, true, cursor, [](const Cursor&) {},
        [&](int place, uint32_t word, auto count) {
          const Addresses<1, float> at(tiling, out, tile * tiling.tile_step, word);
          for (int u = 0; u < count.value; ++u) {
            uint4 value = slots[place + 32 * u];
            for (unsigned* v : {&value.x, &value.y, &value.z, &value.w}) {
              *v = __float_as_uint(__uint_as_float(*v) + sum);
            }
            gpu::store_128(at(u), value);
          }
        },
        [&](const Cursor& at) {
          if (bug != RingBug::early_leave) leave_piece(ring, at);
        });
    consumers.meet();  // `sum` has been read
  }
}

// In every round each block sends its number to all blocks of the cluster, and writes the sum of what it got.
__global__ void cluster_exchange_kernel(ExchangeBug bug, float* out, int rounds) {
  SHARED(float2, parts, [2 * 16]);
  SHARED(uint64_t, full, [2]);
  const int thread = threadIdx.x, size = static_cast<int>(gpu::cluster_size());
  const unsigned rank = gpu::cluster_rank(), bytes = size * sizeof(float2);
  if (thread < 2) {
    gpu::mbarrier_init(&full[thread], 1);
    gpu::mbarrier_arrive_expect_tx(&full[thread], bytes);
    gpu::fence_mbarrier_init();
  }
  gpu::cluster_arrive();
  gpu::cluster_wait();
  for (int round = 0; round < rounds; ++round) {
    const int half = bug == ExchangeBug::one_place ? 0 : round % 2;
    const unsigned parity = bug == ExchangeBug::one_place ? round % 2 : round / 2 % 2;
    const float2 number{static_cast<float>(rank + round * size), 0};
    if (thread < size) {
      gpu::store_async(thread, &parts[half * 16 + rank], number, &full[half]);
    }
    if (bug != ExchangeBug::missing_wait) gpu::mbarrier_wait_for_peers(&full[half], parity);
    if (thread == 0) gpu::mbarrier_arrive_expect_tx(&full[half], bytes);
    float sum = 0;
    for (int peer = 0; peer < size; ++peer) {
      sum += parts[half * 16 + peer].x;
    }
    if (thread == 0) out[blockIdx.x * rounds + round] = sum;
    __syncthreads();
  }
}

__global__ void dynamic_reverse_kernel(const float* in, float* out, int n) {
  DYN_SHARED(float, values);
  for (int i = threadIdx.x; i < n; i += blockDim.x) values[i] = __ldg(in + i);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = values[n - 1 - i];
}

__global__ void copy_128_kernel(const uint4* in, uint4* out, int vectors) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < vectors) gpu::store_128(out + i, gpu::load_128(in + i));
}

// One warp: d (16 x 8) += a (16 x 16) b (16 x 8), all row-major.
template <class T>
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  const auto pair = [](unsigned first, unsigned second) { return first | second << 16; };
  const auto left = [&](int i, int k) { return pair(a[i * 16 + k], a[i * 16 + k + 1]); };
  const auto right = [&](int k) { return pair(b[k * 8 + row], b[(k + 1) * 8 + row]); };
  const unsigned lefts[4] = {left(row, column), left(row + 8, column), left(row, column + 8),
                             left(row + 8, column + 8)};
  const unsigned rights[2] = {right(column), right(column + 8)};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  gpu::mma_m16n8k16<T>(sums, lefts, rights);
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sums[i];
}

template <class To, class From>
__global__ void convert_kernel(const From* in, To* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = gpu::convert<To>(in[i]);
}

__global__ void divergent_barrier_kernel(int* out) {
  if (threadIdx.x < 40) {
    __syncthreads();  // planted: divergent barrier
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void deadlock_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(kFullWarp, 1.0f, 1);
  } else {
    __syncthreads();
  }
}

__global__ void exited_lane_kernel(float* out) {
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_down_sync(kFullWarp, 1.0f, 8);
}

__global__ void mixed_collectives_kernel(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_down_sync(kFullWarp, 1.0f, 8);
  } else {
    out[threadIdx.x] = __shfl_up_sync(kFullWarp, 1.0f, 8);
  }
}

__global__ void lane_outside_mask_kernel(float* out) {
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_down_sync(0xffffu, static_cast<float>(threadIdx.x), 8);
}

__global__ void uninitialised_shared_kernel(float* out) {
  SHARED(float, values, [64]);
  if (threadIdx.x < 32) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned_load_kernel(const float* in, float* out) {
  const float4 v = *reinterpret_cast<const float4*>(in + 1);  // planted: misaligned
  out[0] = v.x;
}

__global__ void trap_kernel() { __trap(); }

__global__ void early_kernel(bool wait) {
  gpu::allow_next_kernel();
  if (wait || threadIdx.x > 0) gpu::wait_for_previous_kernel();
}
__global__ void empty_kernel() {}

int blocks_for(int n, int threads) { return (n + threads - 1) / threads; }

template <class To, class From>
int convert_all(const From* in, To* out, int n) {
  return gpu::launch(convert_kernel<To, From>, blocks_for(n, 256), 256, 0, nullptr, in, out, n);
}

}  // namespace

int indices(int* out, int gx, int gy, int gz, int bx, int by, int bz) {
  return gpu::launch(indices_kernel, dim3(gx, gy, gz), dim3(bx, by, bz), 0, nullptr, out);
}

int split_sum(Bug bug, const float* x, float* partials, unsigned* finished, float* total, int n, int blocks) {
  auto* kernel = split_sum_kernel<Bug::none>;
  if (bug == Bug::missing_barrier) kernel = split_sum_kernel<Bug::missing_barrier>;
  if (bug == Bug::missing_fence) kernel = split_sum_kernel<Bug::missing_fence>;
  if (bug == Bug::shared_overrun) kernel = split_sum_kernel<Bug::shared_overrun>;
  if (bug == Bug::global_overrun) kernel = split_sum_kernel<Bug::global_overrun>;
  return gpu::launch(kernel, blocks, kSumThreads, 0, nullptr, x, partials, finished, total, n);
}

int shared_reuse(bool second_barrier, float* out) {
  return gpu::launch(shared_reuse_kernel, 1, 128, 0, nullptr, second_barrier, out);
}

int warp_reverse(bool synchronise, float* out) {
  return gpu::launch(warp_reverse_kernel, 1, 32, 0, nullptr, synchronise, out);
}

int collectives(const int* in, int* out, int lanes, int width) {
  return gpu::launch(collectives_kernel, 1, lanes, 0, nullptr, in, out, width);
}

int barrier_votes(const int* in, int* out, int threads) {
  return gpu::launch(barrier_votes_kernel, 1, threads, 0, nullptr, in, out);
}

int atomics(unsigned* cells, int blocks, int threads) {
  return gpu::launch(atomics_kernel, blocks, threads, 0, nullptr, cells);
}

int spin_lock(unsigned* lock, unsigned* counter, int blocks) {
  return gpu::launch(spin_lock_kernel, blocks, 32, 0, nullptr, lock, counter);
}

int cluster_walk(WalkBug bug, bool bulk, const float* x, float* out, int tiles, int share, int blocks, int cluster) {
  return gpu::launch_clusters(cluster_walk_kernel, blocks, 64, static_cast<unsigned>(cluster),
                              2 * share * sizeof(float), nullptr, bug, x, out, tiles, share, bulk);
}

int ring_walk(RingBug bug, const float* x, float* out, int tiles, int pieces, int slots, int blocks, int cluster) {
  genimg_fast::cuda::ClusterTiling t{};
  const int piece = kRingConsumers * kRingWords, words = pieces * piece - 3;  // of a block
  t.channels = t.tiles = tiles;
  t.run = static_cast<uint32_t>(words * cluster);
  t.by_run = genimg_fast::cuda::Divider(t.run);
  t.tile_step = int64_t{t.run} * 16;
  t.share = words;
  t.unit = t.group = 1;
  t.blocks = cluster;
  t.consumers = kRingConsumers;
  t.team = 32;
  t.pieces = pieces;
  t.slots = slots;
  return gpu::launch_clusters(ring_walk_kernel, blocks, kRingConsumers + genimg_fast::cuda::kProducers,
                              static_cast<unsigned>(cluster), static_cast<size_t>(slots * piece * 16), nullptr, bug, t,
                              x, out);
}

int cluster_exchange(ExchangeBug bug, float* out, int rounds, int cluster) {
  return gpu::launch_clusters(cluster_exchange_kernel, cluster, 32, static_cast<unsigned>(cluster), 0, nullptr, bug,
                              out, rounds);
}

int grid_barrier(unsigned* arrived, int blocks) {
  return gpu::launch(grid_barrier_kernel, blocks, 32, 0, nullptr, arrived);
}

int early_launch(bool wait) { return gpu::launch_early(early_kernel, 2, 32, 0, nullptr, wait); }

int dynamic_reverse(const float* in, float* out, int n, bool raise_limit) {
  const size_t bytes = static_cast<size_t>(n) * sizeof(float);
  if (raise_limit) {
    if (const int code = gpu::set_max_dynamic_smem(dynamic_reverse_kernel, bytes)) return code;
  }
  return gpu::launch(dynamic_reverse_kernel, 1, 256, bytes, nullptr, in, out, n);
}

int copy_128(const void* in, void* out, int vectors) {
  return gpu::launch(copy_128_kernel, blocks_for(vectors, 64), 64, 0, nullptr, static_cast<const uint4*>(in),
                     static_cast<uint4*>(out), vectors);
}

int mma(bool bfloat16, const uint16_t* a, const uint16_t* b, float* d, int lanes) {
  return gpu::launch(bfloat16 ? mma_kernel<__nv_bfloat16> : mma_kernel<__half>, 1, lanes, 0, nullptr, a, b, d);
}

int clear(void* p, int64_t bytes) { return gpu::memset_async(p, 0, static_cast<size_t>(bytes), nullptr); }

int float_to_half(const float* in, uint16_t* out, int n) { return convert_all(in, reinterpret_cast<__half*>(out), n); }
int half_to_float(const uint16_t* in, float* out, int n) {
  return convert_all(reinterpret_cast<const __half*>(in), out, n);
}
int float_to_bfloat16(const float* in, uint16_t* out, int n) {
  return convert_all(in, reinterpret_cast<__nv_bfloat16*>(out), n);
}
int bfloat16_to_float(const uint16_t* in, float* out, int n) {
  return convert_all(reinterpret_cast<const __nv_bfloat16*>(in), out, n);
}

int divergent_barrier(int* out) { return gpu::launch(divergent_barrier_kernel, 1, 64, 0, nullptr, out); }
int deadlock(float* out) { return gpu::launch(deadlock_kernel, 1, 32, 0, nullptr, out); }
int exited_lane(float* out) { return gpu::launch(exited_lane_kernel, 1, 32, 0, nullptr, out); }
int mixed_collectives(float* out) { return gpu::launch(mixed_collectives_kernel, 1, 32, 0, nullptr, out); }
int lane_outside_mask(float* out) { return gpu::launch(lane_outside_mask_kernel, 1, 32, 0, nullptr, out); }
int uninitialised_shared(float* out) { return gpu::launch(uninitialised_shared_kernel, 1, 64, 0, nullptr, out); }
int misaligned_load(const float* in, float* out) {
  return gpu::launch(misaligned_load_kernel, 1, 1, 0, nullptr, in, out);
}
int trap() { return gpu::launch(trap_kernel, 1, 1, 0, nullptr); }
int large_block(int threads) { return gpu::launch(empty_kernel, 1, threads, 0, nullptr); }

int clusters_of_2(int* clusters) { return gpu::max_active_clusters(empty_kernel, 2, 1024, 0, clusters); }

}  // namespace selftest
