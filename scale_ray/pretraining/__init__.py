"""The self-supervised training of the aggregator."""
