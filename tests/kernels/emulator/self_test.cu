#include <stdexcept>
#include <vector>

#include "self_test.h"
#include "self_test_kernels.cuh"

namespace dgcl::self_test {
namespace {

// Small whole numbers, so sums are exact in any order.
std::vector<float> numbers(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>((i * 37 + 11) % 29 - 9);
  return values;
}

template <Fault fault = Fault::none>
bool transpose() {
  constexpr int count = 3;
  const std::vector<float> in = numbers(count * 256);
  std::vector<float> out(count * 256);
  DGCL_LAUNCH(transpose_kernel<fault>, dim3(1), dim3(256), 0, cuda_emulator::current_stream(), in.data(), out.data(),
              count);
  bool right = true;
  for (int i = 0; i < count * 256; ++i) right = right && out[i] == in[i / 256 * 256 + i % 16 * 16 + i / 16 % 16];
  return right;
}

template <Fault fault = Fault::none>
bool sum() {
  constexpr int n = 300;
  const std::vector<float> in = numbers(n);
  float total = 0, want = 0;
  for (float x : in) want += x;
  DGCL_LAUNCH(sum_kernel<fault>, dim3(3), dim3(128), 0, cuda_emulator::current_stream(), in.data(), &total, n);
  return total == want;
}

template <Fault fault = Fault::none>
bool reverse() {
  const std::vector<float> in = numbers(32);
  std::vector<float> out(32);
  DGCL_LAUNCH(reverse_kernel<fault>, dim3(1), dim3(32), 0, cuda_emulator::current_stream(), in.data(), out.data());
  return std::vector<float>(out.rbegin(), out.rend()) == in;
}

template <Fault fault = Fault::none>
bool twice() {
  constexpr int n = 200;
  const std::vector<float> in = numbers(n);
  std::vector<float> out(n);
  DGCL_LAUNCH(double_kernel<fault>, dim3(2), dim3(32), 0, cuda_emulator::current_stream(), in.data(), out.data(), n);
  bool right = true;
  for (int i = 0; i < n; ++i) right = right && out[i] == 2 * in[i];
  return right;
}

template <Fault fault = Fault::none>
bool product() {
  constexpr int depth = 64;
  const std::vector<float> values = numbers(24 * depth);
  std::vector<__half> rows;
  for (float x : values) rows.push_back(__float2half_rn(x));
  std::vector<float> c(128);
  DGCL_LAUNCH(product_kernel<fault>, dim3(1), dim3(32), 0, cuda_emulator::current_stream(), rows.data(),
              rows.data() + 16 * depth, c.data(), depth);
  bool right = true;
  for (int i = 0; i < 128; ++i) {
    float want = 0;
    for (int k = 0; k < depth; ++k) want += values[i / 8 * depth + k] * values[(16 + i % 8) * depth + k];
    right = right && c[i] == want;
  }
  return right;
}

constexpr SelfTest kAll[] = {
    {"transpose", transpose},
    {"transpose/missing_barrier_before_read", transpose<Fault::missing_barrier_before_read>},
    {"transpose/missing_barrier_before_write", transpose<Fault::missing_barrier_before_write>},
    {"transpose/barrier_in_branch", transpose<Fault::barrier_in_branch>},
    {"transpose/shared_out_of_bounds", transpose<Fault::shared_out_of_bounds>},
    {"sum", sum},
    {"sum/mask_too_wide", sum<Fault::mask_too_wide>},
    {"sum/lane_exited", sum<Fault::lane_exited>},
    {"sum/uninitialised_shared", sum<Fault::uninitialised_shared>},
    {"sum/race_between_blocks", sum<Fault::race_between_blocks>},
    {"reverse", reverse},
    {"reverse/missing_syncwarp", reverse<Fault::missing_syncwarp>},
    {"twice", twice},
    {"twice/misaligned_vector", twice<Fault::misaligned_vector>},
    {"twice/alignment_too_low", twice<Fault::alignment_too_low>},
    {"twice/global_out_of_bounds", twice<Fault::global_out_of_bounds>},
    {"product", product},
    {"product/copy_never_waited_for", product<Fault::copy_never_waited_for>},
    {"product/copy_waited_for_too_late", product<Fault::copy_waited_for_too_late>},
    {"product/copy_overwrites_what_is_read", product<Fault::copy_overwrites_what_is_read>},
};

}  // namespace

std::span<const SelfTest> all() { return kAll; }

std::vector<float> matrix_product(const std::vector<int>& a, const std::vector<int>& b, const std::vector<float>& c) {
  if (a.size() != 256 || b.size() != 128 || c.size() != 128) throw std::invalid_argument("wrong sizes");
  std::vector<__half> words;
  for (const std::vector<int>* rows : {&a, &b})
    for (int bits : *rows) words.push_back(__ushort_as_half(static_cast<unsigned short>(bits)));
  std::vector<float> sum = c;
  DGCL_LAUNCH(small_product_kernel, dim3(1), dim3(32), 0, cuda_emulator::current_stream(), words.data(),
              words.data() + 256, sum.data());
  return sum;
}

void try_launch(unsigned blocks, unsigned threads, size_t dynamic_bytes, int allowed) {
  if (allowed > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(one_kibibyte_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
  DGCL_LAUNCH(one_kibibyte_kernel, dim3(blocks), dim3(threads), dynamic_bytes, cuda_emulator::current_stream());
}

}  // namespace dgcl::self_test
