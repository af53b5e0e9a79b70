"""The trainer's other processes, and how a pass is shared with them.

The trainer is rank 0 and keeps all states. Other ranks hold the base model only; they get the weights of an
adapter with each pass, and give back what they computed. So nothing that is kept depends on how many there are.
"""
