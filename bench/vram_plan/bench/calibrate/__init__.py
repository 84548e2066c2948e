"""How fast this machine is: kernels and a few real steps, measured in about a minute."""
