"""The partitioned engine on one GPU against one plain process on the CPU."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.step_run import ALONE
from data.contracts import PackedBatch
from pretrain.config import LossConfig, TrainingConfig
from pretrain.model.transformer import Transformer
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import Curve, logits_and_labels, settings, train_partitioned, train_plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(config: TrainingConfig) -> Curve:
    """In a new process: losses and gradient norms of the engine."""
    os.environ.pop("DS_ACCELERATOR", None)
    os.environ.update(ALONE)
    return train_partitioned(config)


def loss_of(model: Transformer, batch: PackedBatch) -> Tensor:
    """The default loss, written out."""
    logits, labels = logits_and_labels(model, batch)
    loss = LossConfig()
    weights = torch.where(labels >= 4, loss.image_weight, 1.0)  # ids from 4 on are image codes here
    mean = (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum()
    return mean + loss.z_loss * logits.logsumexp(1).square().mean()


@pytest.mark.parametrize(
    ("stage", "precision", "attention", "of_loss", "of_norm"),
    [
        (3, "fp32", "sdpa", 1e-4, 1e-3),
        (1, "fp32", "sdpa", 1e-4, 1e-3),
        (3, "bf16", "sdpa", 5e-3, 0.03),
        (3, "bf16", "auto", 5e-3, 0.03),
    ],
)
def test_a_gpu_trains_as_the_cpu_does(
    stage: int, precision: str, attention: str, of_loss: float, of_norm: float
) -> None:
    config = settings(Mesh(1, 1), stage, precision, attention=attention)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        actual = np.array(processes.submit(on_gpu, config).result())
    expected = np.array(train_plain(loss_of))
    assert np.abs(actual[:, 0] - expected[:, 0]).max() < of_loss
    assert (np.abs(actual[:, 1] - expected[:, 1]) / expected[:, 1]).max() < of_norm
