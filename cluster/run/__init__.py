"""Runs on Ray: the supervisor, and the worker groups that train, prepare and evaluate.

The settings of a training are composed once, in `cluster.cli.main`, and handed on as one typed object::

    RootConfig -> handler -> supervise -> Training -> ElasticLayout.config -> run_train_group -> train_rank

`supervise` adds which checkpoints await an evaluation, `largest_layout` replaces the data-parallel size.
"""
