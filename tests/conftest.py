import torch
from hypothesis import settings

# A busy machine is no failure: no example is timed.
settings.register_profile("leanfleet", deadline=None)
settings.load_profile("leanfleet")

# As in a worker: on few cores, threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
