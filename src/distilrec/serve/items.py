"""Show, search, change and remove items."""

from __future__ import annotations

import asyncio

from distilrec.engine.answers import Item
from distilrec.errors import InvalidIdError
from distilrec.ids import as_id
from distilrec.serve.http import Endpoint
from distilrec.serve.models import Models
from distilrec.serve.parameters import id_of, limit_of, text_of
from distilrec.serve.schemas import ItemRequest, ItemResponse, ItemsResponse, StatusResponse
from distilrec.serve.storage import Storage
from distilrec.stores.records import ItemRecord

_SEARCHED = 2_000  # titles before others get their turn


class Items:
    """The items of the models in memory, and what the store keeps about them."""

    def __init__(self, models: Models, storage: Storage) -> None:
        self._models, self._storage = models, storage
        self._changing = asyncio.Lock()

    async def get(self, item_id: str) -> ItemResponse:
        return _shown(self._models.active.recommender.item(item_id))

    async def search(self, text: str, limit: int) -> ItemsResponse:
        recommender = self._models.active.recommender
        items: list[Item] = []
        for start in range(0, recommender.places, _SEARCHED):  # titles are read one by one
            items += recommender.search(text, limit - len(items), start, start + _SEARCHED)
            if len(items) >= limit:
                break
            await asyncio.sleep(0)
        return ItemsResponse([_shown(item) for item in items])

    async def put(self, item_id: str, request: ItemRequest) -> ItemResponse:
        record = ItemRecord(
            item_id,
            request.title,
            dict(request.features),
            dict(request.attributes),
            request.available,
        )
        await self._change(record)
        return _shown(self._models.active.recommender.item(item_id))

    async def delete(self, item_id: str) -> StatusResponse:
        """Remove an item, also one whose id is from before ids followed a rule. Raises
        UnknownItemError, and InvalidIdError for what cannot be an id and is not stored.
        """
        recommender = self._models.active.recommender
        try:
            item_id = recommender.item(item_id).item_id
        except InvalidIdError:
            async with self._changing:
                await self._remove_stored(item_id)
            return StatusResponse("removed")
        await self._change(ItemRecord(item_id, available=False, removed=True))
        return StatusResponse("removed")

    async def _change(self, record: ItemRecord) -> None:
        """Check a change against all models in memory, store it, and apply it: all or nothing, and
        one change after the other.
        """
        async with self._changing:
            for served in self._models.all():
                served.recommender.check_item(
                    record, foreign_features=served is not self._models.active
                )
            await self._storage.put_item(record)
            for served in self._models.all():
                await self._storage.follow_items(served)

    async def _remove_stored(self, item_id: str) -> None:
        """Remove what the store keeps under a text that cannot be an id any more; no model uses it.
        Raises InvalidIdError where there is nothing.
        """
        records = await self._storage.all_items()
        if not any(record.item_id == item_id and not record.removed for record in records):
            as_id(item_id, "item_id")  # raises
        await self._storage.put_item(ItemRecord(item_id, available=False, removed=True))


def endpoints(items: Items) -> list[Endpoint]:
    """Return the endpoints of items."""
    return [
        Endpoint(
            "GET", "/v1/items", "items", "Items by title or id.", "recommend", None, ItemsResponse,
            lambda call: items.search(text_of(call, "search"), limit_of(call)),
            {
                "search": "text in the title or id; everything without it",
                "limit": "how many, 20 without it",
            },
        ),
        Endpoint(
            "GET", "/v1/items/{item_id:path}", "get_item", "What is known about an item.",
            "recommend", None, ItemResponse, lambda call: items.get(id_of(call, "item_id")),
        ),
        Endpoint(
            "PUT", "/v1/items/{item_id:path}", "put_item",
            "Adds an item, or changes title, attributes, availability.",
            "items", ItemRequest, ItemResponse,
            lambda call: items.put(id_of(call, "item_id"), call.body),
        ),
        Endpoint(
            "DELETE", "/v1/items/{item_id:path}", "delete_item",
            "Removes an item from all answers.", "items", None, StatusResponse,
            lambda call: items.delete(call.path["item_id"]),
        ),
    ]  # fmt: skip


def _shown(item: Item) -> ItemResponse:
    return ItemResponse(item.item_id, item.title, item.attributes, item.available, item.in_training)
