"""torchrun, which ends together with what started it: ``python -m vram_plan.bench.runs.torchrun``.

Its ranks end with it, since each of them asks for that too.
"""

from __future__ import annotations

from vram_plan.bench.runs.group import die_with_parent

__all__ = ["main"]


def main() -> None:
    """Run torchrun with this process' arguments."""
    die_with_parent()
    from torch.distributed import run

    run.main()


if __name__ == "__main__":
    main()
