"""Which of the kernels' tests run: those that need a mode of Triton's have a process of their own.

`nox -s kernels` starts them: SDPO_KERNELS_TESTS is `interpreter` (with TRITON_INTERPRET=1), `compiler` or `gpu`.
"""

import os

MODES = {
    "interpreter": {"test_kernels.py"},
    "compiler": {"test_compiled.py"},
    "gpu": {"test_kernels.py", "test_gpu.py"},
}
MODE = os.environ.get("SDPO_KERNELS_TESTS", "")
collect_ignore = sorted(set.union(*MODES.values()) - MODES.get(MODE, set()))
