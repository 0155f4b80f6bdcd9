"""Encodes features, attributes and texts, in training and in service alike; nothing here is public."""

__all__: list[str] = []
