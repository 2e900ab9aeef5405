// The emulator's self-test kernels in Python.
#include <algorithm>

#include "binding.h"
#include "selftest.h"

namespace py = pybind11;
using simt::Array;
using simt::check;

namespace {

int size(const py::array& array) { return static_cast<int>(array.size()); }

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

Array<int> indices(int gx, int gy, int gz, int bx, int by, int bz) {
  Array<int> out(static_cast<py::ssize_t>(gx) * gy * gz * bx * by * bz);
  std::fill_n(out.mutable_data(), out.size(), 0);
  check(selftest::indices(out.mutable_data(), gx, gy, gz, bx, by, bz));
  return out;
}

float split_sum(const Array<float>& x, int blocks, const std::string& bug) {
  using selftest::Bug;
  Bug planted = Bug::none;
  if (bug == "missing_barrier") planted = Bug::missing_barrier;
  if (bug == "missing_fence") planted = Bug::missing_fence;
  if (bug == "shared_overrun") planted = Bug::shared_overrun;
  if (bug == "global_overrun") planted = Bug::global_overrun;
  Array<float> partials(blocks);
  unsigned finished = 0;
  float total = 0;
  check(selftest::split_sum(planted, x.data(), partials.mutable_data(), &finished, &total, size(x), blocks));
  return total;
}

Array<int> collectives(const Array<int>& in, int width) {
  require(in.size() <= 32, "at most 32 lanes");
  Array<int> out({8, 32});
  std::fill_n(out.mutable_data(), out.size(), 0);
  check(selftest::collectives(in.data(), out.mutable_data(), size(in), width));
  return out;
}

Array<int> barrier_votes(const Array<int>& in) {
  Array<int> out(in.size());
  check(selftest::barrier_votes(in.data(), out.mutable_data(), size(in)));
  return out;
}

void atomics(Array<unsigned> cells, int blocks, int threads) {
  require(cells.size() == 13, "13 cells");
  check(selftest::atomics(cells.mutable_data(), blocks, threads));
}

unsigned spin_lock(int blocks) {
  unsigned lock = 0, counter = 0;
  check(selftest::spin_lock(&lock, &counter, blocks));
  return counter;
}

void grid_barrier(int blocks) {
  unsigned arrived = 0;
  check(selftest::grid_barrier(&arrived, blocks));
}

const std::map<std::string, selftest::WalkBug> kWalkBugs = {{"none", selftest::WalkBug::none},
                                                            {"missing_wait", selftest::WalkBug::missing_wait},
                                                            {"wrong_phase", selftest::WalkBug::wrong_phase},
                                                            {"refill_race", selftest::WalkBug::refill_race},
                                                            {"early_peer_read", selftest::WalkBug::early_peer_read},
                                                            {"early_exit", selftest::WalkBug::early_exit},
                                                            {"bytes_missing", selftest::WalkBug::bytes_missing},
                                                            {"bytes_unexpected", selftest::WalkBug::bytes_unexpected},
                                                            {"misaligned", selftest::WalkBug::misaligned},
                                                            {"no_init", selftest::WalkBug::no_init}};

Array<float> cluster_walk(const Array<float>& x, int blocks, int cluster, bool bulk, const std::string& bug) {
  require(x.ndim() == 2 && x.shape(1) % (8 * cluster) == 0, "tiles x values, of which each block has a multiple of 8");
  const int tiles = static_cast<int>(x.shape(0)), share = static_cast<int>(x.shape(1)) / cluster;
  Array<float> out({x.shape(0), x.shape(1)});
  check(selftest::cluster_walk(kWalkBugs.at(bug), bulk, x.data(), out.mutable_data(), tiles, share, blocks, cluster));
  return out;
}

// x: tiles of as many values as the blocks of a cluster have in `pieces`, 12 less for each block.
Array<float> ring_walk(const Array<float>& x, int pieces, int slots, int blocks, int cluster, const std::string& bug) {
  const std::map<std::string, selftest::RingBug> bugs = {{"none", selftest::RingBug::none},
                                                         {"missing_wait", selftest::RingBug::missing_wait},
                                                         {"wrong_phase", selftest::RingBug::wrong_phase},
                                                         {"early_leave", selftest::RingBug::early_leave},
                                                         {"ignored_leave", selftest::RingBug::ignored_leave}};
  require(x.ndim() == 2 && x.shape(1) == (pieces * 128 - 3) * 4 * cluster, "tiles x (pieces * 512 - 12) * cluster");
  const int tiles = static_cast<int>(x.shape(0));
  Array<float> out({x.shape(0), x.shape(1)});
  check(selftest::ring_walk(bugs.at(bug), x.data(), out.mutable_data(), tiles, pieces, slots, blocks, cluster));
  return out;
}

Array<float> cluster_exchange(int cluster, int rounds, const std::string& bug) {
  const std::map<std::string, selftest::ExchangeBug> bugs = {{"none", selftest::ExchangeBug::none},
                                                             {"missing_wait", selftest::ExchangeBug::missing_wait},
                                                             {"one_place", selftest::ExchangeBug::one_place}};
  Array<float> out({cluster, rounds});
  check(selftest::cluster_exchange(bugs.at(bug), out.mutable_data(), rounds, cluster));
  return out;
}

Array<float> dynamic_reverse(const Array<float>& in, bool raise_limit) {
  Array<float> out(in.size());
  check(selftest::dynamic_reverse(in.data(), out.mutable_data(), size(in), raise_limit));
  return out;
}

// d + a b of arrays that hold 16-bit floats.
Array<float> mma(bool bfloat16, const Array<uint16_t>& a, const Array<uint16_t>& b, const Array<float>& d, int lanes) {
  Array<float> sums({16, 8});
  std::copy(d.data(), d.data() + 16 * 8, sums.mutable_data());
  check(selftest::mma(bfloat16, a.data(), b.data(), sums.mutable_data(), lanes));
  return sums;
}

void copy_128(const Array<float>& in, Array<float> out) {
  require(in.size() == out.size() && in.size() % 4 == 0, "equal sizes, multiples of 4");
  check(selftest::copy_128(in.data(), out.mutable_data(), size(in) / 4));
}

// Wraps a launcher that fills `elements` values of an array.
template <class T, class Launcher>
auto returning_array(py::ssize_t elements, Launcher launcher) {
  return [=] {
    Array<T> out(elements);
    std::fill_n(out.mutable_data(), elements, T{0});
    check(launcher(out.mutable_data()));
    return out;
  };
}

template <class To, class From>
auto converting(int (*launcher)(const From*, To*, int)) {
  return [=](const Array<From>& in) {
    Array<To> out(in.size());
    check(launcher(in.data(), out.mutable_data(), size(in)));
    return out;
  };
}

}  // namespace

void bind_selftest(py::module_& m) {
  const auto in = py::arg("in_").noconvert();

  m.def("indices", &indices);
  m.def("split_sum", &split_sum, py::arg("x").noconvert(), py::arg("blocks"), py::arg("bug") = "");
  m.def("collectives", &collectives, in, py::arg("width") = 32);
  m.def("barrier_votes", &barrier_votes, in);
  m.def("atomics", &atomics, py::arg("cells").noconvert(), py::arg("blocks"), py::arg("threads"));
  m.def("spin_lock", &spin_lock, py::arg("blocks"));
  m.def("grid_barrier", &grid_barrier, py::arg("blocks"));
  m.def("cluster_walk", &cluster_walk, py::arg("x").noconvert(), py::arg("blocks"), py::arg("cluster"),
        py::arg("bulk") = true, py::arg("bug") = "none");
  m.def("ring_walk", &ring_walk, py::arg("x").noconvert(), py::arg("pieces"), py::arg("slots"), py::arg("blocks"),
        py::arg("cluster"), py::arg("bug") = "none");
  m.def("cluster_exchange", &cluster_exchange, py::arg("cluster"), py::arg("rounds"), py::arg("bug") = "none");
  m.def("early_launch", [](bool wait) { check(selftest::early_launch(wait)); }, py::arg("wait"));
  m.def("dynamic_reverse", &dynamic_reverse, in, py::arg("raise_limit"));
  m.def("copy_128", &copy_128, in, py::arg("out").noconvert());
  m.def("mma", &mma);
  m.def(
      "clear", [](Array<float> x) { check(selftest::clear(x.mutable_data(), x.nbytes())); }, py::arg("x").noconvert());
  m.def("float_to_half", converting(&selftest::float_to_half), in);
  m.def("half_to_float", converting(&selftest::half_to_float), in);
  m.def("float_to_bfloat16", converting(&selftest::float_to_bfloat16), in);
  m.def("bfloat16_to_float", converting(&selftest::bfloat16_to_float), in);

  m.def("shared_reuse", [](bool second_barrier) {
    return returning_array<float>(128, [=](float* out) { return selftest::shared_reuse(second_barrier, out); })();
  });
  m.def("warp_reverse", [](bool synchronise) {
    return returning_array<float>(32, [=](float* out) { return selftest::warp_reverse(synchronise, out); })();
  });
  m.def("divergent_barrier", returning_array<int>(64, &selftest::divergent_barrier));
  m.def("deadlock", returning_array<float>(32, &selftest::deadlock));
  m.def("exited_lane", returning_array<float>(32, &selftest::exited_lane));
  m.def("mixed_collectives", returning_array<float>(32, &selftest::mixed_collectives));
  m.def("lane_outside_mask", returning_array<float>(32, &selftest::lane_outside_mask));
  m.def("uninitialised_shared", returning_array<float>(64, &selftest::uninitialised_shared));
  m.def("misaligned_load", [](const Array<float>& x) {
    float out = 0;
    check(selftest::misaligned_load(x.data(), &out));
    return out;
  });
  m.def("trap", [] { check(selftest::trap()); });
  m.def("large_block", [](int threads) { check(selftest::large_block(threads)); });
  m.def("clusters_of_2", [] {
    int clusters = 0;
    check(selftest::clusters_of_2(&clusters));
    return clusters;
  });
}
