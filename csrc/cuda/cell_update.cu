// Host side of the cell updates: the launches.
#include <algorithm>
#include <iterator>

#include "cell_update.cuh"

namespace genimg_fast::cuda {
namespace {

using namespace recurrent;

template <class T, Cell C>
struct ForwardKernels {
  static constexpr auto one = update_forward<T, 1, C>, wide = update_forward<T, kVector<T>, C>;
};
template <class T, Cell C>
struct BackwardKernels {
  static constexpr auto one = update_backward<T, 1, C>, wide = update_backward<T, kVector<T>, C>;
};

template <template <class, Cell> class Kernels>
int launch(const CellUpdate& call, void* stream) {
  return dispatch_element(call.dtype, [&](auto element) {
    using T = typename decltype(element)::T;
    using Gru = Kernels<T, Cell::gru>;
    using Lstm = Kernels<T, Cell::lstm>;
    const void* const data[] = {call.gates,  call.gates_h,    call.state,        call.h,         call.c, call.grad_h,
                                call.grad_c, call.grad_gates, call.grad_gates_h, call.grad_state};
    const bool wide = call.inner % kVector<T> == 0 &&
                      std::all_of(std::begin(data), std::end(data), [](const void* p) { return is_aligned(p, 16); });
    const int64_t blocks = divide_up(call.outer * call.inner, kUpdateThreads * int64_t{wide ? kVector<T> : 1});
    if (blocks > INT32_MAX) return kInvalidConfiguration;
    const auto kernel = call.cell == Cell::gru ? (wide ? Gru::wide : Gru::one) : (wide ? Lstm::wide : Lstm::one);
    return gpu::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kUpdateThreads), 0,
                       static_cast<gpu::stream_t>(stream), call);
  });
}

}  // namespace

int cell_update_forward(const CellUpdate& call, void* stream) { return launch<ForwardKernels>(call, stream); }

int cell_update_backward(const CellUpdate& call, void* stream) { return launch<BackwardKernels>(call, stream); }

}  // namespace genimg_fast::cuda
