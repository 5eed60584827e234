#include "../math/random_bits.h"

#include "checks.h"

namespace dgcl {

void check_random_bits(const Tensor& rng_state, int64_t count) {
  const char* op = "random_bits";
  check_int64_vector(op, "rng_state", rng_state, 2, "[2]");
  if (count < 0) fail(op, "count must be at least 0, got ", count);
  if (count > kMostRandomWords) fail(op, "count must be less than 2^32, got ", count);
}

}  // namespace dgcl
