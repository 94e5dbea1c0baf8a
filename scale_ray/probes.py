"""What representations are worth: k-NN and linear probe (section 5 of the method)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.config import Probing
from scale_ray.optimisation import schedule_of
from scale_ray.sets import draw_clips, shuffled


def knn_top1(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, probing: Probing) -> float:
    """Top-1 of weighted k-nearest neighbours, a fraction in [0, 1].

    `bank` (n, d) and `queries` (m, d) are video representations; each split is centred on its own mean
    and brought to unit norm. The `knn_k` nearest vote with weight exp(cosine / temperature).
    """
    bank = F.normalize(bank - bank.mean(0), dim=1)
    queries = F.normalize(queries - queries.mean(0), dim=1)
    return _top1(_votes(queries @ bank.T, bank_labels, probing), query_labels)


def knn_top1_within(videos: Tensor, labels: Tensor, groups: Tensor, probing: Probing) -> float:
    """Top-1 of k-nearest neighbours among the videos themselves, those of a video's own group left out.

    For watching a training: `videos` (n, d) are representations of one split, `groups` int64 (n,). In [0, 1].
    """
    videos = F.normalize(videos - videos.mean(0), dim=1)
    cosine = (videos @ videos.T).masked_fill(groups[:, None] == groups, -torch.inf)
    return _top1(_votes(cosine, labels, probing), labels)


def _votes(cosine: Tensor, bank_labels: Tensor, probing: Probing) -> Tensor:
    """Votes (queries, classes) of each query's nearest of the bank, by their cosine (queries, bank)."""
    cosine, nearest = cosine.topk(min(probing.knn_k, cosine.shape[1]), dim=1)
    # The largest weight is 1: the same votes, without overflow at small temperatures.
    weights = ((cosine - cosine[:, :1]) / probing.knn_temperature).exp()
    votes = weights.new_zeros(len(cosine), int(bank_labels.max()) + 1)
    return votes.scatter_add_(1, bank_labels[nearest], weights.nan_to_num())


# From the chosen clips of every training video, int64 (videos, V), to representations (videos, V, d).
Represent = Callable[[Tensor], Tensor]


def linear_top1(
    represent: Represent,
    keys: Tensor,
    num_clips: int,
    labels: Tensor,
    test_VNd: Tensor,
    test_labels: Tensor,
    probing: Probing,
) -> float:
    """Top-1 of a linear classifier on clip representations, the aggregator frozen; in [0, 1].

    Trained on random sets of `probe_set_size` of the `num_clips` clips of each training video, drawn
    anew for every epoch (from the `linear_draws`-th on, the draws come round again); a test video's score
    is the mean of its clips' probabilities, all clips one set. AdamW with a cosine over the epochs.
    Differs from the paper: the representation is standardised with the statistics of the training clips,
    so that one learning rate suits every backbone, and a small corpus gets more epochs, up to
    `linear_min_steps` steps.
    """
    num_videos = len(labels)
    set_size = min(probing.probe_set_size, num_clips)
    batch = min(probing.linear_batch, num_videos)
    steps_per_epoch = num_videos // batch
    epochs = max(probing.linear_epochs, -(-probing.linear_min_steps // steps_per_epoch))
    drawn = [
        represent(draw_clips(keys, num_clips, set_size, seed=probing.probe_seed, epoch=epoch))
        for epoch in range(min(epochs, probing.linear_draws))
    ]
    everything = represent(torch.arange(num_clips).expand(num_videos, -1))
    mean, std = everything.mean((0, 1)), everything.std((0, 1))
    # A column that never changes over the training clips says nothing; dividing by its rounding noise would.
    varies = std > 1e-6 * everything.abs().amax((0, 1)).clamp(min=1e-12)
    scale = torch.where(varies, 1 / std, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(probing.probe_seed)
        classifier = nn.Linear(everything.shape[2], int(max(labels.max(), test_labels.max())) + 1)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=probing.linear_learning_rate, weight_decay=probing.linear_weight_decay
    )
    schedule = schedule_of(optimizer, epochs * steps_per_epoch)
    for epoch in range(epochs):
        order = shuffled(num_videos, seed=probing.probe_seed, epoch=epoch)
        for rows in order[: steps_per_epoch * batch].split(batch):
            logits = classifier((drawn[epoch % len(drawn)][rows] - mean) * scale)
            loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].repeat_interleave(set_size))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        scores = classifier((test_VNd - mean) * scale).softmax(-1).mean(1)
    return _top1(scores, test_labels)


def halves_top1(first: Tensor, second: Tensor) -> float:
    """How often a video's set token finds that of the other half of its clips first, in [0, 1].

    A measure without labels that is comparable over set sizes and mask ratios.
    """
    nearest = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(first))).float().mean())


def _top1(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())
