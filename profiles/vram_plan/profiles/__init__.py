"""What is known: GPUs, nodes, links, prices, models and software stacks, each figure with its source."""
