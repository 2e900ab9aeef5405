#pragma once
// The border between the torch side (cell_update_torch.cpp) and the kernels (cell_update.cu): no torch, no CUDA header.
// Functions return a cudaError_t as int, 0 for success, and launch on `stream` without waiting for it.
#include <cstdint>

#include "../recurrent_cell.h"
#include "device.h"

namespace genimg_fast::cuda {

// The elementwise part of one step: `outer` groups of G gates with `inner` consecutive values each.
struct CellUpdate {
  DType dtype;
  Cell cell;  // GRU or LSTM
  int64_t outer, inner;
  const void* gates;    // GRU: those of the input
  const void* gates_h;  // GRU
  const void* state;    // GRU: h; LSTM: c

  // Forward.
  void* h;
  void* c;  // LSTM

  // Backward.
  const void* grad_h;  // LSTM: or null, like the next: zero
  const void* grad_c;  // LSTM
  void* grad_gates;
  void* grad_gates_h;  // GRU
  void* grad_state;
};

// The update must have elements.
int cell_update_forward(const CellUpdate&, void* stream);
int cell_update_backward(const CellUpdate&, void* stream);

}  // namespace genimg_fast::cuda
