#pragma once
// Host side of the emulator's self-test kernels.  Every function returns a launch's error code.
#include <cstdint>

namespace selftest {

enum class Bug : int { none, missing_barrier, missing_fence, shared_overrun, global_overrun };

// Of a cluster that walks through tiles.
enum class WalkBug : int {
  none,
  missing_wait,      // reads a tile without waiting for its copy
  wrong_phase,       // waits for the first phase again
  refill_race,       // fills a buffer while other threads still read it
  early_peer_read,   // reads a peer's sum before the cluster's barrier
  early_exit,        // leaves while a peer may still read its shared memory
  bytes_missing,     // announces more than it copies
  bytes_unexpected,  // announces less
  misaligned,
  no_init,
};

// Of a cluster that walks through tiles in a ring of pieces.
enum class RingBug : int {
  none,
  missing_wait,  // reads a piece without waiting for its copy
  wrong_phase,   // waits for the phase before it
  early_leave,   // leaves a piece to the producer that it will read again
  ignored_leave  // loads a piece without waiting until the slot has been left
};

// Of blocks of a cluster that send each other numbers.
enum class ExchangeBug : int {
  none,
  missing_wait,  // reads without waiting for them
  one_place,     // sends to where a peer may still read what came before
};

constexpr int kSumThreads = 128;

int indices(int* out, int gx, int gy, int gz, int bx, int by, int bz);
int split_sum(Bug bug, const float* x, float* partials, unsigned* finished, float* total, int n, int blocks);
int shared_reuse(bool second_barrier, float* out);
int warp_reverse(bool synchronise, float* out);
int collectives(const int* in, int* out, int lanes, int width);
int barrier_votes(const int* in, int* out, int threads);
int atomics(unsigned* cells, int blocks, int threads);
int spin_lock(unsigned* lock, unsigned* counter, int blocks);
int cluster_walk(WalkBug bug, bool bulk, const float* x, float* out, int tiles, int share, int blocks, int cluster);
// slots: of 2 KiB, the room of a block; its share of a tile has `pieces`, of which the last one is not full.
int ring_walk(RingBug bug, const float* x, float* out, int tiles, int pieces, int slots, int blocks, int cluster);
int cluster_exchange(ExchangeBug bug, float* out, int rounds, int cluster);
int grid_barrier(unsigned* arrived, int blocks);
int early_launch(bool wait);
int dynamic_reverse(const float* in, float* out, int n, bool raise_limit);
int copy_128(const void* in, void* out, int vectors);
int mma(bool bfloat16, const uint16_t* a, const uint16_t* b, float* d, int lanes);
int clear(void* p, int64_t bytes);

int float_to_half(const float* in, uint16_t* out, int n);
int half_to_float(const uint16_t* in, float* out, int n);
int float_to_bfloat16(const float* in, uint16_t* out, int n);
int bfloat16_to_float(const uint16_t* in, float* out, int n);

int divergent_barrier(int* out);
int deadlock(float* out);
int exited_lane(float* out);
int mixed_collectives(float* out);
int lane_outside_mask(float* out);
int uninitialised_shared(float* out);
int misaligned_load(const float* in, float* out);
int trap();
int large_block(int threads);

int clusters_of_2(int* clusters);

}  // namespace selftest
