#pragma once
// Host side of the cell updates that CPU and CUDA share: argument checks and the description of memory layout.
#include "recurrent_cell.h"
#include "tensor.h"

namespace genimg_fast {

// A cell update sees (batch, G * hidden, *) as `outer` groups of G gates with `inner` consecutive values each.
struct CellShape {
  MemoryFormat format;
  int64_t outer, inner;
};

// gates is (batch, G * hidden, *) for a state (batch, hidden, *).
inline void check_gates(const Tensor& gates, const Tensor& state, int gate_count, const char* name) {
  GENIMG_FAST_CHECK(is_supported(state.scalar_type()),
                    "cell update: tensors must be float32, float64, bfloat16 or float16");
  GENIMG_FAST_CHECK(gates.device() == state.device() && gates.scalar_type() == state.scalar_type(),
                    "cell update: ", name, " must have the state's dtype and device");
  bool same = state.dim() >= 2 && gates.dim() == state.dim();
  for (int64_t d = 0; same && d < state.dim(); ++d) same = gates.size(d) == state.size(d) * (d == 1 ? gate_count : 1);
  GENIMG_FAST_CHECK(same, "cell update: ", name, " must have ", gate_count,
                    " times the state's size along dimension 1, ", "and its size elsewhere: the state has shape ",
                    shape_of(state), ", ", name, " has ", shape_of(gates));
}

inline void check_like_state(const Tensor& t, const Tensor& state, const char* name) {
  GENIMG_FAST_CHECK(t.device() == state.device() && t.scalar_type() == state.scalar_type() && same_shape(t, state),
                    "cell update: ", name, " must have the state's dtype, device and shape ", shape_of(state), ", got ",
                    shape_of(t));
}

// channels_last where the gates are dense in it and in nothing else, else contiguous.
inline CellShape cell_shape(const Tensor& gates, const Tensor& state) {
  int64_t spatial = 1;
  for (int64_t d = 2; d < gates.dim(); ++d) spatial *= gates.size(d);
  const bool candidate = (gates.dim() == 4 || gates.dim() == 5) && !gates.is_contiguous();
  int64_t expected = 1;
  bool dense = candidate;
  for (int64_t j = 0; dense && j < gates.dim(); ++j) {
    const int64_t d = j == 0 ? 1 : j == gates.dim() - 1 ? 0 : gates.dim() - j;
    dense = gates.size(d) == 1 || gates.stride(d) == expected;
    expected *= gates.size(d);
  }
  if (!dense) return {MemoryFormat::Contiguous, gates.size(0), state.size(1) * spatial};
  return {gates.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d, gates.size(0) * spatial,
          state.size(1)};
}

}  // namespace genimg_fast
