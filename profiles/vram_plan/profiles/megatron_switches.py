"""What switches of Megatron-LM's own command line do to memory, where no option stands for them."""

from __future__ import annotations

from vram_plan.profiles.stack import Stack


def groups_experts(stack: Stack) -> bool:
    """Megatron-LM's ``--moe-grouped-gemm``, which its recipes set: one product for all experts."""
    return stack.version("moe-grouped-gemm") != "0"


def exchanges_tokens(stack: Stack) -> bool:
    """Megatron-LM's ``--moe-token-dispatcher-type``: ``alltoall``, or ``allgather`` by default."""
    found = stack.version("moe-token-dispatcher-type")
    if found not in {"", "allgather", "alltoall"}:
        raise ValueError(
            f"--stack moe-token-dispatcher-type={found}: choose from allgather, alltoall"
        )
    return found == "alltoall"


def expert_tensor_ranks(stack: Stack, tensor: int) -> int:
    """Megatron-LM's ``--expert-tensor-parallel-size``: ranks that divide an expert, else ``tp``."""
    found = stack.version("expert-tensor-parallel-size")
    if found and (not found.isdigit() or not int(found)):
        raise ValueError(f"--stack expert-tensor-parallel-size={found}: give a number of ranks")
    return min(int(found), tensor) if found else tensor


def overlaps_tensor_ranks(stack: Stack) -> bool:
    """Megatron-LM's ``--tp-comm-overlap``: products beside the exchange of tensor ranks."""
    return any(name == "tp-comm-overlap" for name, _ in stack.given)
