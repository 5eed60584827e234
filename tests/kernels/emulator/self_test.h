// The self-tests by name: "transpose" is the correct kernel, "transpose/shared_out_of_bounds" one with a fault.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace dgcl::self_test {

struct SelfTest {
  const char* name;
  bool (*right)();  // runs the kernel, and returns whether its values are right
};

std::span<const SelfTest> all();

// c + a b^T on the emulated tensor cores: a [16][16], b [8][16] in float16, c [16][8].
std::vector<float> matrix_product(const std::vector<int>& a, const std::vector<int>& b, const std::vector<float>& c);
// A launch of a kernel with 1 KiB of static shared memory; `allowed` dynamic bytes are set as its attribute unless 0.
void try_launch(unsigned blocks, unsigned threads, size_t dynamic_bytes, int allowed);

}  // namespace dgcl::self_test
