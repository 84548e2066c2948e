"""Published estimators of training memory, as small baselines on the rows we are judged by."""

from vram_plan.reports.peers.accelerate_estimate import ACCELERATE
from vram_plan.reports.peers.canifinetune import CANIFINETUNE
from vram_plan.reports.peers.deepspeed_states import DEEPSPEED
from vram_plan.reports.peers.eleuther_cookbook import ELEUTHER
from vram_plan.reports.peers.fitcheck_llm import FITCHECK
from vram_plan.reports.peers.gpu_poor import GPU_POOR
from vram_plan.reports.peers.llm_analysis import LLM_ANALYSIS
from vram_plan.reports.peers.peer import Answer, Peer
from vram_plan.reports.peers.run import PeerInput
from vram_plan.reports.peers.vram_calculator import VRAM_CALCULATOR

__all__ = ["PEERS", "Answer", "Peer", "PeerInput"]

PEERS = (
    ACCELERATE,
    DEEPSPEED,
    ELEUTHER,
    GPU_POOR,
    VRAM_CALCULATOR,
    LLM_ANALYSIS,
    CANIFINETUNE,
    FITCHECK,
)
