"""Frozen encoders, selected by name: one feature vector per clip (section 2 of the method).

backbone.py            pixels in, features out; selection and pooling of frames
feature_extractor.py   clips in, float16 features out, on all devices of a process
loading.py             name and options -> backbone
torchvision_models.py  video and image models of torchvision
huggingface.py         hf:ID_OR_FOLDER, models of transformers; huggingface_files.py locates their files
slow_r50.py            slow_r50, the paper's rho-BYOL
svt.py                 svt, the paper's SVT
i3d.py                 i3d, the RGB network of action localisation
custom.py              package.module:function, a user's own backbone
weights.py             reads weight files without executing code from them; hashes weights
random_weights.py      seeded random weights
costs.py               size and speed of a backbone, for `scale-ray backbones`
"""

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.costs import BackboneFacts, backbone_facts, torchvision_facts
from scale_ray.backbones.feature_extractor import FeatureExtractor, devices_here, is_out_of_memory
from scale_ray.backbones.loading import is_custom, load_backbone
from scale_ray.backbones.weights import load_strictly, read_weights, weights_hash

__all__ = [
    "Backbone",
    "BackboneFacts",
    "FeatureExtractor",
    "backbone_facts",
    "devices_here",
    "is_custom",
    "is_out_of_memory",
    "load_backbone",
    "load_strictly",
    "read_weights",
    "torchvision_facts",
    "weights_hash",
]
