// Launching a kernel: the grid's blocks run one after the other, before the launch returns.
#pragma once
#include <cstddef>
#include <tuple>
#include <type_traits>

#include "language.h"
#include "runtime_api.h"

namespace cuda_emulator {

struct Launch {
  const void* kernel;
  const char* name;
  dim3 grid, block;
  size_t dynamic_bytes;
  cudaStream_t stream;
};

// Runs `thread(context)` once per thread of the grid.
void run_grid(const Launch& launch, void (*thread)(void*), void* context);

template <typename... Parameters, typename... Arguments>
void run(Launch launch, void (*kernel)(Parameters...), const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel arguments travel as plain bytes");
  static_assert(!(std::is_reference_v<Parameters> || ...), "a reference would point into the host's memory");
  using Values = std::tuple<void (*)(Parameters...), Parameters...>;
  Values values(kernel, static_cast<Parameters>(arguments)...);  // by value and once, as on the GPU
  launch.kernel = reinterpret_cast<const void*>(kernel);
  run_grid(
      launch,
      [](void* context) {
        std::apply([](auto function, const auto&... each) { function(each...); }, *static_cast<Values*>(context));
      },
      &values);
}

}  // namespace cuda_emulator

#define DGCL_LAUNCH(kernel, grid, block, smem, stream, ...)                                                  \
  ::cuda_emulator::run(                                                                                      \
      ::cuda_emulator::Launch{nullptr, #kernel, (grid), (block), (smem), static_cast<cudaStream_t>(stream)}, \
      (kernel)__VA_OPT__(, ) __VA_ARGS__)
