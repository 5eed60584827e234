#include "levels.h"
#include "primitives_impl.h"
#include "vec_portable.h"

namespace dgcl::portable {

const Primitives<float> float_primitives = make_primitives<Vec<float, 8>>();
const Primitives<double> double_primitives = make_primitives<Vec<double, 4>>();

}  // namespace dgcl::portable
