#include "levels.h"
#if defined(__x86_64__)
#include "primitives_impl.h"
#include "vec_avx512.h"

namespace dgcl::avx512 {

const Primitives<float> float_primitives = make_primitives<VecFloat>();
const Primitives<double> double_primitives = make_primitives<VecDouble>();

}  // namespace dgcl::avx512
#endif
