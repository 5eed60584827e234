"""Faults for the contrastive loss and its gradient."""

from . import (
    ALIGNMENT,
    BRANCH,
    GLOBAL,
    LAUNCH,
    MASK,
    MERGE,
    PLACE,
    RACE,
    READ,
    SHARED,
    TAIL,
    UNSET,
    WAIT,
    WRITE,
    planted,
)

loss = planted("density_contrast", "density_contrast_kernel.cu")
loss_formula = planted("density_contrast", "../math/contrast.h")
gradient_formula = planted("density_contrast_backward", "../math/contrast.h")
loss_launch = planted("density_contrast", "density_contrast_kernel.cu")
loss_tile = planted("density_contrast", "contrast_tile.cuh")
gradient = planted("density_contrast_backward", "density_contrast_backward_kernel.cu")
gradient_launch = planted("density_contrast_backward", "density_contrast_backward_kernel.cu")
gradient_tile = planted("density_contrast_backward", "contrast_tile.cuh")

FAULTS = [
    # ---- tiles, which both operators share
    loss_tile(READ, "    __pipeline_wait_prior(1);\n    __syncthreads();\n", "    __pipeline_wait_prior(1);\n"),
    gradient_tile(READ, "    __pipeline_wait_prior(1);\n    __syncthreads();\n", "    __pipeline_wait_prior(1);\n"),
    loss_tile(WRITE, "    use(step, step % 2);\n    __syncthreads();\n", "    use(step, step % 2);\n"),
    gradient_tile(WRITE, "    use(step, step % 2);\n    __syncthreads();\n", "    use(step, step % 2);\n"),
    loss_tile(BRANCH, "    use(step, step % 2);\n    __syncthreads();\n",
              "    use(step, step % 2);\n    if (threadIdx.x >= kWarp || step + 1 < steps) __syncthreads();\n"),
    loss_tile(WAIT, "    __pipeline_wait_prior(1);\n", "    __pipeline_wait_prior(2);\n"),
    gradient_tile(WAIT, "    __pipeline_wait_prior(1);\n", ""),
    loss_tile(WAIT, "load(step + 1, (step + 1) % 2);", "load(step + 1, step % 2);"),
    loss_tile(WAIT, "  if (steps > 0) load(0, 0);\n  __pipeline_commit();\n", "  if (steps > 0) load(0, 0);\n"),
    loss_tile(WAIT, "(step + 1) % 2);\n    __pipeline_commit();\n", "(step + 1) % 2);\n"),
    loss_tile(UNSET, "  else\n    store_vector(to, ContrastVector<T>{});\n", ""),
    loss_tile(UNSET, "d < p.unit_pitch; d += kWarp", "d < p.dim; d += kWarp"),
    loss_tile(ALIGNMENT, "kPitch = kDepth + kVector;", "kPitch = kDepth + 1;"),
    loss_tile(GLOBAL, "capacity : clamped(counts[group], capacity);", "capacity : counts[group];", "address"),
    gradient_tile(GLOBAL, "  if (group >= p.groups || !contrast_is_used", "  if (!contrast_is_used", "address"),
    loss_tile(GLOBAL, "                  i < left && d < pitch);", "                  d < pitch);", "address"),
    loss_tile(PLACE, "products[r * Tile::kOthers + lane + c * kWarp]", "products[r * Tile::kOthers + c + lane * Tile::kOthersPerLane]"),
    loss_tile(PLACE, "return slot < p.num_negatives ? RowReader<T>(p.negatives, slot, group)",
              "return slot < p.num_negatives ? RowReader<T>(p.negatives, slot, 0)"),
    # ---- loss
    loss(ALIGNMENT, "DGCL_SHARED_ALIGNED(16, T, stages,", "DGCL_SHARED_ALIGNED(4, T, stages,"),
    loss(SHARED, "stages, [2 * Tile::kStage]);", "stages, [Tile::kStage]);"),
    loss(SHARED, "[Tile::kOwn * Tile::kOthers]);", "[Tile::kOwn * Tile::kOthers - 1]);"),
    loss(MASK, "__shfl_xor_sync(kFullWarp, total[r].maximum, step)", "__shfl_xor_sync(kFullWarp / 2, total[r].maximum, step)"),
    loss(
        MASK,
        "    const double at_key = key_logit<T>(p, group, mine + r);\n    total[r].add(at_key);\n    if (lane != 0) continue;\n",
        "    if (lane != 0) continue;\n    const double at_key = key_logit<T>(p, group, mine + r);\n    total[r].add(at_key);\n",
    ),
    loss(RACE, "    if (lane != 0) continue;\n", "", "thread"),
    loss(GLOBAL, " && first + threadIdx.x < p.num_anchors)", ")", "address"),
    loss(GLOBAL, "  if (group >= p.groups) return;\n", "", "address"),
    loss(UNSET, "    lse[first + threadIdx.x] = 0;\n", "    ;\n"),
    loss(TAIL, "j < negatives.count(); j += kWarp", "j < Tile::kOthers; j += kWarp"),
    loss(TAIL, "count > 0 ? static_cast<T>(sum / static_cast<double>(count)) : T(0)", "static_cast<T>(sum / static_cast<double>(count))"),
    loss(MERGE, "step = kWarp / 2; step > 0", "step = kWarp / 4; step > 0"),
    loss(MERGE, "    total[r].add(at_key);\n", ""),
    loss(MERGE, "total[r].value(a.eps);", "total[r].value(0);"),
    loss(PLACE, "warp * Tile::kOwnPerWarp * Tile::kOthers;", "warp * Tile::kOthers;"),
    loss_formula(PLACE, "product * inverse :", "product :"),
    loss_formula(PLACE, "inverse != 0 ?", "true ?"),
    gradient_formula(PLACE, "inverse != 0 ?", "true ?"),
    loss_launch(LAUNCH, "(p.num_anchors + own - 1) / own", "p.num_anchors / own"),
    loss_launch(LAUNCH, "p.groups * p.slots();", "p.groups * (p.slots() - 1);"),
    loss_launch(LAUNCH, "dim3(kContrastThreads), 0, stream, a);\n  }", "dim3(kContrastThreads / 2), 0, stream, a);\n  }"),
    # ---- gradient
    gradient(ALIGNMENT, "DGCL_SHARED_ALIGNED(16, T, stages,", "DGCL_SHARED_ALIGNED(8, T, stages,"),
    gradient(ALIGNMENT, "DGCL_SHARED_ALIGNED(16, T, tile_weights,", "DGCL_SHARED_ALIGNED(8, T, tile_weights,"),
    gradient(SHARED, "kShared = 2 * (", "kShared = ("),
    gradient(SHARED, "weights + r * Tile::kOthers + step * Tile::kRows + k", "weights + (r + 1) * Tile::kOthers + step * Tile::kRows + k"),
    gradient(RACE, "  if (threadIdx.x % kWarp != 0) return;\n", "", "thread"),
    gradient(RACE, "T* weights = tile_weights + warp * kOwnPerWarp * Tile::kOthers;", "T* weights = tile_weights;", "thread"),
    gradient(MASK, "  if (anchor >= count) return;\n", "  if (anchor >= count || static_cast<int>(threadIdx.x % kWarp) >= p.dim) return;\n"),
    gradient(BRANCH, "  if (first >= count) return;\n", "  if (first + static_cast<int>(threadIdx.x) / kWarp >= count) return;\n"),
    gradient(GLOBAL, "row + i < rows && from_column < pitch", "row + i < rows", "address"),
    gradient(GLOBAL, "        if (d < a.problem.dim) out[d]", "        out[d]", "address"),
    gradient(GLOBAL, "    if (mine + r >= count) break;\n", "", "address"),
    gradient(UNSET, "return store_zeros<T>(p.dim, to.raw, to.dtype, row);", "return;"),
    gradient(TAIL, "weight = j < rows && mine + r < count ? side.weight(mine + r, passed + j, weight) : T(0);",
             "weight = mine + r < count ? side.weight(mine + r, passed + j, weight) : T(0);"),
    gradient(PLACE, "row == negative_count; }", "row == a.problem.num_negatives; }"),
    gradient(PLACE, "row = group * p.num_negatives + slot - p.num_anchors;", "row = group * p.num_negatives + slot;"),
    gradient(PLACE, "kOwnAnchors ? negative_count : anchor_count}", "kOwnAnchors ? anchor_count : negative_count}"),
    gradient(PLACE, "const int row = step * Tile::kRows + to_row,", "const int row = to_row,"),
    gradient(PLACE, "item % column_blocks) * Tile::kColumns;", "item % column_blocks);"),
    gradient(MERGE, "static_cast<double>(anchor_count),", "static_cast<double>(a.problem.num_anchors),"),
    gradient(MERGE, "starts && d < pitch ? at_key * key[d] : T(0);", "T(0);"),
    gradient_launch(LAUNCH, "a.needs_key_grad ? p.groups * slots : anchors", "anchors"),
    gradient_launch(LAUNCH, "a, p.num_negatives + 1, stream", "a, p.num_negatives, stream"),
    gradient_launch(LAUNCH, "(a.problem.unit_pitch + Tile::kColumns - 1) / Tile::kColumns", "1"),
]  # fmt: skip
