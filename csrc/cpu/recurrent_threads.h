#pragma once
// How the threads share the work of a recurrent call.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../recurrent.h"

namespace genimg_fast {
namespace {

constexpr int64_t tile_rows = 64;                 // of a tile, at most: its state stays in the L2 cache
constexpr int64_t thread_products = 1 << 18;      // a thread is not worth waking for fewer multiplications
constexpr int64_t thread_elements = 1 << 14;      // nor for fewer elements of an elementwise pass
constexpr int64_t thread_packed = 1 << 15;        // nor for fewer weights to pack
constexpr int64_t step_products = 1 << 16;        // threads are not worth joining after fewer in every step
constexpr int64_t core_cache = int64_t(1) << 20;  // bytes of panels that a thread can reread in every step

// Threads for a task of n parts that are worth `share` each.
int64_t threads_for(int64_t n, int64_t share) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), n / share));
}

// Calls f(begin, end) on at most `threads` parts of [0, n).
template <class F>
void parallel(int64_t n, int64_t threads, const F& f) {
  torch::stable::parallel_for(0, n, std::max<int64_t>(1, (n + threads - 1) / threads), f);
}

template <class F>
void parallel_each(int64_t n, int64_t threads, const F& f) {
  parallel(n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Bounds of tiles of the batch that split the work evenly among the threads.
std::vector<int64_t> tiles(const Sequence& sequence, int64_t threads) {
  const int64_t batch = sequence.batch, per_thread = (batch + threads - 1) / threads;
  const int64_t count = std::min(batch, threads * ((per_thread + tile_rows - 1) / tile_rows));
  std::vector<int64_t> bounds{0};
  int64_t length = sequence.steps, work = 0;
  for (int64_t b = 0; b + 1 < batch; ++b) {
    while (length > 0 && sequence.active(length - 1) <= b) --length;
    work += length;
    const int64_t full = bounds.size();
    if (full < count && work * count >= sequence.rows() * full) bounds.push_back(b + 1);
  }
  bounds.push_back(batch);
  return bounds;
}

// Takes all sequences through all steps: tile(direction, first, last) does so with some of them, shared(direction,
// threads) with all.
template <class Tile, class Shared>
void run(const Stack& stack, int64_t weights, int64_t weight_bytes, int64_t panels, const Tile& tile,
         const Shared& shared) {
  const Sequence& sequence = stack.sequence;
  const int64_t directions = stack.directions, products = sequence.rows() * weights;
  const int64_t threads = threads_for(directions * products, thread_products);
  const bool few = threads > directions && directions * sequence.batch < threads * 4;
  if (threads > 1 && panels > 1 && products >= sequence.steps * step_products && (few || weight_bytes > core_cache)) {
    for (int64_t d = 0; d < directions; ++d) shared(d, std::min(threads, panels));
    return;
  }
  const std::vector<int64_t> bounds = tiles(sequence, (threads + directions - 1) / directions);
  const int64_t count = bounds.size() - 1;
  parallel_each(directions * count, threads,
                [&](int64_t i) { tile(i / count, bounds[i % count], bounds[i % count + 1]); });
}

}  // namespace
}  // namespace genimg_fast
