"""Classic BPF as the kernel runs it (linux/filter.h), for the instructions our programs use."""

from __future__ import annotations

import struct

SKF_AD_VLAN_TAG_PRESENT = 0xFFFFF000 + 48


def run(program: bytes, frame: bytes, tag_stripped: bool = False) -> int:
    """How many bytes of the frame pass; 0 is a dropped frame, as is a load outside of it."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    a = x = at = 0
    try:
        while True:
            code, true, false, k = instructions[at]
            at += 1
            match code:
                case 0x30 if k == SKF_AD_VLAN_TAG_PRESENT:
                    a = int(tag_stripped)
                case 0x30:
                    (a,) = struct.unpack_from("!B", frame, k)
                case 0x28:
                    (a,) = struct.unpack_from("!H", frame, k)
                case 0x48:
                    (a,) = struct.unpack_from("!H", frame, x + k)
                case 0xB1:
                    x = 4 * (struct.unpack_from("!B", frame, k)[0] & 0x0F)
                case 0x15:
                    at += true if a == k else false
                case 0x45:
                    at += true if a & k else false
                case 0x06:
                    return int(k)
                case _:
                    raise NotImplementedError(f"instruction {code:#x}")
    except struct.error:
        return 0
