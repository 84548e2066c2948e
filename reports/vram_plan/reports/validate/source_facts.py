"""What a source of rows says once for all of them, outside the table its rows were read from.

Loops by the rows' ``trainer``, sources by their family or file; each with the file it was read in.
"""

from __future__ import annotations

_OVERLAPPED = (
    "NVIDIA/Megatron-LM@d98e8a64d:tests/functional_tests/test_cases/gpt/"
    "gpt3_weekly_mcore_tp2_pp2_current_scaling_native_fp8_tp_pp_sp_tp_overlap"
)
_DGX = ("h100", "gb200")
_SEQUENTIAL, _EXCHANGED, _WHOLE, _HALVED = (
    "moe-grouped-gemm=0",
    "moe-token-dispatcher-type=alltoall",
    "expert-tensor-parallel-size=1",
    "expert-tensor-parallel-size=2",
)
CASES = {
    "gpt3_mcore_cp2_pp2_ep2_te_4experts2parallel_nondeterministic": _SEQUENTIAL,
    "gpt3_mcore_cp2_pp2_ep2_te_4experts2parallel_nondeterministic_dp_last": _SEQUENTIAL,
    "gpt3_mcore_te_tp2_pp1_te_8experts2parallel_dist_optimizer": _SEQUENTIAL,
    "gpt3_mcore_te_tp2_pp1_te_8experts_etp1_ep4": _WHOLE,
    "gpt3_mcore_te_tp2_pp1_te_a2a_ovlp_8experts_etp1_ep4": f"{_WHOLE};{_EXCHANGED}",
    "gpt3_mcore_tp2_cp2_pp2_ep2_te_4experts2parallel": _SEQUENTIAL,
    "gpt3_mcore_tp2_cp2_pp2_ep2_te_4experts2parallel_dp_last": _SEQUENTIAL,
    "gpt3_mcore_tp2_pp2_ep2_etp2_te_4experts2parallel": f"{_SEQUENTIAL};{_HALVED}",
    "gpt3_mcore_tp2_pp2_ep2_etp2_te_4experts2parallel_dp_last": f"{_SEQUENTIAL};{_HALVED}",
    "gpt3_mcore_tp2_pp2_ep2_te_4experts2parallel": _SEQUENTIAL,
}
"""Folder of a test of Megatron-LM's with experts → what its ``model_config.yaml`` says of them
(NVIDIA/Megatron-LM @ d98e8a64 ``tests/functional_tests/test_cases/moe``)."""
SWIFT_EXPERTS = f"{_EXCHANGED};{_WHOLE}"
"""ms-swift's defaults under Megatron-LM (modelscope/ms-swift @ ec1d8184 ``swift/megatron/argument/
megatron_args.py`` ``moe_token_dispatcher_type``, ``expert_tensor_parallel_size``)."""
WORKSPACES = "NVIDIA/Megatron-LM@d98e8a64d:tests/functional_tests/test_cases/"
"""Tests whose ``model_config.yaml`` sets ``CUBLAS_WORKSPACE_CONFIG: :4096:8``, save those below."""
OWN_WORKSPACES = frozenset(
    {
        "deepseek_proxy_fsdp_ep2_fsdp2",
        "deepseek_proxy_fsdp_ep2_fsdp2_ep_overlap",
        "gpt3_15b_8t_release",
        "gpt3_15b_8t_release_sm",
        "gpt3_15b_8t_release_sm_gb200",
        "gpt3_mcore_te_tp1_pp2_cp4_a2a_p2p_nondeterministic",
        "gpt3_mcore_te_tp2_pp1_cp2_nondeterministic",
        "gpt3_mcore_te_tp2_pp2_cp2",
        "gpt3_mcore_te_tp2_pp2_cp2_etp4_dp_last",
        "gpt3_mcore_te_tp2_pp2_cp2_etp4_nondeterministic_dp_last",
        "gpt3_mcore_te_tp2_pp2_cp2_nondeterministic",
        "gpt3_mcore_te_tp2_pp2_cross_entropy_loss_fusion",
        "gpt3_mcore_te_tp2_pp2_ep4_etp1_memory_speed",
        "gpt3_mcore_te_tp2_pp2_ep4_etp1_selective_recompute_experimental",
    }
)
REQUIRED = {
    **{f"{_OVERLAPPED}/golden_values_dev_dgx_{gpu}.json": "tp-comm-overlap=1" for gpu in _DGX},
    "modelscope/ms-swift@b40f31df7^:docs/source_en/LLM/Benchmark.md": (
        "transformers=4.36;peft=0.7.1;accelerate=0.25"
    ),
    "AnswerDotAI/fsdp_qlora@05ed9f2a6:benchmarks_03_2024.md": (
        "transformers=4.38;peft=0.9;bitsandbytes=0.43.0"
    ),
}
"""Libraries that a source leaves unsaid and its repository pins, and switches of its run's file
(NVIDIA/Megatron-LM @ d98e8a64 ``model_config.yaml`` beside the figures). ms-swift @ 97e4d198b,
where these readings were first written down (January 2024): ``requirements/framework.txt`` allows
transformers below 4.37 and peft below 0.8; 0.25 was Accelerate's last release before. fsdp_qlora
ran in February and March 2024 on what pip gave then; bitsandbytes 0.43.0 is its README's."""
AUTOCASTS = frozenset({"ms-swift"})
"""Loops that leave no choice but ``bf16=True`` or ``fp16=True`` of transformers' Trainer, which is
autocast (modelscope/ms-swift @ 97e4d198b ``swift/llm/sft.py``, ``select_dtype``)."""
DROPOUTS = {"ms-swift": 0.05, "fsdp_qlora": 0.1}
"""Default before low-rank pairs of a loop (``swift/llm/utils/argument.py`` ``lora_dropout_p``;
AnswerDotAI/fsdp_qlora @ 02586ac7 ``train.py`` ``lora_dropout``)."""
LENGTHS = {"ms-swift-bench": "3234.4,2547.5,4959"}
"""Mean and deviation of a source's tokens, as it prints them beside its readings, and the number of
its sequences (modelscope/ms-swift ``docs/source_en/LLM/Benchmark.md``, and its table of data sets:
cls-fudan-news-zh)."""
NODES = {("bigscience", "a100-80gb-sxm"): "jean-zay-a100"}
"""Family of sources and GPU → the machine, where it is no usual one."""
HEADS = {"train/tr11-176B-ml/chronicles-prequel.md": 64}
"""Attention heads by file where a table leaves them out: "all NHEADS=64 (above too)" stands below
them (bigscience-workshop/bigscience @ 9e64edec2, "Final round comparison")."""
ONE_GROUP = frozenset({"TheBloke/Llama-2-70B-GPTQ", "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ"})
"""GPTQ checkpoints whose ``quantize_config.json`` says ``group_size: -1`` (branch main)."""
FP8_RECIPES = {
    "examples/megatron/fp8/benchmark.sh": "te-blockwise",
    "megatron-bridge": "te-current",
}
"""Recipe of 8-bit products by file or loop: the script's ``--fp8_recipe blockwise`` (modelscope/
ms-swift @ 3602360a5), Megatron-Bridge's tables of current scaling (``FP8-CS``)."""
FP8_WEIGHTS = frozenset({"examples/megatron/fp8/benchmark.sh"})
"""Files that hold weights of linear layers in 8 bits alone (``--fp8_param_gather true``)."""
