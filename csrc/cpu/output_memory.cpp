#include "output_memory.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "../build_info.h"
#include "../tensor.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older kernels refuse it, and pages come with the first write as ever
#endif
#ifndef MADV_FREE
#define MADV_FREE 8  // Linux 4.5
#endif
#endif

namespace genimg_fast {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

#if defined(__linux__)
namespace {

constexpr int64_t huge_page = int64_t(2) << 20;
constexpr int64_t smallest_block = int64_t(4) << 20;  // malloc recycles smaller ones by itself
constexpr int64_t most_idle = int64_t(1) << 30;
constexpr int64_t most_warm = int64_t(64) << 20;  // not offered to the system

char* map_aligned(int64_t bytes) {
  void* mapped = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  char* const aligned =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + huge_page - 1) / huge_page * huge_page);
  if (aligned > begin) munmap(begin, aligned - begin);
  if (begin + huge_page > aligned) munmap(aligned + bytes, begin + huge_page - aligned);
  madvise(aligned, bytes, MADV_HUGEPAGE);
  return aligned;
}

// Blocks of whole huge pages.  An idle block is marked with MADV_FREE: it is used again without a page fault, yet when
// memory runs short the system takes its pages without asking.  Marking interrupts every core that runs a thread of
// this process, so the blocks that became idle last, which are those about to be used again, are not marked yet.
class Pool {
 public:
  // Never destroyed: tensors may be freed while the process exits.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // `fresh` says whether the block's pages have yet to be cleared.  Null if there is no memory, even without idle
  // blocks.
  char* take(int64_t bytes, bool* fresh) {
    const int64_t size = (bytes + huge_page - 1) / huge_page * huge_page;
    std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that fits without wasting more than a quarter, the latest of those: it may still be in the cache.
    auto best = idle_.end();
    for (auto block = idle_.begin(); block != idle_.end(); ++block)
      if (block->size >= size && block->size <= size + size / 4 && (best == idle_.end() || block->size <= best->size))
        best = block;
    Block block{nullptr, size};
    *fresh = best == idle_.end();
    if (*fresh) {
      block.data = map_aligned(size);
      if (block.data == nullptr) {
        release(0);
        block.data = map_aligned(size);
      }
      if (block.data == nullptr) return nullptr;
    } else {
      block = *best;
      idle_.erase(best);
      idle_bytes_ -= block.size;
    }
    used_[block.data] = block.size;
    used_bytes_ += block.size;
    peak_bytes_ = std::max(peak_bytes_, used_bytes_);
    return block.data;
  }

  void give_back(char* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(data);
    const Block block{data, found->second};
    used_.erase(found);
    used_bytes_ -= block.size;
    idle_.push_back(block);
    idle_bytes_ += block.size;
    release(most_idle);
    offer();
  }

  // Unmaps the blocks that have been idle longest until at most `keep` bytes are idle.
  void release_idle(int64_t keep) {
    std::lock_guard<std::mutex> lock(mutex_);
    release(keep);
  }

  // Bytes in use at the most since the last call.
  int64_t take_peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t peak = peak_bytes_;
    peak_bytes_ = used_bytes_;
    return peak;
  }

 private:
  struct Block {
    char* data;
    int64_t size;
    bool offered = false;
  };

  Pool() {
    // A child process must not inherit a lock that a thread of its parent holds.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  // Marks all idle blocks but the latest with MADV_FREE.
  void offer() {
    int64_t later = 0;
    for (auto block = idle_.rbegin(); block != idle_.rend(); ++block) {
      later += block->size;
      if (later <= most_warm || block->offered) continue;
      madvise(block->data, block->size, MADV_FREE);
      block->offered = true;
    }
  }

  void release(int64_t keep) {
    auto block = idle_.begin();
    for (; idle_bytes_ > keep; ++block) {
      munmap(block->data, block->size);
      idle_bytes_ -= block->size;
    }
    idle_.erase(idle_.begin(), block);
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // oldest first
  std::unordered_map<char*, int64_t> used_;
  int64_t idle_bytes_ = 0, used_bytes_ = 0, peak_bytes_ = 0;
};

void populate(char* data, int64_t bytes) {
  torch::stable::parallel_for(0, (bytes + huge_page - 1) / huge_page, 1, [&](int64_t first, int64_t last) {
    madvise(data + first * huge_page, (last - first) * huge_page, MADV_POPULATE_WRITE);
  });
}

}  // namespace
#endif

namespace {

void release_idle_outputs() {
#if defined(__linux__)
  Pool::instance().release_idle(0);
#endif
}

// Strides of a dense tensor with these sizes.
std::vector<int64_t> dense_strides(Sizes sizes, MemoryFormat format) {
  const int64_t dim = sizes.size();
  std::vector<int64_t> strides(dim);
  int64_t stride = 1;
  for (int64_t j = 0; j < dim; ++j) {
    // channels_last: channel, then the spatial dimensions from the last, then the batch.
    const int64_t d = format == MemoryFormat::Contiguous ? dim - 1 - j : j == 0 ? 1 : j == dim - 1 ? 0 : dim - j;
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return strides;
}

Tensor make_output(const Tensor& t, Sizes sizes, ScalarType type, MemoryFormat format, bool interleaved) {
  int64_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;  // the dtypes that have kernels
  for (int64_t size : sizes) bytes *= size;
#if defined(__linux__)
  if (bytes >= smallest_block) {
    bool fresh;
    if (char* const data = Pool::instance().take(bytes, &fresh)) {
      if (fresh && interleaved) populate(data, bytes);
      return uninitialised(
          torch::stable::from_blob(data, sizes, dense_strides(sizes, format), t.device(), type,
                                   [](void* p) { Pool::instance().give_back(static_cast<char*>(p)); }));
    }
  }
#endif
  // Straight from the allocator: through the dispatcher this would cost a microsecond.
  const std::vector<int64_t> strides = dense_strides(sizes, format);
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device_type, device_index;
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
  const auto allocate = [&] {
    return aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype, device_type, device_index,
                                    &result) == TORCH_SUCCESS;
  };
  if (allocate()) return uninitialised(Tensor(result));
  release_idle_outputs();
  // The words of torch's allocator, by which programs that then try a smaller batch know it; torch's macro would print
  // its C++ stack.
  GENIMG_FAST_CHECK(allocate(), "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                    " bytes for the result of a genimg_fast kernel");
  return uninitialised(Tensor(result));
}

// Of the last cache, as the system knows it (sysconf has the sum over all of a socket's); without an answer, so large
// that it makes no difference.
int64_t last_cache_bytes() {
  long long kilobytes = 0;
  if (FILE* const file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%lldK", &kilobytes) != 1) kilobytes = 0;
    std::fclose(file);
  }
  return kilobytes > 0 ? int64_t(kilobytes) << 10 : int64_t(1) << 40;
}

}  // namespace

bool goes_past_caches(int64_t bytes, int64_t touched) {
  static const int64_t kept = last_cache_bytes() / 4 * 3;
  return bytes >= streaming_bytes || touched >= kept;
}

Tensor empty_output(const Tensor& t, MemoryFormat format, bool interleaved) {
  return make_output(t, t.sizes(), t.scalar_type(), format, interleaved);
}

Tensor empty_output(const Tensor& t, const std::vector<int64_t>& sizes, ScalarType type, MemoryFormat format) {
  return make_output(t, sizes, type, format, false);
}

}  // namespace genimg_fast

// Through ctypes: torch's profiler does not see this memory, the benchmarks ask for it here.
GENIMG_FAST_EXPORT int64_t genimg_fast_take_output_peak() {
#if defined(__linux__)
  return genimg_fast::Pool::instance().take_peak();
#else
  return 0;
#endif
}

GENIMG_FAST_EXPORT void genimg_fast_release_idle_outputs() { genimg_fast::release_idle_outputs(); }

// Through ctypes, for tests.
GENIMG_FAST_EXPORT void genimg_fast_fill_new_tensors(int fill) { genimg_fast::fill_new_tensors = fill != 0; }
