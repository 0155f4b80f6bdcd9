"""The networks by their configuration: from a row of `StudentConfig` or `ModelConfig` to a model
with fresh weights.
"""

from __future__ import annotations

import torch

from distilrec.data.dataset import Dataset
from distilrec.networks.dnn import Dnn, DnnConfig
from distilrec.networks.mlp import Mlp, MlpConfig
from distilrec.networks.recurrent import Recurrent, RecurrentConfig
from distilrec.networks.sequence import SequenceModel
from distilrec.networks.soft_tree import SoftTree, SoftTreeConfig
from distilrec.networks.transformer import Transformer, TransformerConfig

StudentConfig = RecurrentConfig | MlpConfig | SoftTreeConfig


ModelConfig = TransformerConfig | DnnConfig | RecurrentConfig | MlpConfig | SoftTreeConfig


def build_model(config: ModelConfig, dataset: Dataset, seed: int) -> SequenceModel:
    """A model with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config:
            case TransformerConfig():
                return Transformer(dataset, config)
            case DnnConfig():
                return Dnn(dataset, config)
            case RecurrentConfig():
                return Recurrent(dataset, config)
            case MlpConfig():
                return Mlp(dataset, config)
            case SoftTreeConfig():
                return SoftTree(dataset, config)
