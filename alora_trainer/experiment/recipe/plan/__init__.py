"""What a recipe will take, before anything is downloaded or computed.

models.py       the model's configuration (a local folder, or a small table of Hub ids), and the model without its weights
step_trace.py   one training step on tensors that hold no numbers: the memory that is alive at once, and the flops
devices.py      a small table of devices, and a probe of this machine
amounts.py      items, steps and tokens of the recipe's stages
memory.py       bytes of everything that is held, and the peak of each stage
estimate.py     the whole plan
advice.py       what would fit where the recipe does not
report.py       the plan as text
"""
