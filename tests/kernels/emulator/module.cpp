// The Python module of the emulated kernels. Loading it registers torch.ops.dgcl_emulated. Its functions control the
// emulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <tuple>

#include "filter_probe.h"
#include "include/cuda_emulator/half.h"
#include "include/cuda_emulator/runtime_api.h"
#include "include/cuda_emulator/scheduler.h"
#include "self_test.h"

namespace {

using namespace cuda_emulator;

// Like the bindings' device guard.
struct Device {
  Device() { cuda_emulator_enter_device(); }
  ~Device() { cuda_emulator_leave_device(); }
};

void configure(const std::string& schedule, uint64_t seed, int multiprocessors, int refuse_launch,
               int shared_kilobytes) {
  Options chosen;
  if (schedule == "sequential")
    chosen.schedule = Schedule::sequential;
  else if (schedule == "reverse")
    chosen.schedule = Schedule::reverse;
  else if (schedule == "random")
    chosen.schedule = Schedule::random;
  else
    throw pybind11::value_error("schedule must be sequential, reverse or random, got " + schedule);
  if (multiprocessors < 1) throw pybind11::value_error("multiprocessors must be at least 1");
  const int most = static_cast<int>(kMostShared / 1024) + 1;
  if (shared_kilobytes < 49 || shared_kilobytes > most)
    throw pybind11::value_error("shared_kilobytes must lie in [49, " + std::to_string(most) + "]");
  chosen.seed = seed;
  chosen.multiprocessors = multiprocessors;
  chosen.refuse_launch = refuse_launch;
  chosen.shared_kilobytes = shared_kilobytes;
  if (chosen.multiprocessors != options().multiprocessors || chosen.shared_kilobytes != options().shared_kilobytes)
    next_device();
  options() = chosen;
}

pybind11::list self_test_names() {
  pybind11::list names;
  for (const dgcl::self_test::SelfTest& test : dgcl::self_test::all()) names.append(test.name);
  return names;
}

bool self_test(std::string_view name) {
  for (const dgcl::self_test::SelfTest& test : dgcl::self_test::all())
    if (name == test.name) return test.right();
  throw pybind11::value_error("no self-test has this name");
}

// 16-bit words and the numbers they represent.
std::vector<float> widen(const std::string& type, const std::vector<int>& words) {
  std::vector<float> values;
  for (int word : words) {
    const auto bits = static_cast<unsigned short>(word);
    values.push_back(type == "half" ? __half2float(__ushort_as_half(bits))
                                    : __bfloat162float(__ushort_as_bfloat16(bits)));
  }
  return values;
}

std::vector<int> narrow(const std::string& type, const std::vector<float>& values) {
  std::vector<int> words;
  for (float x : values)
    words.push_back(type == "half" ? __half_as_ushort(__float2half_rn(x))
                                   : __bfloat16_as_ushort(__float2bfloat16_rn(x)));
  return words;
}

}  // namespace

PYBIND11_MODULE(_emulated, m) {
  using pybind11::arg;
  m.def("configure", &configure, arg("schedule") = "sequential", arg("seed") = 1, arg("multiprocessors") = 3,
        arg("refuse_launch") = 0, arg("shared_kilobytes") = 100);
  m.def("reset", &reset, "Moves to another device, and forgets what was counted.");
  m.def("self_tests", &self_test_names);
  m.def("self_test", &self_test, arg("name"), pybind11::call_guard<Device>());
  m.def("passed_barriers", [] { return passed_barriers(); });
  m.def("runtime_calls", [] { return runtime_calls(); });
  m.def("widen", &widen);
  m.def("narrow", &narrow);
  m.def("matrix_product", &dgcl::self_test::matrix_product, pybind11::call_guard<Device>());
  m.def(
      "filter_scores",
      [](const std::vector<float>& queries, const std::vector<float>& bank, int64_t dim, bool l2, bool unit) {
        const dgcl::FilterScores found = dgcl::filter_scores(queries, bank, dim, l2, unit);
        return std::tuple(found.scores, found.bounds, found.mean);
      },
      arg("queries"), arg("bank"), arg("dim"), arg("l2"), arg("unit"), pybind11::call_guard<Device>());
  m.def("try_launch", &dgcl::self_test::try_launch, pybind11::call_guard<Device>());
}
