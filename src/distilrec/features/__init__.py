"""Encoding of features, attributes and texts, for training and service alike.

Nothing here is public.
"""

__all__: list[str] = []
