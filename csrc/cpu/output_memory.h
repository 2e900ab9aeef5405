#pragma once
// Outputs of CPU kernels in memory that is cheap to touch.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace genimg_fast {

// An uninitialised tensor like t, dense in `format`.
//
// Memory fresh from the operating system costs more than the arithmetic of a fused kernel: each page is cleared at its
// first write.  Large outputs therefore lie in huge pages, and the memory of freed ones is kept for the next.
//
// `interleaved` says that several threads will write to each page.  They would reach a fresh one at the same time, each
// would clear 2 MB, and only one copy would be kept; so fresh pages are then taken here, each by one thread.  Where a
// page has one writer, its first write does that better: the cleared page is still in the cache then.
torch::stable::Tensor empty_output(const torch::stable::Tensor& t, torch::headeronly::MemoryFormat format,
                                   bool interleaved = false);

// The same with sizes and dtype of its own.
torch::stable::Tensor empty_output(
    const torch::stable::Tensor& t, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type,
    torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous);

constexpr int64_t streaming_bytes = int64_t(16) << 20;  // of an output that no cache would keep

// Whether an output of so many bytes is written past the caches: a large one, and one of a pass that reads and writes
// `touched` bytes, more than the last cache of this machine keeps.  What is read next would otherwise be replaced by
// the output, and of that little would be left when it is read.
bool goes_past_caches(int64_t bytes, int64_t touched);

}  // namespace genimg_fast
