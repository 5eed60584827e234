"""Follows values through nvcc's PTX: effects of a kernel without branches, and the alignment of shared arrays."""

import re
from collections.abc import Iterable

BITS = re.compile(r"\.[bfsu](\d+)$")
REGISTER = re.compile(r"%\w+")
SYMBOL = re.compile(r"[%\w$]+")
ARRAY = re.compile(r"\.shared\b(?:\s+\.align (\d+))?\s+\.\w+ ([\w$]+)")
SHARED_ACCESS = re.compile(r"(ld|st|atom|red)\.(\w+\.)*shared\b|cp\.async\.c[ag]\.shared\b")
# If an operand of these instructions is an address, the result can be one.
COMPUTES_ADDRESSES = ("add", "and", "cvt", "cvta", "mad", "mov", "or", "selp", "shl", "sub", "xor")


class UnreadablePtx(Exception):
    """PTX that effects() cannot follow."""


def functions(text: str) -> dict[str, list[str]]:
    """Returns the statements of every kernel and function by mangled name: no comments, labels or declarations."""
    bodies: dict[str, list[str]] = {}
    lines = re.sub(r"//[^\n]*", "", text).splitlines()
    body = None
    for line in map(str.strip, lines):
        if m := re.match(r"(?:\.\w+ )*\.(?:entry|func)\b.*?(\w+)\(?$", line):
            body = bodies[m[1]] = []
        elif body is not None:
            # inline assembly may put its statements in braces
            line = re.sub(r"^\{\s*(?=[a-z])|(?<=;)\s*\}$", "", line)
            body += [
                s.strip() for s in line.split(";") if re.match(r"(@!?%p\d+\s+)?[a-z]", s.strip())
            ]
    return bodies


def parts(statement: str) -> tuple[str, list[str]]:
    """Splits a statement into opcode and operands. Braces hold one operand."""
    statement = re.sub(r"^@!?%p\d+\s+", "", statement)
    opcode, _, rest = statement.partition(" " if " " in statement else "\t")
    return opcode.strip(), [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]


def plain_name(symbol: str) -> str:
    """Returns a variable's plain name: _ZZ10probe_copyE6copied -> copied. nvcc splits small arrays: _$_0 is a part."""
    named = re.fullmatch(r"_Z.*\d([a-z_]*[a-z])E?(?:_\$_\d+)*", symbol)
    return named[1] if named else symbol


def effects(kernel: str, statements: list[str]) -> list[str]:
    """Returns the effects of a kernel without branches on memory, in order.

    Its parameters are p0, p1, ... A plain load is a value: [p0+4]. Other loads and matrix products are effects, and <1>
    is the result of the first effect. Types are given as their size in bits.

    Args:
        kernel: the kernel's name.
        statements: its statements.

    Raises:
        UnreadablePtx: the kernel has a branch.
    """
    values: dict[str, str] = {}
    done: list[str] = []

    def value(operand: str) -> str:
        """Replaces registers with their values."""
        named = lambda m: re.sub(rf"^{kernel}_param_", "p", values.get(m[0], plain_name(m[0])))
        return SYMBOL.sub(named, operand)

    def results(target: str, source: str) -> None:
        names = REGISTER.findall(target)
        for i, name in enumerate(names):
            values[name] = f"{source}.{i}" if len(names) > 1 else source

    for statement in statements:
        opcode, operands = parts(statement)
        operation, sized = opcode.split(".")[0], BITS.sub(r".\1", opcode)
        if statement.startswith("@") or operation in ("bra", "call"):
            raise UnreadablePtx(f"{kernel}: has a branch: {statement}")
        if opcode == "ret":
            continue
        target, rest = operands[0], ", ".join(map(value, operands[1:]))
        if opcode.startswith("ld.param"):
            values[target] = value(operands[1])[1:-1]
        elif opcode in ("cvta.to.global.u64", "mov.u32", "mov.b32", "mov.u64", "mov.b64"):
            values[target] = rest
        elif operation == "ld" and re.fullmatch(r"ld\.global(\.v\d)?\.\d+", sized):
            results(target, rest)
        elif operation in ("ld", "mma"):
            relaxed = re.sub(r"^ld\.(volatile|relaxed\.\w+)\.", "ld.relaxed.", sized)
            done.append(f"{relaxed} {rest}")
            results(target, f"<{len(done)}>")
        elif operation in ("st", "cp", "bar"):
            done.append(f"{sized} {', '.join(map(value, operands))}")
        else:
            values[target] = f"{opcode}({rest})"
    return done


def array_alignments(text: str) -> dict[str, int]:
    """Returns the alignment of shared arrays in bytes, by mangled name."""
    return {name: int(align or 1) for align, name in ARRAY.findall(text)}


def width(opcode: str, operands: list[str]) -> int:
    """Returns the bytes of one access to shared memory."""
    if opcode.startswith("cp.async"):
        return int(operands[2])
    bits = BITS.search(opcode)
    vector = re.search(r"\.v(\d)\.", opcode)
    return int(bits[1]) // 8 * int(vector[1] if vector else 1) if bits else 1


def arrays_in_registers(
    read: list[tuple[str, list[str]]], aligned: Iterable[str]
) -> dict[str, set[str]]:
    """Returns the shared arrays that each register may point into. The order of statements is ignored."""
    arrays = {name: {name} for name in aligned}
    sums = []  # (result, operands)
    for opcode, operands in read:
        if opcode.split(".")[0] in COMPUTES_ADDRESSES:
            sums.append((operands[0], SYMBOL.findall(" ".join(operands[1:]))))
    changed = True
    while changed:
        changed = False
        for target, sources in sums:
            for source in sources:
                more = arrays.get(source, set()) - arrays.get(target, set())
                if more:
                    changed = True
                    arrays[target] = arrays.get(target, set()) | more
    return arrays


def alignment_faults(text: str) -> list[tuple[str, str]]:
    """Returns shared arrays with less alignment than their accesses need, as (mangled name of the kernel, text)."""
    aligned = array_alignments(text)
    faults = []
    for name, statements in functions(text).items():
        read = [(opcode, operands) for opcode, operands in map(parts, statements) if operands]
        arrays = arrays_in_registers(read, aligned)
        for opcode, operands in read:
            if not SHARED_ACCESS.match(opcode):
                continue
            address = next(o for o in operands if o.startswith("["))
            used = set().union(*(arrays.get(symbol, set()) for symbol in SYMBOL.findall(address)))
            if not used:
                faults.append((name, f"{opcode} {address}: no shared array is in this address"))
            needed = width(opcode, operands)
            for array in used:
                if aligned[array] < needed:
                    fault = f"{plain_name(array)} is aligned to {aligned[array]} bytes, {opcode} needs {needed}"
                    faults.append((name, fault))
    return sorted(set(faults))
