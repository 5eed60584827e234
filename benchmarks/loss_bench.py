"""One step of the loss (forward, backward, push): ours against the published step in plain PyTorch.

    python benchmarks/loss_bench.py              # PASCAL VOC size, 21 and 11 classes present; several minutes
    python benchmarks/loss_bench.py --small      # seconds
    python benchmarks/loss_bench.py --compiled   # also both steps under torch.compile; compiling takes minutes
    python benchmarks/loss_bench.py --profile    # where our step spends its time

Both steps get the same maps, labels, full banks and threads, in the published setting (`DensityContrastLoss.paper`,
`published.PublishedStep`). They draw different random rows, so their losses agree only within a band. The run ends if
they leave it. Our forward includes the push. So "forward" is the time of a forward without a push, and "push" is the
difference between a forward with it and one without. common.py, on_cuda.py and peak_memory.py describe how time and
memory are measured.
"""

import argparse
import functools
import statistics

import on_cuda
import torch
from common import (
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    median_ratio,
    number,
    parser_of,
    print_table,
    say,
    set_threads,
    shared_with,
)
from loss_steps import (
    COMPILED,
    OURS,
    PUBLISHED,
    SIZES,
    Batch,
    Size,
    builders,
    copy_batch,
    input_bytes,
    make_batch,
)
from peak_memory import MEGABYTE, extra_memory, memory_method, peak_beyond_inputs

COLUMNS = (
    *MACHINE_COLUMNS,
    *("size", "batch", "side", "classes", "present", "background", "dim", "capacity", "contender"),
    *(
        "repeats",
        "forward_ms",
        "backward_ms",
        "push_ms",
        "total_ms",
        "total_min_ms",
        "total_max_ms",
    ),
    *("time_over_ours", "extra_mb", "memory_over_ours", "memory_method", "loss", "shared_anchors"),
)
# Each step draws its own negatives. With 512 of them the log-sum-exp of a class varies by about 0.02 of 5.5.
LOSS_BAND = 0.03
# If all candidates are used, both steps choose the same anchors, except where densities tie in float32.
SHARED_ANCHORS = 0.97


def check_agreement(steps: dict, batch: Batch, size: Size) -> dict[str, dict[str, float]]:
    """Compares the contenders on the same banks. The pixels with a gradient are the anchors.

    Args:
        steps: contenders by name.
        batch: the batch.
        size: its sizes.

    Returns:
        "loss" of each contender, and "shared": the fraction of the published step's anchors that it chose as well.

    Raises:
        Disagreement: losses or anchors differ too much.
    """
    losses, anchors = {}, {}
    for name, step in steps.items():
        loss = step.forward(batch)
        loss.backward()
        losses[name] = loss.item()
        anchors[name] = batch[0].grad.abs().amax(1) > 0
        batch[0].grad = None
    theirs, shared = losses[PUBLISHED], {}
    published = anchors[PUBLISHED].sum().item()
    most = torch.bincount(batch[1].flatten())[1:].max().item()
    for name, ours in losses.items():
        if not abs(ours - theirs) <= LOSS_BAND * abs(theirs) or theirs == 0:
            raise Disagreement(
                f"{name}: losses must agree within {LOSS_BAND:.0%}, got {ours} and {theirs}"
            )
        shared[name] = (anchors[name] & anchors[PUBLISHED]).sum().item() / max(1, published)
        all_candidates = most <= size.max_candidates and "TF32" not in name
        if all_candidates and shared[name] < SHARED_ANCHORS:
            raise Disagreement(
                f"{name}: {SHARED_ANCHORS:.0%} of the anchors must agree, got {shared[name]:.1%}"
            )
    return {"loss": losses, "shared": shared}


def memory_of(
    name: str, size: Size, present: int, background: float | None, device: str, threads: int
) -> int:
    """Returns the extra memory of one whole step, including the gradient of the projections."""
    set_threads(threads)
    place = torch.device(device)
    tiny, build = SIZES["tiny"], builders(place.type)[name]
    build(tiny, place).whole(make_batch(tiny, 3, None, place))  # loads libraries, starts threads
    step, batch = build(size, place), make_batch(size, present, background, place)
    return peak_beyond_inputs(lambda: step.whole(batch), place)


def measure(size: Size, present: int, options: argparse.Namespace) -> list[dict]:
    """Measures all contenders and returns one row for each."""
    device = torch.device(options.device)
    batch = make_batch(size, present, options.background, device)
    offered = builders(device.type, options.compiled)
    steps = {name: build(size, device) for name, build in offered.items()}
    say("  agreement")
    agreed = check_agreement(steps, batch, size)

    sets = on_cuda.input_sets(input_bytes(batch), device)
    batches = on_cuda.rotation(batch, copy_batch, sets)
    runs = {name: functools.partial(step.timed, batches, device) for name, step in steps.items()}
    if device.type == "cuda":  # warms up the allocator's pools and the clocks
        for run in runs.values():
            run()
    parts, others = alternate(runs, options.repeats, options.calm)
    totals = {name: [result["total"] for result in results] for name, results in parts.items()}
    facts = machine(device, others)
    extra = {}
    for name in steps:
        if name in COMPILED:  # another process would compile again, for minutes
            extra[name] = None
            continue
        say(f"  memory of {name}")
        extra[name] = extra_memory(
            memory_of,
            device,
            name,
            size,
            present,
            options.background,
            options.device,
            options.threads,
        )
    sizes = {k: getattr(size, k) for k in ("batch", "side", "classes", "dim", "capacity")}
    rows = []
    for name in steps:
        ms = {
            f"{part}_ms": round(1e3 * statistics.median(p[part] for p in parts[name]), 2)
            for part in ("forward", "backward", "push", "total")
        }
        known = extra[name] is not None and extra[OURS]
        rows.append(
            {
                **facts,
                "size": size.name,
                **sizes,
                "present": present,
                "background": options.background or "equal",
                "contender": name,
                "repeats": options.repeats,
                **ms,
                "total_min_ms": round(1e3 * min(totals[name]), 2),
                "total_max_ms": round(1e3 * max(totals[name]), 2),
                "time_over_ours": round(median_ratio(totals[name], totals[OURS]), 3),
                "extra_mb": round(extra[name] / MEGABYTE, 1) if known else None,
                "memory_over_ours": round(extra[name] / extra[OURS], 3) if known else None,
                "memory_method": memory_method(device),
                "loss": round(agreed["loss"][name], 5),
                "shared_anchors": round(agreed["shared"][name], 4),
            }
        )
        if device.type == "cuda":
            rows[-1]["input_sets"] = sets
            rows[-1]["host"] = on_cuda.host_column([part["ahead"] for part in parts[name]])
    return rows


def report(rows: list[dict], size: Size) -> None:
    first = rows[0]
    gradient = size.batch * size.side**2 * size.dim * 4 / MEGABYTE
    print(
        f"\nOne loss step, {size.batch} x {size.side} x {size.side} pixels, D = E = {size.dim}, "
        f"{first['present']} of {size.classes} classes present, banks of {size.capacity:,} rows, full; "
        f"{on_cuda.described(first)}{shared_with(first)}"
    )
    headers = ("contender", "forward ms", "backward", "push", "total", "time / ours", "extra MB")
    table = []
    for row in rows:
        times = [number(row[f"{part}_ms"]) for part in ("forward", "backward", "push", "total")]
        extra = (
            number(row["extra_mb"]),
            number(row["memory_over_ours"], 2) + "x",
            f"{row['loss']:.4f}",
        )
        cells = (row["contender"], *times, number(row["time_over_ours"], 2) + "x", *extra)
        table.append((*cells, row["host"]) if "host" in row else cells)
    headers += ("memory / ours", "loss", "host") if "host" in first else ("memory / ours", "loss")
    print_table(headers, table)
    print(
        f"The projections' gradient takes {gradient:.0f} MB of each extra memory. Shared anchors: "
        f"{first['shared_anchors']:.1%}"
    )


def profile(size: Size, present: int, options: argparse.Namespace) -> None:
    """Prints our step by operator, largest first."""
    device = torch.device(options.device)
    batch = make_batch(size, present, options.background, device)
    step = builders(device.type)[OURS](size, device)
    step.whole(batch)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as record:
        step.whole(batch)
    averages = record.key_averages(group_by_input_shape=True)
    print(f"\nOur step by operator, {size.name}, {present} classes present")
    print(
        averages.table(
            sort_by=f"self_{device.type}_time_total", row_limit=16, max_shapes_column_width=60
        )
    )


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--small", action="store_true", help="small sizes, which take seconds")
    parser.add_argument("--tiny", action="store_true", help="only check that it runs")
    parser.add_argument("--compiled", action="store_true", help="also measure under torch.compile")
    parser.add_argument("--present", type=int, nargs="+", help="classes present; default 21 and 11")
    parser.add_argument(
        "--background",
        type=float,
        help="fraction of pixels in class 0, which has no loss; default: as in every other class",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="profile our step instead")
    options = parser.parse_args(arguments)
    if reason := on_cuda.why_not(options.device):
        say(f"loss_bench: {reason}")
        return 2
    cuda = torch.device(options.device).type == "cuda"
    columns, suffix = (COLUMNS + on_cuda.COLUMNS, "_cuda") if cuda else (COLUMNS, "")
    size = SIZES["tiny" if options.tiny else "small" if options.small else "voc"]
    for present in options.present or size.usual_present:
        if not 2 <= present <= size.classes:
            parser.error(f"--present must lie in [2, {size.classes}], got {present}")
        torch.manual_seed(0)
        set_threads(options.threads)
        say(f"{size.name}, {present} classes present")
        if options.profile:
            profile(size, present, options)
            continue
        try:
            rows = measure(size, present, options)
        except Disagreement as error:
            say(f"DISAGREEMENT, nothing was recorded for this size: {error}")
            return 1
        report(rows, size)
        append_rows(options.out / f"loss_bench{suffix}.csv", columns, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
