"""Follows values through nvcc's PTX: what a kernel without branches does, and how shared arrays are aligned."""

import re
from collections.abc import Iterable

BITS = re.compile(r"\.[bfsu](\d+)$")
REGISTER = re.compile(r"%\w+")
SYMBOL = re.compile(r"[%\w$]+")
ARRAY = re.compile(r"\.shared\b(?:\s+\.align (\d+))?\s+\.\w+ ([\w$]+)")
SHARED_ACCESS = re.compile(r"(ld|st|atom|red)\.(\w+\.)*shared\b|cp\.async\.c[ag]\.shared\b")
# The result can be an address if an operand is one.
COMPUTES_ADDRESSES = ("add", "and", "cvt", "cvta", "mad", "mov", "or", "selp", "shl", "sub", "xor")


class UnreadablePtx(Exception):
    """PTX that effects() cannot follow."""


def functions(text: str) -> dict[str, list[str]]:
    """The statements of every kernel and function, by mangled name, without comments, labels and declarations."""
    found: dict[str, list[str]] = {}
    lines = re.sub(r"//[^\n]*", "", text).splitlines()
    body = None
    for line in map(str.strip, lines):
        if m := re.match(r"(?:\.\w+ )*\.(?:entry|func)\b.*?(\w+)\(?$", line):
            body = found[m[1]] = []
        elif body is not None:
            # inline assembly may have its statements in braces
            line = re.sub(r"^\{\s*(?=[a-z])|(?<=;)\s*\}$", "", line)
            body += [
                s.strip() for s in line.split(";") if re.match(r"(@!?%p\d+\s+)?[a-z]", s.strip())
            ]
    return found


def parts(statement: str) -> tuple[str, list[str]]:
    """Opcode and operands; what is in braces is one operand."""
    statement = re.sub(r"^@!?%p\d+\s+", "", statement)
    opcode, _, rest = statement.partition(" " if " " in statement else "\t")
    return opcode.strip(), [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]


def plain_name(symbol: str) -> str:
    """A variable's own name: _ZZ10probe_copyE6copied -> copied. nvcc splits small arrays: _$_0 is a part."""
    named = re.fullmatch(r"_Z.*\d([a-z_]*[a-z])E?(?:_\$_\d+)*", symbol)
    return named[1] if named else symbol


def effects(kernel: str, statements: list[str]) -> list[str]:
    """What a kernel without branches does to memory, in order, in terms of its parameters p0, p1, ...

    A plain load is a value: [p0+4]. Other loads and matrix products are effects; <1> is the result of the first effect.
    Types are written as their size in bits.
    """
    values: dict[str, str] = {}
    done: list[str] = []

    def value(operand: str) -> str:
        """With the values of registers in it, braces and brackets as they are."""
        named = lambda m: re.sub(rf"^{kernel}_param_", "p", values.get(m[0], plain_name(m[0])))
        return SYMBOL.sub(named, operand)

    def results(target: str, made: str) -> None:
        names = REGISTER.findall(target)
        for i, name in enumerate(names):
            values[name] = f"{made}.{i}" if len(names) > 1 else made

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
    """Of the shared arrays, in bytes, by mangled name."""
    return {name: int(align or 1) for align, name in ARRAY.findall(text)}


def width(opcode: str, operands: list[str]) -> int:
    """Bytes that an access to shared memory takes at a time."""
    if opcode.startswith("cp.async"):
        return int(operands[2])
    bits = BITS.search(opcode)
    vector = re.search(r"\.v(\d)\.", opcode)
    return int(bits[1]) // 8 * int(vector[1] if vector else 1) if bits else 1


def arrays_in_registers(
    read: list[tuple[str, list[str]]], aligned: Iterable[str]
) -> dict[str, set[str]]:
    """The shared arrays that each register may point into. The order of statements is ignored."""
    arrays = {name: {name} for name in aligned}
    sums = []  # (what is computed, from what)
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
    """Shared arrays with less alignment than their accesses need, as (mangled name of the kernel, text)."""
    aligned = array_alignments(text)
    found = []
    for name, statements in functions(text).items():
        read = [(opcode, operands) for opcode, operands in map(parts, statements) if operands]
        arrays = arrays_in_registers(read, aligned)
        for opcode, operands in read:
            if not SHARED_ACCESS.match(opcode):
                continue
            address = next(o for o in operands if o.startswith("["))
            used = set().union(*(arrays.get(symbol, set()) for symbol in SYMBOL.findall(address)))
            if not used:
                found.append((name, f"{opcode} {address}: no shared array is in this address"))
            needed = width(opcode, operands)
            for array in used:
                if aligned[array] < needed:
                    fault = f"{plain_name(array)} is aligned to {aligned[array]} bytes, {opcode} needs {needed}"
                    found.append((name, fault))
    return sorted(set(found))
