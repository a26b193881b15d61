"""Studies: many runs from one file, each resumable, compared honestly."""

from resode.study.execution import Progress, execute
from resode.study.plan import Job, Study, read

__all__ = ["Job", "Progress", "Study", "execute", "read"]
