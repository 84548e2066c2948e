"""``python -m vram_plan.app``: the same as ``vram-plan``."""

from vram_plan.app.main import main

main()
