#pragma once
// The border between the torch side (reparameterize_kl_torch.cpp) and the kernels (reparameterize_kl.cu): no torch, no
// CUDA header. Functions return a cudaError_t as int, 0 for success, and launch on `stream` without waiting for it.
#include <cstddef>
#include <cstdint>

#include "device.h"
#include "sample_layout.h"

namespace genimg_fast::cuda {

// The tensors of a call, those of the forward pass first.
enum Operand : int {
  kOutput,  // z; in backward every gradient: all have one layout
  kMu,
  kLogvar,
  kNoise,
  kPriorMu,
  kPriorLogvar,
  kForwardOperands,
  kGradZ = kForwardOperands,
  kGradKl,  // per sample: its strides within a sample are zero
  kOperands,
};

// Pointers are of the call's dtype, those to kl and its gradient double beside float64 and float beside every other.
struct ReparameterizeKlCall {
  DType dtype;
  Samples samples;
  SampleLayout layouts[kOperands];
  const void* inputs[kOperands];  // null: not given; a gradient that is not given is zero
  const int64_t* seed;            // on the device; read unless there is noise
  double logvar_min, logvar_max, free_bits;

  // Forward.
  void* z;
  void* kl;  // contiguous; a value per sample or per element
  bool per_element;

  // Backward.
  void* grad_mu;
  void* grad_logvar;
  void* grad_noise;         // optional: not computed when null
  void* grad_prior_mu;      // likewise
  void* grad_prior_logvar;  // likewise
};

// How the work of a call is cut up.
struct ReparameterizeKlPlan {
  bool dense;            // 16-byte accesses; else elements one by one, at whatever strides
  bool plain;            // dense, and the usual operands and options: a kernel that asks for no others
  int step;              // elements that a thread handles at a time: whole groups of Philox
  int threads;           // of a block
  int team_log2;         // 2^team_log2 neighbouring threads work on the same sample, or slice of it
  int slices;            // of a sample; several only where a team is a whole block
  int64_t sample_steps;  // in a sample
  int64_t slice_steps;   // in a slice (fewer in the last)
  int64_t blocks;
  size_t workspace_bytes;  // of device memory, aligned to 16; its contents do not matter
};

ReparameterizeKlPlan reparameterize_kl_forward_plan(const ReparameterizeKlCall&, const DeviceFacts&);
ReparameterizeKlPlan reparameterize_kl_backward_plan(const ReparameterizeKlCall&, const DeviceFacts&);

// The call must have elements: the caller deals with empty tensors.  The plan must be that of the same call.
int reparameterize_kl_forward(const ReparameterizeKlCall&, const ReparameterizeKlPlan&, void* workspace, void* stream);
int reparameterize_kl_backward(const ReparameterizeKlCall&, const ReparameterizeKlPlan&, void* stream);

// What a thread of such a plan does first, without a tensor: for tests of sizes too large to allocate.
struct ReparameterizeKlVisit {
  int64_t sample, begin, end;  // the thread's first step in the sample, and the end of its slice
  int64_t offset;              // of the first element of that step, in the memory of `operand`
};
ReparameterizeKlVisit reparameterize_kl_visit(const ReparameterizeKlCall&, const ReparameterizeKlPlan&, Operand operand,
                                              unsigned block, int thread);

}  // namespace genimg_fast::cuda
