"""Frozen encoders by name: one feature vector a clip (section 2 of the method).

backbone.py            what a backbone is: pixels in, features out; frames and their pooling
loading.py             a name and its options -> a backbone
torchvision_models.py  video and image models of torchvision
huggingface.py         hf:ID_OR_FOLDER, the families of transformers; hub.py finds their files
slow.py                slow_r50, the paper's rho-BYOL
svt.py                 svt, the paper's SVT
custom.py              package.module:function, a user's own
weights.py             files of tensors, read without executing anything
random_weights.py      seeded random weights
listing.py             what a backbone costs, for `scale-ray backbones`
"""

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.costs import BackboneFacts, facts_of, facts_of_torchvision
from scale_ray.backbones.loading import load_backbone
from scale_ray.backbones.weights import hash_of, load_strictly, read_weights

__all__ = [
    "Backbone",
    "BackboneFacts",
    "facts_of",
    "facts_of_torchvision",
    "hash_of",
    "load_backbone",
    "load_strictly",
    "read_weights",
]
