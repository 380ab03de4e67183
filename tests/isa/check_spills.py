#!/usr/bin/env python3
"""Fails if an innermost loop of multiply-adds in the given object files stores a vector register to the stack.

GCC keeps arrays of sums in registers only where the code leaves it no way out; a spilled sum halves the speed and no
other test would notice. Uses objdump.

usage: check_spills.py OBJECT...
"""
import re
import subprocess
import sys

JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")
SPILL = re.compile(r"%[xyz]mm\d+,-?(0x)?[0-9a-f]*\((%rsp|%rbp)")


def instructions(path):
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s+([0-9a-f]+):\s+(.*)$", text, re.MULTILINE)
    return [(int(address, 16), what) for address, what in lines]


def innermost_loops(code):
    """Bodies of backward jumps without another jump inside."""
    index = {address: i for i, (address, _) in enumerate(code)}
    for i, (address, what) in enumerate(code):
        jump = JUMP.match(what)
        if not jump or int(jump.group(1), 16) > address or int(jump.group(1), 16) not in index:
            continue
        body = [text for _, text in code[index[int(jump.group(1), 16)] : i + 1]]
        if not any(JUMP.match(text) for text in body[:-1]):
            yield address, body


def main():
    loops = bad = 0
    for path in sys.argv[1:]:
        for address, body in innermost_loops(instructions(path)):
            vectors = sum("vpdpbusd" in text for text in body)
            tiles = sum("tdpbsud" in text for text in body)
            if vectors < 4 and tiles < 2:
                continue
            loops += 1
            spills = [text for text in body if SPILL.search(text)]
            if spills:
                bad += 1
                print(f"{path}: loop that ends at {address:#x}: {len(spills)} stores to the stack, e.g. {spills[0]}")
    print(f"{loops} loops of multiply-adds, {bad} with spilled registers")
    if loops == 0:
        print("found no such loop: expected some in every object", file=sys.stderr)
    return 1 if bad or loops == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
