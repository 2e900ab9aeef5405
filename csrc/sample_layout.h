#pragma once
// Where the elements of tensors of shape (B, ...) lie; no torch header.
#include <cstdint>

namespace genimg_fast {

// What kernels see of a shape (B, ...): B samples of `elements` elements each, numbered in row-major order.  The
// dimensions of a sample are merged as far as every tensor of the call allows; the innermost comes first.
constexpr int max_sample_dims = 8;

struct Samples {
  int64_t batch, elements;
  int dims;  // at least 1
  int64_t sizes[max_sample_dims];

  int64_t numel() const { return batch * elements; }
};

// Where one tensor's elements lie, in elements from its data pointer: sample b begins at b * batch_stride; within it,
// the element at index[0 .. dims) lies at the sum of index[d] * strides[d].
struct SampleLayout {
  int64_t batch_stride;
  int64_t strides[max_sample_dims];
  bool row_major;  // element i of a sample lies at i
};

}  // namespace genimg_fast
