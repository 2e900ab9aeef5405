#pragma once
// The border between the torch side (group_norm_act_torch.cpp) and the kernels (group_norm_act.cu): no torch, no CUDA
// header. Functions return a cudaError_t as int, 0 for success, and launch on `stream` without waiting for it.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device.h"

namespace genimg_fast::cuda {

// How a call computes; `automatic` leaves the choice to the policy in group_norm_act.cu.
enum class GroupNormMethod : int {
  automatic,
  split,    // any size: reduce over (groups x slices), finish, then a kernel over the elements
  on_chip,  // forward: one block holds the data of one or more groups: the input is read once
  cluster,  // contiguous: a cluster of blocks holds the data of a group, and walks from one group to the next
};

// Element i of channel c of sample n lies at (n * channels + c) * inner + i; with channels_last, at
// (n * inner + i) * channels + c.
struct GroupNormActShape {
  DType dtype;
  int64_t samples, channels, inner, groups;
  bool channels_last;
  // Beside 16-bit input: the output, the residual and their gradients are float, as autocast has them.
  bool wide_output = false;
};

// One value per channel, or per channel of each sample: of the data's dtype if `own_dtype`, else as mean and invstd.
struct GroupNormActValues {
  const void* values;
  bool own_dtype;
};

// y = activation((x - mean) * invstd * weight * (1 + scale) + bias * (1 + scale) + shift + residual).  weight and bias
// have one value per channel, scale and shift one per sample and channel, mean and invstd one per sample and group.
// Pointers to data are of the shape's dtype, unless wide_output says otherwise; those to other results are double
// beside float64 and float beside every other dtype.  What is marked optional may be null.
struct GroupNormActForward {
  const void* input;
  const void* residual;                           // optional
  GroupNormActValues weight, bias, scale, shift;  // optional
  void* output;
  void* mean;
  void* invstd;
  double eps;
  int activation;  // 0 identity, 1 relu, 2 leaky_relu, 3 silu
  double negative_slope;
};

// The gradients are optional: not computed where null.
struct GroupNormActBackward {
  const void* grad_output;
  const void* input;
  const void* residual;                           // optional
  GroupNormActValues weight, bias, scale, shift;  // optional
  const void* mean;
  const void* invstd;
  void* grad_input;
  void* grad_residual;
  void* grad_weight;
  void* grad_bias;
  void* grad_scale;
  void* grad_shift;
  int activation;
  double negative_slope;
};

// What a call will do.  A forced method that the shape or the device rules out becomes `split`.
GroupNormMethod group_norm_act_forward_method(const GroupNormActShape&, const GroupNormActForward&, const DeviceFacts&,
                                              GroupNormMethod);
GroupNormMethod group_norm_act_backward_method(const GroupNormActShape&, const GroupNormActBackward&,
                                               const DeviceFacts&, GroupNormMethod);

// Bytes of device memory, aligned to 16, that the launch of the same arguments needs.  Its contents do not matter.
size_t group_norm_act_forward_workspace(const GroupNormActShape&, const GroupNormActForward&, const DeviceFacts&,
                                        GroupNormMethod);
size_t group_norm_act_backward_workspace(const GroupNormActShape&, const GroupNormActBackward&, const DeviceFacts&,
                                         GroupNormMethod);

// The shape must have elements: the caller deals with empty tensors.
int group_norm_act_forward(const GroupNormActShape&, const GroupNormActForward&, const DeviceFacts&, GroupNormMethod,
                           void* workspace, void* stream);
int group_norm_act_backward(const GroupNormActShape&, const GroupNormActBackward&, const DeviceFacts&, GroupNormMethod,
                            void* workspace, void* stream);

// held: tensors that a cluster would hold, 1 in forward and 2 in backward.
ClusterCounts group_norm_act_clusters(const GroupNormActShape&, int held, const DeviceFacts&);

// Which elements a block of a call's kernels visits, without a tensor: for tests of sizes too large to allocate.
struct GroupNormActVisits {
  int64_t blocks;
  int vector, lanes;                   // elements and channels per access
  std::vector<int64_t> rows, offsets;  // of each access's first element, thread after thread
};

// moments: of the kernel that reduces to moments, whose rows are groups, else of those whose rows are channels of a
// sample.  block < 0: only the counts.  limit: accesses to report of each thread, at the start and at the end of its
// way.
GroupNormActVisits group_norm_act_visits(const GroupNormActShape&, bool aligned, bool moments, const DeviceFacts&,
                                         int64_t block, int limit);

}  // namespace genimg_fast::cuda
