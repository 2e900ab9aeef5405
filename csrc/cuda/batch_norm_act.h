#pragma once
// The border between the torch side (batch_norm_act_torch.cpp) and the kernels (batch_norm_act.cu): no torch, no CUDA
// header. Functions return a cudaError_t as int, 0 for success, and launch on `stream` without waiting for it.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device.h"

namespace genimg_fast::cuda {

// How a batch statistic is computed; `automatic` leaves the choice to the policy in batch_norm_act.cu.
enum class Method : int {
  automatic,
  split,    // any size: reduce over (channel tiles x slices), then a second kernel over the elements
  block,    // one block holds all data of a channel tile on chip: the input is read once
  cluster,  // clusters of blocks hold one channel tile after the other: likewise
};

// Element i of channel c in group o lies at (o * channels + c) * inner + i.
struct BatchNormActShape {
  DType dtype;
  int64_t outer, channels, inner;
};

// A parameter or running statistic: one value per channel, of the data's dtype if `own_dtype`, else as mean and invstd.
struct BatchNormActValues {
  void* values;
  bool own_dtype;
};

// Pointers to data are of the shape's dtype, those to one value per channel are double beside float64 and float beside
// every other dtype.  What is marked optional may be null.
struct BatchNormActForward {
  const void* input;
  const void* residual;       // optional
  BatchNormActValues weight;  // optional
  BatchNormActValues bias;    // optional
  void* output;
  void* mean;                       // training: written.  Evaluation: not used
  void* invstd;                     // likewise
  BatchNormActValues running_mean;  // training: optional, updated.  Evaluation: read
  BatchNormActValues running_var;   // likewise
  double momentum, eps;
  int activation;  // 0 identity, 1 relu, 2 leaky_relu, 3 silu
  double negative_slope;
};

struct BatchNormActBackward {
  const void* grad_output;
  const void* input;
  const void* residual;       // optional
  BatchNormActValues weight;  // optional
  BatchNormActValues bias;    // optional
  const void* mean;
  const void* invstd;
  void* grad_input;     // optional: not computed when null
  void* grad_residual;  // optional: not computed when null
  void* grad_weight;
  void* grad_bias;
  bool training;
  int activation;
  double negative_slope;
};

// What a call will do.  A forced method that the shape or the device rules out becomes `split`.
Method batch_norm_act_train_method(const BatchNormActShape&, const BatchNormActForward&, const DeviceFacts&, Method);
Method batch_norm_act_backward_method(const BatchNormActShape&, const BatchNormActBackward&, const DeviceFacts&,
                                      Method);

// Bytes of device memory, aligned to 16, that the launch of the same arguments needs.  Its contents do not matter.
size_t batch_norm_act_train_workspace(const BatchNormActShape&, const BatchNormActForward&, const DeviceFacts&, Method);
size_t batch_norm_act_backward_workspace(const BatchNormActShape&, const BatchNormActBackward&, const DeviceFacts&,
                                         Method);

// The shape must have elements: the caller deals with empty tensors.
int batch_norm_act_train(const BatchNormActShape&, const BatchNormActForward&, const DeviceFacts&, Method,
                         void* workspace, void* stream);
int batch_norm_act_eval(const BatchNormActShape&, const BatchNormActForward&, void* stream);
int batch_norm_act_backward(const BatchNormActShape&, const BatchNormActBackward&, const DeviceFacts&, Method,
                            void* workspace, void* stream);

// held: tensors that a cluster would hold, 1 in forward and 2 in backward.
ClusterCounts batch_norm_act_clusters(const BatchNormActShape&, int held, const DeviceFacts&);

// Which elements a block of a call's kernels visits, without a tensor: for tests of sizes too large to allocate.
struct BatchNormActVisits {
  int64_t tiles;
  int slices;                              // of a tile
  int vector, lanes;                       // elements and channels per access
  int64_t slice_elements;                  // of each channel in the slice
  std::vector<int64_t> channels, offsets;  // of each access's first element, thread after thread
};

// held: tensors that an on-chip kernel would hold, 1 in forward and 2 in backward.  slice < 0: only the counts of tiles
// and slices.  limit: chunks of accesses to report of each thread, at the start and at the end of its way.
BatchNormActVisits batch_norm_act_visits(const BatchNormActShape&, bool aligned, bool elementwise, int held,
                                         const DeviceFacts&, Method, int64_t tile, int slice, int limit);

}  // namespace genimg_fast::cuda
