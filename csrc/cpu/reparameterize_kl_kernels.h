// Kernels of reparameterize_kl for one SIMD level; see reparameterize_kl.cpp for items and tiles.
// Included by for_each_simd_level.h only.

#include "vec_math.h"

// Noise.

typedef VecType<float>::bits Words;
typedef VecType<double>::bits WideWords;

// Normals of one pair of words per lane.
SIMD_INLINE void box_muller(Words x0, Words x1, Vec<float>& n0, Vec<float>& n1) {
  typedef VecType<float>::index Index;
  typedef Vec<float> V;
  const V u = mul_add(to_float(x0), splat(0x1p-32f), splat(0x1p-33f));
  const V radius = sqrt(-2 * log(u));
  // The angle 2 pi x1 / 2^32 is a quarter turn times `quadrant` plus a remainder within an eighth of a turn.
  const Words quadrant = (x1 + 0x20000000) >> 30;
  const V remainder = __builtin_convertvector((Index)(x1 - (quadrant << 30)), V);
  const V angle = remainder * splat(0x1.921fb6p-30f);  // pi / 2 * 2^-30
  const Words s = (Words)sin_first_octant(angle), c = (Words)cos_first_octant(angle);
  const auto odd = (quadrant & 1) != 0;
  n0 = radius * (V)((odd ? s : c) ^ ((quadrant + 1) << 30 & 0x80000000));
  n1 = radius * (V)((odd ? c : s) ^ (quadrant << 30 & 0x80000000));
}

// A round of Philox4x32 on the lower halves of 64-bit lanes, where the products need them; the upper halves hold
// rubbish.
SIMD_INLINE void philox_round(const PhiloxKeys& keys, int r, WideWords (&counter)[4]) {
  const WideWords m0 = WideWords{} + philox_multiplier0, m1 = WideWords{} + philox_multiplier1;
  const WideWords p0 = multiply_lower(counter[0], m0), p1 = multiply_lower(counter[2], m1);
  counter[0] = exclusive_or(p1 >> 32, counter[1], WideWords{} + keys.word[0][r]);
  counter[1] = p1;
  counter[2] = exclusive_or(p0 >> 32, counter[3], WideWords{} + keys.word[1][r]);
  counter[3] = p0;
}

// A batch is one block of four normals per float lane.  To leave the blocks one after the other, transpose_blocks wants
// the lanes' counters in this order.
constexpr int batch_blocks = lanes<float>;
constexpr int batch_block(int lane) { return batch_blocks / 4 * (lane % 4) + lane / 4; }

// The counters of a batch: of the even and of the odd lanes.
struct Counters {
  WideWords even[4], odd[4];
};

// The normals of Batches batches, one after the other, whose counters have been through the rounds before FirstRound.
template <int FirstRound, int Batches>
SIMD_INLINE void normals(const PhiloxKeys& keys, Counters (&counters)[Batches], float* out) {
  // In turns, as each waits for its products.
  for (int r = FirstRound; r < philox_rounds; ++r)
    unroll<Batches>([&](auto b) __attribute__((always_inline)) {
      philox_round(keys, r, counters[b].even);
      philox_round(keys, r, counters[b].odd);
    });
  unroll<Batches>([&](auto b) __attribute__((always_inline)) {
    Words x[4];
    for (int k = 0; k < 4; ++k) x[k] = join_lower(counters[b].even[k], counters[b].odd[k]);
    Vec<float> n[4];
    box_muller(x[0], x[1], n[0], n[1]);
    box_muller(x[2], x[3], n[2], n[3]);
    transpose_blocks(n);
    for (int k = 0; k < 4; ++k) store(out + (4 * b + k) * lanes<float>, n[k]);
  });
}

// The first two rounds of blocks of one sample that share the upper half of their index: half of their words are the
// same for all of these blocks.
class FirstRounds {
 public:
  SIMD_INLINE FirstRounds(const PhiloxKeys& keys, uint64_t sample, uint32_t upper_block) {
    const uint64_t product1 = uint64_t{philox_multiplier1} * static_cast<uint32_t>(sample);
    const uint64_t product0 =
        philox_multiplier0 * (product1 >> 32 ^ upper_block ^ keys.word[0][0]);  // of the second round
    after_first_ = WideWords{} + (sample >> 32 ^ keys.word[1][0]);
    word0_ = WideWords{} + ((product1 ^ keys.word[0][1]) & 0xffffffff);
    word2_ = WideWords{} + (product0 >> 32 ^ keys.word[1][1]);
    word3_ = WideWords{} + product0;
  }

  // Only the lower halves of the blocks' lanes matter.
  SIMD_INLINE void operator()(WideWords blocks, WideWords (&counter)[4]) const {
    const WideWords product0 = multiply_lower(blocks, WideWords{} + philox_multiplier0);
    const WideWords product1 = multiply_lower(product0 >> 32 ^ after_first_, WideWords{} + philox_multiplier1);
    counter[0] = product1 >> 32 ^ word0_;
    counter[1] = product1;
    counter[2] = product0 ^ word2_;
    counter[3] = word3_;
  }

 private:
  WideWords after_first_, word0_, word2_, word3_;
};

// The normals of one sample's blocks from `first` on, rounded up to whole batches.  `first` is a multiple of the most
// blocks that are asked for, noise_elements / 4: their indices have the same upper halves.
inline void fill_noise(const PhiloxKeys& keys, int64_t sample, int64_t first, int64_t blocks, float* out) {
  WideWords even, odd;
  for (int i = 0; i < lanes<double>; ++i) {
    even[i] = batch_block(2 * i);
    odd[i] = batch_block(2 * i + 1);
  }
  even += static_cast<uint64_t>(first);
  odd += static_cast<uint64_t>(first);
  const FirstRounds first_rounds(keys, sample, static_cast<uint64_t>(first) >> 32);
  const auto next = [&](Counters& counters) __attribute__((always_inline)) {
    first_rounds(even, counters.even);
    first_rounds(odd, counters.odd);
    even += batch_blocks;
    odd += batch_blocks;
  };
  int64_t k = 0;
  if constexpr (SIMD_BYTES == 64) {  // there are registers for two batches in turns
    for (; k + batch_blocks < blocks; k += 2 * batch_blocks) {
      Counters counters[2];
      next(counters[0]);
      next(counters[1]);
      normals<2>(keys, counters, out + 4 * k);
    }
  }
  for (; k < blocks; k += batch_blocks) {
    Counters counters[1];
    next(counters[0]);
    normals<2>(keys, counters, out + 4 * k);
  }
}

// The normals of several whole samples, one sample after the other.
inline void fill_noise_of_samples(const PhiloxKeys& keys, int64_t first_sample, int64_t samples, int64_t elements,
                                  float* out) {
  const int64_t blocks = (elements + 3) / 4, all_blocks = samples * blocks;
  alignas(64) float padded[tile_elements + 4 * batch_blocks];
  float* const target = elements % 4 == 0 ? out : padded;
  uint64_t sample = static_cast<uint64_t>(first_sample), block = 0;
  for (int64_t k = 0; k < all_blocks; k += batch_blocks) {
    alignas(64) uint64_t block_of[batch_blocks], sample_of[batch_blocks];  // even lanes, odd lanes
    for (int j = 0; j < batch_blocks; ++j) {
      const int lane = 4 * (j % (batch_blocks / 4)) + j / (batch_blocks / 4);  // batch_block(lane) is j
      const int place = lane % 2 * (batch_blocks / 2) + lane / 2;
      block_of[place] = block;
      sample_of[place] = sample;
      if (++block == static_cast<uint64_t>(blocks)) {
        block = 0;
        ++sample;
      }
    }
    WideWords b[4];  // blocks of the even and of the odd lanes, then their samples
    std::memcpy(b, block_of, sizeof(block_of));
    std::memcpy(b + 2, sample_of, sizeof(sample_of));
    Counters counters[] = {{{b[0], b[0] >> 32, b[2], b[2] >> 32}, {b[1], b[1] >> 32, b[3], b[3] >> 32}}};
    normals<0>(keys, counters, target + 4 * k);
  }
  if (target == out) return;
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t i = 0; i < elements; ++i) out[s * elements + i] = padded[4 * blocks * s + i];
}

// Forward and backward of one tile, from and to consecutive elements.

// The tile's noise for the n <= noise_elements elements from i on.
template <class T>
SIMD_INLINE const Acc<T>* noise_of(const Tile<T>& tile, int64_t i, int64_t n, NoiseBuffer<T>& buffer) {
  using A = Acc<T>;
  if (tile.given_noise) {
    const T* given = tile.given_noise + i;
    if constexpr (std::is_same_v<T, A>) return given;
    int64_t j = 0;
    for (; j + lanes<A> <= n; j += lanes<A>) store(buffer.wide + j, load(given + j));
    if (j < n) store(buffer.wide + j, load_first(given + j, n - j));
    return buffer.wide;
  }
  const float* made = buffer.made;
  if (tile.made_noise)
    made = tile.made_noise + i;
  else
    fill_noise(*tile.keys, tile.sample, (tile.first + i) / 4, (n + 3) / 4, buffer.made);
  if constexpr (std::is_same_v<A, float>) return made;
  std::copy_n(made, n, buffer.wide);
  return buffer.wide;
}

// The divergence of one vector of elements, and what the gradients need of it.
template <class A>
struct Divergence {
  typedef typename VecType<A>::type V;
  V std;              // exp(logvar / 2)
  V mean_difference;  // mu - prior_mu
  V prior_precision;  // exp(-prior_logvar)
  V half_expm1;       // expm1(logvar - prior_logvar) / 2
  V kl;               // before the lower bound of free bits
};

// f(x) = e^x - 1 - x of the log ratio of variances is taken from its half, h = x / 2, whose exponential the standard
// deviation needs anyway: f(x) = expm1(h)^2 + 2 f(h), a sum of positive terms.
template <bool Prior, bool Tail, class T>
SIMD_INLINE Divergence<Acc<T>> divergence(const Tile<T>& tile, Vec<Acc<T>> mu, Vec<Acc<T>> logvar, int64_t i, int n) {
  using A = Acc<T>;
  using V = Vec<A>;
  Exponential<A> e = exponential<A>(A(0.5) * logvar);
  Divergence<A> r;
  r.std = e.exp;
  r.mean_difference = mu;
  V weighted = mu;
  if constexpr (Prior) {
    const V prior_logvar = read<Tail>(tile.prior_logvar + i, n);
    r.mean_difference -= read<Tail>(tile.prior_mu + i, n);
    r.prior_precision = exponential<A>(-prior_logvar).exp;
    weighted = r.mean_difference * r.prior_precision;
    e = exponential<A>(A(0.5) * (logvar - prior_logvar));
  }
  r.half_expm1 = A(0.5) * e.expm1 * (e.expm1 + 2);
  r.kl = mul_add(splat(A(0.5)), mul_add(e.expm1, e.expm1, r.mean_difference * weighted), e.expm1_minus_x);
  return r;
}

template <class T>
SIMD_INLINE Vec<Acc<T>> clamp(const Tile<T>& tile, Vec<Acc<T>> logvar) {
  return tile.clamps ? at_most(at_least(logvar, splat(tile.logvar_min)), splat(tile.logvar_max)) : logvar;
}

// Returns the divergence.
template <bool Prior, bool Tail, class T>
SIMD_INLINE Vec<Acc<T>> forward_step(const Tile<T>& tile, const Acc<T>* noise, int64_t i, int n) {
  using A = Acc<T>;
  const Vec<A> mu = read<Tail>(tile.mu + i, n), logvar = clamp(tile, read<Tail>(tile.logvar + i, n));
  const Divergence<A> d = divergence<Prior, Tail>(tile, mu, logvar, i, n);
  write<Tail>(tile.z + i, mul_add(d.std, read<Tail>(noise, n), mu), n);
  const Vec<A> kl = at_least(d.kl, splat(tile.free_bits));
  if (tile.kl) write<Tail>(tile.kl + i, kl, n);
  return kl;
}

// Returns the sum of the divergences.
template <bool Prior, class T>
double forward_tile(const Tile<T>& shared, int64_t n) {
  using A = Acc<T>;
  constexpr int L = lanes<A>;
  constexpr int chain = 8;      // additions in float, before the sum moves on to double
  const Tile<T> tile = shared;  // a copy, so that the compiler need not expect the stores to change it
  NoiseBuffer<T> buffer;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += noise_elements) {
    const int64_t end = std::min(n, begin + noise_elements);
    const A* noise = noise_of(tile, begin, end - begin, buffer);
    for (int64_t i = begin; i < end;) {
      Vec<A> sum{};
      const int64_t stop = std::min(end, i + chain * L);
      for (; i + L <= stop; i += L) sum += forward_step<Prior, false>(tile, noise + (i - begin), i, 0);
      if (i < stop) {
        sum += keep_first<A>(forward_step<Prior, true>(tile, noise + (i - begin), i, stop - i), stop - i);
        i = stop;
      }
      total += horizontal_sum<A>(sum);
    }
  }
  return total;
}

template <bool Tail, class T>
SIMD_INLINE void write_gradient(const Tile<T>& tile, T* p, Vec<Acc<T>> v, int n) {
  if (Tail || !tile.streaming)
    write<Tail>(p, v, n);
  else
    stream(p, v);
}

template <bool Prior, bool Tail, class T>
SIMD_INLINE void backward_step(const Tile<T>& tile, const Acc<T>* noise, int64_t i, int n) {
  using A = Acc<T>;
  using V = Vec<A>;
  const V mu = read<Tail>(tile.mu + i, n), given = read<Tail>(tile.logvar + i, n), logvar = clamp(tile, given);
  const Divergence<A> d = divergence<Prior, Tail>(tile, mu, logvar, i, n);
  V grad_mu{}, grad_logvar{}, grad_noise{}, grad_prior_mu{}, grad_prior_logvar{};
  if (tile.grad_z) {
    grad_mu = read<Tail>(tile.grad_z + i, n);
    grad_noise = grad_mu * d.std;
    grad_logvar = A(0.5) * grad_noise * read<Tail>(noise, n);
  }
  if (tile.grad_kl) {
    V grad_kl = tile.grad_kl_varies ? read<Tail>(tile.grad_kl + i, n) : splat(*tile.grad_kl);
    if (tile.free_bits > 0) grad_kl = d.kl < tile.free_bits ? V{} : grad_kl;
    V by_mean = grad_kl * d.mean_difference;
    const V by_logvar = grad_kl * d.half_expm1;
    if constexpr (Prior) {
      by_mean *= d.prior_precision;
      grad_prior_mu = -by_mean;
      grad_prior_logvar = -mul_add(A(0.5) * by_mean, d.mean_difference, by_logvar);
    }
    grad_mu += by_mean;
    grad_logvar += by_logvar;
  }
  if (tile.clamps) grad_logvar = given < tile.logvar_min || given > tile.logvar_max ? V{} : grad_logvar;
  write_gradient<Tail>(tile, tile.grad_mu + i, grad_mu, n);
  write_gradient<Tail>(tile, tile.grad_logvar + i, grad_logvar, n);
  if (tile.grad_noise) write_gradient<Tail>(tile, tile.grad_noise + i, grad_noise, n);
  if constexpr (Prior) {
    if (!tile.grad_prior_mu) return;
    write_gradient<Tail>(tile, tile.grad_prior_mu + i, grad_prior_mu, n);
    write_gradient<Tail>(tile, tile.grad_prior_logvar + i, grad_prior_logvar, n);
  }
}

template <bool Prior, class T>
void backward_tile(const Tile<T>& shared, int64_t n) {
  using A = Acc<T>;
  constexpr int L = lanes<A>;
  const Tile<T> tile = shared;
  NoiseBuffer<T> buffer;
  for (int64_t begin = 0; begin < n; begin += noise_elements) {
    const int64_t end = std::min(n, begin + noise_elements);
    const A* noise = tile.grad_z ? noise_of(tile, begin, end - begin, buffer) : buffer.wide;
    int64_t i = begin;
    for (; i + L <= end; i += L) backward_step<Prior, false>(tile, noise + (i - begin), i, 0);
    if (i < end) backward_step<Prior, true>(tile, noise + (i - begin), i, end - i);
  }
}

// From and to memory.

// The part's elements, one after the other: where they lie, or gathered into `buffer`.  Null stays null.
template <class T>
const T* fetch(const Samples& samples, const Operand<const T>& operand, const Part& part, T* buffer) {
  if (operand.data == nullptr) return nullptr;
  if (operand.is_consecutive(part)) return operand.begin(part);
  for_each_run(samples, operand.layout, part, [&](int64_t at, int64_t offset, int64_t stride, int64_t n) {
    const T* from = operand.data + offset;
    T* to = buffer + at;
    if (stride == 1)
      std::copy_n(from, n, to);
    else if (stride == 0)
      std::fill_n(to, n, *from);
    else
      for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
  });
  return buffer;
}

// Where to write the part's elements one after the other, and how they get from there to where they belong.
template <class T>
T* target(const Operand<T>& operand, const Part& part, T* buffer) {
  if (operand.data == nullptr) return nullptr;
  return operand.is_consecutive(part) ? operand.begin(part) : buffer;
}
template <class T>
void deliver(const Samples& samples, const Operand<T>& operand, const Part& part, const T* buffer) {
  if (operand.data == nullptr || operand.is_consecutive(part)) return;
  for_each_run(samples, operand.layout, part, [&](int64_t at, int64_t offset, int64_t stride, int64_t n) {
    T* to = operand.data + offset;
    const T* from = buffer + at;
    for (int64_t i = 0; i < n; ++i) to[i * stride] = from[i];
  });
}

// What forward and backward share.
template <class T>
Tile<T> fetch_inputs(const Job<T>& job, const Part& part, Scratch<T>& scratch) {
  Tile<T> tile{};
  tile.mu = fetch(job.samples, job.mu, part, scratch.in[0]);
  tile.logvar = fetch(job.samples, job.logvar, part, scratch.in[1]);
  tile.prior_mu = fetch(job.samples, job.prior_mu, part, scratch.in[2]);
  tile.prior_logvar = fetch(job.samples, job.prior_logvar, part, scratch.in[3]);
  tile.given_noise = fetch(job.samples, job.noise, part, scratch.in[4]);
  tile.keys = &job.keys;
  tile.sample = part.sample;
  tile.first = part.first;
  tile.streaming = job.streaming;
  tile.clamps = job.clamps;
  tile.logvar_min = job.logvar_min;
  tile.logvar_max = job.logvar_max;
  tile.free_bits = job.free_bits;
  return tile;
}

template <class T>
void make_noise_of_samples(const Job<T>& job, const Part& part, Scratch<T>& scratch, Tile<T>& tile) {
  if (job.noise.data || part.samples == 1) return;
  fill_noise_of_samples(job.keys, part.sample, part.samples, part.elements, scratch.made_noise);
  tile.made_noise = scratch.made_noise;
}

// Items.

// Sums of the divergences of whole samples, in four chains each.
template <class A>
void sum_samples(const A* kl, int64_t samples, int64_t elements, A* out) {
  for (int64_t s = 0; s < samples; ++s, kl += elements) {
    A sum[4] = {};
    int64_t i = 0;
    for (; i + 4 <= elements; i += 4)
      for (int u = 0; u < 4; ++u) sum[u] += kl[i + u];
    for (; i < elements; ++i) sum[0] += kl[i];
    out[s] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

template <bool Prior, class T>
void forward_items(const Job<T>& job, int64_t begin, int64_t end) {
  using A = Acc<T>;
  Scratch<T> scratch;
  for (int64_t item = begin; item < end; ++item) {
    double sum = 0;
    job.plan.for_each_part(item, job.part_elements, [&](const Part& part) {
      Tile<T> tile = fetch_inputs(job, part, scratch);
      make_noise_of_samples(job, part, scratch, tile);
      tile.z = target(job.z, part, scratch.out[0]);
      const bool sums_later = !job.kl.data && job.plan.group > 1;
      tile.kl = sums_later ? scratch.kl : target(job.kl, part, scratch.kl);
      sum += forward_tile<Prior>(tile, part.count());
      deliver(job.samples, job.z, part, scratch.out[0]);
      deliver(job.samples, job.kl, part, scratch.kl);
      if (sums_later) sum_samples(scratch.kl, part.samples, part.elements, job.kl_sum + part.sample);
    });
    if (job.kl.data || job.plan.group > 1) continue;
    if (job.partial)
      job.partial[item] = sum;
    else
      job.kl_sum[item] = A(sum);
  }
}
template <class T>
void forward(const Job<T>& job, int64_t begin, int64_t end) {
  job.prior_mu.data ? forward_items<true>(job, begin, end) : forward_items<false>(job, begin, end);
}

template <bool Prior, class T>
void backward_items(const Job<T>& job, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  for (int64_t item = begin; item < end; ++item) {
    job.plan.for_each_part(item, job.part_elements, [&](const Part& part) {
      Tile<T> tile = fetch_inputs(job, part, scratch);
      tile.grad_z = fetch(job.samples, job.grad_z, part, scratch.grad_z);
      if (tile.grad_z) make_noise_of_samples(job, part, scratch, tile);
      tile.grad_kl_varies = job.grad_kl_varies || part.samples > 1;
      if (job.grad_kl.data)
        tile.grad_kl = tile.grad_kl_varies ? fetch(job.samples, job.grad_kl, part, scratch.kl)
                                           : job.grad_kl.data + part.sample * job.grad_kl.layout.batch_stride;
      T** const targets[] = {&tile.grad_mu, &tile.grad_logvar, &tile.grad_noise, &tile.grad_prior_mu,
                             &tile.grad_prior_logvar};
      for (int k = 0; k < 5; ++k) *targets[k] = target(job.grads[k], part, scratch.out[k]);
      backward_tile<Prior>(tile, part.count());
      for (int k = 0; k < 5; ++k) deliver(job.samples, job.grads[k], part, scratch.out[k]);
    });
    if (job.streaming) stream_fence();
  }
}
template <class T>
void backward(const Job<T>& job, int64_t begin, int64_t end) {
  job.prior_mu.data ? backward_items<true>(job, begin, end) : backward_items<false>(job, begin, end);
}
