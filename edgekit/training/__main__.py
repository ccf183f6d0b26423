"""One training process: ``torchrun … -m edgekit.training JOB.json``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from edgekit import child
from edgekit.console import PROGRESS_FILE
from edgekit.errors import EdgekitError, StageError
from edgekit.store import write_json
from edgekit.training import LAUNCHER, RESULT, TrainJob
from edgekit.training.work import work


def main(path: str) -> int:
    """Do the job in the file ``path``; the first rank writes the result, any rank its error."""
    child.die_with_parent()
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        return 1  # it died before we could ask to die with it
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        os.environ.pop(PROGRESS_FILE, None)  # one process speaks
    job = TrainJob.from_json(json.loads(Path(path).read_text()))
    scratch = Path(job.scratch)
    try:
        result = work(job)
    except EdgekitError as error:
        write_json(scratch / f"error-{rank:04d}.json", error.to_dict())
        return 1
    except Exception as error:
        failed = StageError(
            f"training failed: {type(error).__name__}: {str(error).strip()[:600]}",
            remedy="run again with -v for the whole message",
            details=traceback.format_exc()[-6000:],
        )
        write_json(scratch / f"error-{rank:04d}.json", failed.to_dict())
        return 1
    if rank == 0:
        write_json(scratch / RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
