#pragma once
#include <cstdint>

namespace dgcl {

struct RandomBitsArguments {
  const int64_t* rng_state;  // [2]: seed and step
  int64_t stream;
  int64_t count;  // fewer than 2^32
  int64_t* bits;  // [count]
};

int launch_random_bits(const RandomBitsArguments& arguments, void* stream);

}  // namespace dgcl
