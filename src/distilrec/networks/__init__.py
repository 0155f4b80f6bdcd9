"""The networks, and the configuration that makes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.networks.dnn import DnnConfig
    from distilrec.networks.mlp import MlpConfig
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.networks.soft_tree import SoftTreeConfig
    from distilrec.networks.transformer import TransformerConfig

_MODULES = {
    "DnnConfig": "dnn",
    "MlpConfig": "mlp",
    "RecurrentConfig": "recurrent",
    "SoftTreeConfig": "soft_tree",
    "TransformerConfig": "transformer",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "DnnConfig",
    "MlpConfig",
    "RecurrentConfig",
    "SoftTreeConfig",
    "TransformerConfig",
]
