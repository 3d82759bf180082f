"""Compiles what Triton compiles before its first kernel: fails the build of an image in which that would fail.

Triton builds its launcher for CUDA from C when a process first uses a GPU. A build has no GPU and no driver, so the
real source is compiled by Triton's own function, and only the driver's library is left out.
"""

import os
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    os.environ["TRITON_CACHE_DIR"] = folder
    from triton.backends.nvidia import driver  # type: ignore[import-untyped]
    from triton.runtime.build import (  # type: ignore[import-untyped]
        compile_module_from_src,
        compile_so_from_file,
    )

    compile_so_from_file(str(Path(driver.dirname) / "driver.c"), "cuda_utils", include_dirs=driver.include_dirs)
    # A module that needs no driver shows that what is compiled can be loaded.
    compile_module_from_src(
        "#include <Python.h>\n"
        'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "loaded"};\n'
        "PyMODINIT_FUNC PyInit_loaded(void) { return PyModule_Create(&module); }\n",
        "loaded",
    )
print("Triton can compile")
