"""A worker process of `reproduce`: takes runs as JSON lines on stdin, reports their progress on stdout.

One process serves many runs, since importing PyTorch takes as long as some epochs; a crash of one takes only its run.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def jobs() -> queue.SimpleQueue[dict[str, Any]]:
    """Yields the jobs that arrive on stdin. When it closes, the parent is gone and the process exits at once. Every
    write of a run is atomic, so the run can continue from its last checkpoint."""
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            received.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return received


def main() -> None:
    # Libraries print to stdout; the reports get a channel of their own.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(kind: str, **values: Any) -> None:
        try:
            channel.write(json.dumps({"kind": kind, **values}) + "\n")
        except BrokenPipeError:
            os._exit(1)

    received = jobs()
    import torch

    from sdpo_bench import interruption
    from sdpo_bench.errors import UserError, is_full_disk
    from sdpo_bench.experiments.profiles import config_from_json
    from sdpo_bench.records import provenance
    from sdpo_bench.records.files import RecordError, RunLocked
    from sdpo_bench.training.loop import train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    provenance.code_version()  # of the code that is loaded now
    report("ready")
    while True:
        job = received.get()
        sys.argv = job["argv"]  # provenance records the command that the user gave
        try:
            config = config_from_json(job["config"])
            with interruption.watched():
                train(config, Path(job["folder"]), resume=True, on_epoch=lambda event: report("progress", **event))
        except interruption.Interrupted as stop:
            sys.exit(interruption.exit_code(stop))
        except RunLocked as error:
            report("locked", message=str(error))
        except (UserError, RecordError) as error:
            report("failed", message=str(error), details="", full_disk=False)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            report("failed", message=message, details=traceback.format_exc(), full_disk=is_full_disk(error))
        else:
            report("done")


if __name__ == "__main__":
    main()
