// The self-tests by name: "transpose" is the kernel as it should be, "transpose/shared_out_of_bounds" one with a fault.
#pragma once
#include <span>

namespace dgcl::self_test {

struct SelfTest {
  const char* name;
  bool (*right)();  // runs the kernel; whether its values were as expected
};

std::span<const SelfTest> all();

}  // namespace dgcl::self_test
