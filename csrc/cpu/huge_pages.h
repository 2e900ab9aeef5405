#pragma once
// Fresh large outputs cost more than the arithmetic that fills them: the kernel hands them out, zeroed, 4 KiB at a
// time.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace genimg_fast {

// torch::empty_like for a dense tensor; large ones ask for huge pages (advice only: nothing depends on it).
inline torch::stable::Tensor empty_like_huge_pages(const torch::stable::Tensor& like, int64_t bytes) {
  torch::stable::Tensor t = torch::stable::empty_like(like);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, worthwhile = uintptr_t(4) << 20;
  if (static_cast<uintptr_t>(bytes) >= worthwhile) {
    const uintptr_t data = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const uintptr_t first = (data + page - 1) / page * page, last = (data + bytes) / page * page;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)bytes;
#endif
  return t;
}

}  // namespace genimg_fast
