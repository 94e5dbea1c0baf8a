"""Videos to vectors: vector stores, a model of video files, nearest neighbours."""

from scale_ray.embedding.neighbours import SearchResult, find_neighbours
from scale_ray.embedding.vector_store import VectorStore, embed_store, fingerprint_of_vectors
from scale_ray.embedding.video_model import VideoModel, backbone_note, backbone_of, sampling_of

__all__ = [
    "SearchResult",
    "VectorStore",
    "VideoModel",
    "backbone_note",
    "backbone_of",
    "embed_store",
    "find_neighbours",
    "fingerprint_of_vectors",
    "sampling_of",
]
