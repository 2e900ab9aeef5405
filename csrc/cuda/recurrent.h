#pragma once
// The border between the torch side (recurrent_torch.cpp) and the kernels (recurrent.cu): no torch, no CUDA header.
// Functions return a cudaError_t as int, 0 for success, and launch on `stream` without waiting for it.
#include <cstddef>
#include <cstdint>
#include <functional>

#include "../recurrent_cell.h"
#include "device.h"

namespace genimg_fast::cuda {

// A layer's steps.  Rows of data belong to steps as in genimg_fast::Sequence.  Every tensor of a call is contiguous and
// of this dtype, unless its comment says otherwise; Method::persistent takes 16 bits at addresses aligned to 4 bytes.
struct RecurrentSequence {
  DType dtype;
  Cell cell;
  int64_t steps, batch, hidden;
  int directions;          // 1 or 2
  bool reverse;            // the first direction goes from the last step to the first, the second one the other way
  const int64_t* offsets;  // on the host: steps + 1
  const int64_t* device_offsets;  // their copy on the device, for Method::persistent; null: step t begins at t * batch
};

// Writes `count` offsets from the host to the device.  They travel as kernel parameters: a captured graph keeps them,
// and does not read the host's memory when it is replayed.
int recurrent_write_offsets(const int64_t* offsets, int64_t count, int64_t* device_offsets, void* stream);

// Arrays have one tensor of each direction.
struct RecurrentForward {
  const void* gates[2];      // (rows, G * hidden)
  const void* weight_hh[2];  // (G * hidden, hidden)
  const void* bias_n[2];     // (hidden,): GRU; or null
  const void* h0;            // (directions, batch, hidden), like c0, h_n and c_n
  const void* c0;            // LSTM
  void* output;              // (rows, directions * hidden)
  void* h_n;
  void* c_n;         // LSTM
  void* reserve[2];  // (rows, reserve_count * hidden); or null

  // For Method::steps.
  void* product;  // (batch, G * hidden)
  void* kept;     // (batch, hidden), in float64 beside float64 and float32 beside all else: GRU and LSTM
};

struct RecurrentBackward {
  const void* grad_output;  // or null, like the two that follow: zero
  const void* grad_h_n;
  const void* grad_c_n;
  const void* output;
  const void* reserve[2];
  const void* h0;
  const void* c0;  // LSTM
  const void* weight_hh[2];
  void* grad_gates[2];
  void* grad_hidden_n[2];  // (rows, hidden): GRU
  void* grad_h0;
  void* grad_c0;  // LSTM

  // For Method::steps; dh and dc have the dtype of `kept`.
  void* product;  // (batch, hidden)
  void* operand;  // (batch, G * hidden): GRU
  void* dh;       // (batch, hidden)
  void* dc;       // (batch, hidden): LSTM
};

// How a layer's steps are computed; see the table in recurrent.cu.
enum class RecurrentMethod : int {
  automatic,
  persistent,  // one kernel, in which a block takes some rows of the batch through all steps
  steps,       // a product and an elementwise kernel for every step
};

struct RecurrentPlan {
  RecurrentMethod method;
  // Of Method::persistent.
  int rows;  // of the batch, to a block
  int threads;
  int64_t blocks;       // of a direction
  size_t shared_bytes;  // dynamic shared memory of a block
  size_t shared_limit;  // the most that any launch of the kernel asks for
};

// Needs a batch that is not empty.  `wanted` overrules the policy where it can.
RecurrentPlan recurrent_forward_plan(const RecurrentSequence&, const DeviceFacts&, RecurrentMethod wanted);
RecurrentPlan recurrent_backward_plan(const RecurrentSequence&, const DeviceFacts&, RecurrentMethod wanted);

// Whether a layer is computed by Method::persistent, forward and backward, whatever its sequences.
bool recurrent_fits(DType, Cell, int64_t hidden, const DeviceFacts&);

int recurrent_forward(const RecurrentSequence&, const RecurrentForward&, const RecurrentPlan&, void* stream);
int recurrent_backward(const RecurrentSequence&, const RecurrentBackward&, const RecurrentPlan&, void* stream);

// Method::steps.  `multiply` enqueues the product of a step on the same stream:
//   forward   rows [0, rows) of product = those of h_n times the transpose of weight_hh; `first` is 0
//   backward  rows [0, rows) of product = those of operand (GRU), or rows [first, first + rows) of grad_gates,
//             times weight_hh
using RecurrentProduct = std::function<void(int direction, int64_t first, int64_t rows)>;
int recurrent_forward_steps(const RecurrentSequence&, const RecurrentForward&, const RecurrentProduct& multiply,
                            void* stream);
int recurrent_backward_steps(const RecurrentSequence&, const RecurrentBackward&, const RecurrentProduct& multiply,
                             void* stream);

}  // namespace genimg_fast::cuda
