#pragma once
// Outputs of CPU kernels in memory that is cheap to touch.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older kernels refuse it, and pages come with the first write as ever
#endif
#endif

namespace genimg_fast {

// An uninitialised tensor of `bytes` bytes, like t and dense in `format`.  Large ones are fresh from the operating
// system, and their page faults would cost more than the kernel's arithmetic: huge pages make them few.
//
// `interleaved` says that several threads will write to each page.  They would reach it at the same time, each would
// clear 2 MB, and only one copy would be kept; so the pages are taken here, each by one thread.  Where a page has one
// writer, its first write does that better: the cleared page is still in the cache then.
inline torch::stable::Tensor empty_like_huge_pages(const torch::stable::Tensor& t,
                                                   torch::headeronly::MemoryFormat format, int64_t bytes,
                                                   bool interleaved = false) {
  torch::stable::Tensor result =
      torch::stable::empty(t.sizes(), t.scalar_type(), std::nullopt, t.device(), std::nullopt, format);
#if defined(__linux__)
  constexpr int64_t huge = int64_t(2) << 20, page = 4096;
  if (bytes >= 2 * huge) {
    const int64_t address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(result.mutable_data_ptr()));
    const int64_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    const auto advise = [](int64_t from, int64_t to, int advice) {
      madvise(reinterpret_cast<void*>(static_cast<uintptr_t>(from)), static_cast<size_t>(to - from), advice);
    };
    advise(begin, end, MADV_HUGEPAGE);
    if (!interleaved) return result;
    torch::stable::parallel_for(begin / huge, (end + huge - 1) / huge, 1, [&](int64_t first, int64_t last) {
      advise(std::max(begin, first * huge), std::min(end, last * huge), MADV_POPULATE_WRITE);
    });
  }
#endif
  return result;
}

}  // namespace genimg_fast
