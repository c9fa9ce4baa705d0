"""Compiles one CUDA C++ file to PTX with NVRTC: kernels.py LIBRARY SOURCE ARCHITECTURE OUTPUT.

What the compiler says goes to standard output.
"""

import ctypes
import pathlib
import sys

library, source, architecture, output = sys.argv[1:]
nvrtc = ctypes.CDLL(library)
nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p


def text(what):
    size = ctypes.c_size_t()
    if getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) != 0:
        sys.exit(f"{source}: no {what}")
    buffer = ctypes.create_string_buffer(size.value)
    if getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) != 0:
        sys.exit(f"{source}: no {what}")
    return buffer.raw


program = ctypes.c_void_p()
path = pathlib.Path(source)
status = nvrtc.nvrtcCreateProgram(
    ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None
)
if status != 0:
    sys.exit(nvrtc.nvrtcGetErrorString(status).decode())
options = [
    f"--gpu-architecture={architecture}",
    f"--include-path={path.parent}",
    "--std=c++17",
    # The numerics contract: every operation rounds once, and subnormal numbers stay.
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
]
arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
status = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
print(text("ProgramLog").rstrip(b"\0").decode(), end="")
if status != 0:
    sys.exit(f"{source}: {nvrtc.nvrtcGetErrorString(status).decode()}")
pathlib.Path(output).write_bytes(text("PTX").rstrip(b"\0"))
