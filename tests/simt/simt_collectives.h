#pragma once
// Where the emulator's threads meet: barriers of a block and collectives of a warp.  Included by simt.cpp only.
#include "simt_fibers.h"

namespace simt {
namespace {

// Invariant: nobody can arrive at barrier g + 2 before everybody has left barrier g, because g + 1 needs all threads.
// So `result` stays valid until the last thread has read it, and two sync points, taken in turn, are enough to keep
// TSan from ordering a thread that leaves g after what others did before g + 1.
void complete_barrier(Block& block) {
  Barrier& barrier = block.barrier;
  switch (barrier.kind) {
    case BarrierKind::plain:
      break;
    case BarrierKind::count:
      barrier.result = static_cast<int>(barrier.votes);
      break;
    case BarrierKind::all:
      barrier.result = barrier.votes == barrier.arrived;
      break;
    case BarrierKind::any:
      barrier.result = barrier.votes != 0;
      break;
  }
  barrier.arrived = 0;
  barrier.votes = 0;
  ++barrier.generation;
  progress();
  for (Fiber* fiber : block.fibers) {
    if (fiber->state == Fiber::State::at_barrier) wake(fiber);
  }
}

// Warp collectives.

template <class Function>
void for_each_lane(unsigned mask, Function function) {
  for (; mask != 0; mask &= mask - 1) function(static_cast<unsigned>(std::countr_zero(mask)));
}

// The lane that `lane` reads from; itself where the source would leave its segment of `width` lanes.
unsigned shuffle_source(WarpOp op, unsigned lane, int offset, int width) {
  const int self = static_cast<int>(lane);
  const int segment = self & ~(width - 1);
  int from = self;
  switch (op) {
    case WarpOp::shuffle:
      return static_cast<unsigned>(segment + (offset & (width - 1)));
    case WarpOp::shuffle_up:
      from = self - offset;
      return static_cast<unsigned>(from >= segment ? from : self);
    case WarpOp::shuffle_down:
      from = self + offset;
      return static_cast<unsigned>(from < segment + width ? from : self);
    case WarpOp::shuffle_xor:
      from = self ^ offset;
      return static_cast<unsigned>(from < segment + width ? from : self);
    default:
      return lane;
  }
}

unsigned lanes_with_value(const Warp& warp, unsigned participants, uint64_t value) {
  unsigned found = 0;
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].value == value) found |= 1u << lane;
  });
  return found;
}

// gpu::mma_m16n8k16 of a warp, with sums in order.
void multiply_fragments(Warp& warp) {
  const auto operands = [&](int lane) -> const MmaOperands& {
    return *reinterpret_cast<const MmaOperands*>(static_cast<uintptr_t>(warp.lanes[lane].value));
  };
  const auto half_of = [](unsigned pair, int which) { return static_cast<uint16_t>(pair >> 16 * which); };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
    const MmaOperands& mine = operands(lane);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 2; ++k) {
        a[group + i % 2 * 8][column + i / 2 * 8 + k] = mine.to_float(half_of(mine.a[i], k));
        if (i < 2) b[column + i * 8 + k][group] = mine.to_float(half_of(mine.b[i], k));
      }
    }
  }
  for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = operands(lane).d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      operands(lane).d[i] = sum;
    }
  }
}

void compute_results(Warp& warp, unsigned participants, WarpOp op) {
  if (op == WarpOp::mma) {
    if (participants != ~0u) fail("mma needs all lanes of a warp");
    multiply_fragments(warp);
  }
  const unsigned ballot = participants & ~lanes_with_value(warp, participants, 0);
  for_each_lane(participants, [&](unsigned index) {
    Warp::Lane& lane = warp.lanes[index];
    switch (op) {
      case WarpOp::shuffle:
      case WarpOp::shuffle_up:
      case WarpOp::shuffle_down:
      case WarpOp::shuffle_xor: {
        // Reading from a lane that takes no part is undefined in CUDA; here it gives NaN.
        const unsigned from = shuffle_source(op, index, lane.source, lane.width);
        lane.result = (participants >> from & 1) ? warp.lanes[from].value : kAllOnes;
        break;
      }
      case WarpOp::ballot:
        lane.result = ballot;
        break;
      case WarpOp::any:
        lane.result = ballot != 0;
        break;
      case WarpOp::all:
        lane.result = ballot == participants;
        break;
      case WarpOp::match:
        lane.result = lanes_with_value(warp, participants, lane.value);
        break;
      case WarpOp::sync:
      case WarpOp::mma:
        break;
    }
  });
}

// Completes the collective of `mask` if all its lanes have arrived, and wakes those that wait.
bool try_complete_collective(Warp& warp, unsigned mask, WarpOp op) {
  const unsigned participants = mask & warp.exists;
  if (participants & ~warp.live) fail("a warp collective names a lane that has exited");
  if ((warp.waiting & participants) != participants) return false;
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].op != op || warp.lanes[lane].mask != mask) {
      fail("lanes of one mask met in different warp collectives");
    }
  });
  compute_results(warp, participants, op);
  if (op == WarpOp::sync && participants == warp.exists) ++warp.full_syncs;
  warp.waiting &= ~participants;
  progress();
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].fiber != running) wake(warp.lanes[lane].fiber);
  });
  return true;
}

}  // namespace
}  // namespace simt
