"""What is known: GPUs, nodes, links, prices and models, each figure with its source."""
