"""Checks of a run before any process starts."""

from __future__ import annotations

import logging
import os

from cluster.config import RootConfig
from cluster.resources.evaluation_needs import slow_evaluation_warning
from cluster.resources.run_resources import RunResources, plan_resources
from data.errors import InputError

_LOG = logging.getLogger(__name__)


def check_run(config: RootConfig) -> RunResources:
    """Check what can be checked before any process starts, and plan the resources.

    Raises:
        InputError: Too few CPUs or GPUs, evaluation settings that cannot work, a simulator that is missing,
            backbones of scores that cannot be used.
    """
    gpus = 0
    if config.cluster.gpus_per_rank != 0 and config.cluster.address is None:
        import torch

        gpus = torch.cuda.device_count()
    resources = plan_resources(config, gpus)
    if config.eval.every > 0:
        if config.eval.every % config.checkpointing.every:
            raise InputError(
                f"eval.every={config.eval.every} is not a multiple of checkpointing.every="
                f"{config.checkpointing.every}; only checkpoints can be evaluated"
            )
        from eval.evaluation.setting_checks import (
            check_decoder,
            check_initial_states,
            check_settings,
            check_weights,
        )
        from eval.simulator.registry import open_suite, select_tasks
        from eval.simulator.rendering import check_library

        check_settings(config.eval, "eval.")
        check_decoder(config.eval.decoder, "eval.decoder", config)
        check_weights(config.eval.weights, "eval.weights", config)
        if config.eval.gpus == 0 and "MUJOCO_GL" not in os.environ:
            check_library("osmesa")  # of processes without a GPU, also where this machine has one
        suite = open_suite(config.eval.suite)
        check_initial_states(suite, select_tasks(suite, config.eval.tasks), config.eval, "eval.")
        if config.eval.imagine_frames > 0 and (config.eval.lpips_weights or config.eval.fvd_network):
            from eval.world_model.backbones import open_backbones  # imports torch

            open_backbones(
                config.eval.lpips_weights, config.eval.fvd_network, config.eval.imagine_frames, "eval."
            )
    if warning := slow_evaluation_warning(config):
        _LOG.warning("%s", warning)
    return resources


def check_data(config: RootConfig) -> None:
    """Check the data of a run against its settings before any process starts.

    Raises:
        InputError: A data set is missing or does not fit the others, the action head is not for the longest
            chunk and the widest action, or checkpoints would be evaluated as no or several embodiments.
    """
    from pretrain.sources import training_sources

    sources = training_sources(config.data)
    if config.model.action_head is not None:
        from pretrain.model.action_head import check_head_fits  # imports torch

        check_head_fits(config.model.action_head, sources)
    if config.eval.every > 0:
        from eval.policy.embodiment import suite_source

        try:
            suite_source("the training", sources, config.eval.embodiment, "eval.embodiment")
        except InputError as error:
            raise InputError(f"{error}, or set eval.every=0 to train without evaluations") from error
