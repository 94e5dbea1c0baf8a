"""The parts of `gpu.py`, each a function that takes a `Bench` and records figures as it measures them.

measure.py      the clock, the share of busy time, peak memory, synchronisations
backbones.py    the forward pass of four backbones by precision and memory layout, and compiled
actor.py        from read-only blocks of pixels to float16 features
pretraining.py  steps and epochs of the aggregator, and compiled
agreement.py    CPU against GPU; a continued run against an undisturbed one
probes.py       k-NN and the linear grid on the device
extraction.py   the real stream, with Ray and PyAV
"""
