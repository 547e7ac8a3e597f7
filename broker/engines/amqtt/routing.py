"""Who gets a topic, and what a new subscriber gets at once: two tries over the levels of topics (MQTT 3.1.1, 4.7)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

from broker.engines.amqtt.packets import Publish
from fleet.identity import DeviceId
from fleet.limits import Limits

S = TypeVar("S", bound=Hashable)
_MAX_REMEMBERED: Final = 131_072  # topics, and subscribers of each: ten megabytes or so
_MAX_REMEMBERED_CHARS: Final = 128


class _Node(Generic[S]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node[S]] | None = None
        self.subscribers: dict[S, int] | None = None

    def is_bare(self) -> bool:
        return not self.children and not self.subscribers


class _Routes(Generic[S]):
    """What was found for a topic, for the last few thousand topics; bounded, however many subscribers one has.

    A subscription that comes or goes concerns topics that begin with the same two levels: `devices/pump-07`. So a fleet
    that connects and disconnects all the time has everybody else's routes remembered.
    """

    __slots__ = ("_branches", "_weight", "found")

    def __init__(self) -> None:
        self.found: dict[str, tuple[tuple[S, int], ...]] = {}
        self._branches: dict[str, list[str]] = {}
        self._weight = 0

    def keep(self, topic: str, found: tuple[tuple[S, int], ...]) -> None:
        """Remember; nothing is known of this topic."""
        if len(topic) > _MAX_REMEMBERED_CHARS:
            return
        self._weight += 1 + len(found)
        if self._weight > _MAX_REMEMBERED:
            self.clear()
            self._weight = 1 + len(found)
        self.found[topic] = found
        branch = _branch(topic)
        if branch in self._branches:
            self._branches[branch].append(topic)
        else:
            self._branches[branch] = [topic]

    def forget(self, topic_filter: str) -> None:
        """Forget every topic that this filter can match."""
        branch = _branch(topic_filter)
        if "+" in branch or "#" in branch:
            self.clear()
        else:
            for topic in self._branches.pop(branch, ()):
                self._weight -= 1 + len(self.found.pop(topic))

    def clear(self) -> None:
        self.found.clear()
        self._branches.clear()
        self._weight = 0


def _branch(topic: str) -> str:
    """The first two levels of a topic or a filter."""
    end = topic.find("/", topic.find("/") + 1)
    return topic if end < 0 else topic[:end]


class Subscriptions(Generic[S]):
    """Which subscriber asked for which filter, at what QoS."""

    def __init__(self) -> None:
        self._root: _Node[S] = _Node()
        self._routes: _Routes[S] = _Routes()
        self._known = self._routes.found
        self.count = 0

    def add(self, topic_filter: str, subscriber: S, qos: int) -> None:
        """Subscribe, or change the QoS of that very filter (3.8.4)."""
        node = self._root
        for level in topic_filter.split("/"):
            if node.children is None:
                node.children = {}
            node = node.children.setdefault(level, _Node())
        if node.subscribers is None:
            node.subscribers = {}
        if node.subscribers.get(subscriber) == qos:
            return
        self.count += subscriber not in node.subscribers
        node.subscribers[subscriber] = qos
        self._routes.forget(topic_filter)

    def has_below(self, first_level: str, second_level: str) -> bool:
        """Whether anyone asked for topics that begin with these levels, with the first by its name."""
        found = (self._root.children or {}).get(first_level)
        below = found.children if found is not None else None
        return below is not None and not below.keys().isdisjoint((second_level, "+", "#"))

    def remove(self, topic_filter: str, subscriber: S) -> None:
        """Unsubscribe; nothing happens if there was no such subscription."""
        path = self._path(topic_filter)
        if path is None or not path[-1][1].subscribers or subscriber not in path[-1][1].subscribers:
            return
        del path[-1][1].subscribers[subscriber]
        self.count -= 1
        self._routes.forget(topic_filter)
        for (_, parent), (level, child) in zip(path[-2::-1], path[:0:-1], strict=True):
            if not child.is_bare() or parent.children is None:
                break
            del parent.children[level]

    def _path(self, topic_filter: str) -> list[tuple[str, _Node[S]]] | None:
        path = [("", self._root)]
        for level in topic_filter.split("/"):
            child = (path[-1][1].children or {}).get(level)
            if child is None:
                return None
            path.append((level, child))
        return path

    def route(self, topic: str) -> tuple[tuple[S, int], ...]:
        """Every subscriber of `topic`, once, with the highest QoS of its filters that match (MQTT-3.3.5-1)."""
        found = self._known.get(topic)
        if found is None:
            found = tuple(self._match(topic).items())
            self._routes.keep(topic, found)
        return found

    def _match(self, topic: str) -> dict[S, int]:
        found: dict[S, int] = {}
        nodes = [self._root]
        has_wildcards = topic[:1] != "$"  # in its first level (MQTT-4.7.2-1)
        for level in topic.split("/"):
            following: list[_Node[S]] = []
            for node in nodes:
                children = node.children
                if not children:
                    continue
                if child := children.get(level):
                    following.append(child)
                if has_wildcards:
                    if child := children.get("+"):
                        following.append(child)
                    if child := children.get("#"):
                        _collect(child, found)
            if not following:
                return found
            nodes, has_wildcards = following, True
        for node in nodes:
            _collect(node, found)
            if node.children and (child := node.children.get("#")):
                _collect(child, found)  # 4.7.1.2: `sport/#` matches `sport` too
        return found


def _collect(node: _Node[S], found: dict[S, int]) -> None:
    for subscriber, qos in (node.subscribers or {}).items():
        if found.get(subscriber, -1) < qos:
            found[subscriber] = qos


class _Leaf:
    __slots__ = ("children", "message", "owner")

    def __init__(self) -> None:
        self.children: dict[str, _Leaf] = {}
        self.message: Publish | None = None
        self.owner: DeviceId | None = None


class _Holding:
    """What one principal has retained."""

    __slots__ = ("size_bytes", "topics")

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.size_bytes = 0


class Retained:
    """The last retained message of each topic; how many, and how much, each principal has there is bounded."""

    def __init__(self, limits: Limits) -> None:
        self._root = _Leaf()
        self._holdings: dict[DeviceId | None, _Holding] = {}
        self._limits = limits
        self._count = 0
        self.on_change: Callable[[str, Publish | None, DeviceId | None], None] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Of all that is retained."""
        return sum(holding.size_bytes for holding in self._holdings.values())

    def set(self, message: Publish, owner: DeviceId | None) -> None:
        """Keep the message, or forget the topic's if it is empty (3.3.1.3).

        `owner` is None for the broker itself, which is not limited.
        """
        if message.is_empty():
            self._forget(message.topic)
            return
        leaf = self._root
        for level in message.topic.split("/"):
            leaf = leaf.children.setdefault(level, _Leaf())
        self._release(leaf)
        leaf.message, leaf.owner = message, owner
        holding = self._holdings.setdefault(owner, _Holding())
        holding.topics.add(message.topic)
        holding.size_bytes += message.size
        self._count += 1
        if self.on_change is not None:
            self.on_change(message.topic, message, owner)

    def has_room(self, message: Publish, owner: DeviceId) -> bool:
        """Whether the owner may retain this beside, or in the place of, what it has."""
        holding = self._holdings.get(owner)
        if holding is None or message.is_empty():
            return True
        count, size_bytes = len(holding.topics) + 1, holding.size_bytes + message.size
        if message.topic in holding.topics and (known := self.get(message.topic)) is not None:
            count, size_bytes = count - 1, size_bytes - known.size
        limits = self._limits
        return count <= limits.retained_per_principal and size_bytes <= limits.retained_bytes_per_principal

    def get(self, topic: str) -> Publish | None:
        """The message that is retained for this very topic."""
        leaf = self._find(topic)
        return None if leaf is None else leaf.message

    def all(self) -> Iterator[tuple[Publish, DeviceId | None]]:
        """Every retained message, and whose it is."""
        pending = [self._root]
        while pending:
            leaf = pending.pop()
            if leaf.message is not None:
                yield leaf.message, leaf.owner
            pending.extend(leaf.children.values())

    def forget_all_of(self, owner: DeviceId) -> None:
        """Nothing that this principal retained is left."""
        holding = self._holdings.get(owner)
        for topic in tuple(holding.topics) if holding is not None else ():
            self._forget(topic)

    def forget_matching(self, topic_filter: str) -> None:
        """Nothing is left that this filter matches, whoever retained it."""
        for message in tuple(self.matching(topic_filter)):
            self._forget(message.topic)

    def _find(self, topic: str) -> _Leaf | None:
        leaf: _Leaf | None = self._root
        for level in topic.split("/"):
            leaf = leaf.children.get(level) if leaf else None
        return leaf

    def _release(self, leaf: _Leaf) -> None:
        message, leaf.message = leaf.message, None
        if message is None:
            return
        self._count -= 1
        holding = self._holdings[leaf.owner]
        holding.topics.discard(message.topic)
        holding.size_bytes -= message.size
        if not holding.topics:
            del self._holdings[leaf.owner]

    def _forget(self, topic: str) -> None:
        path = [("", self._root)]
        for level in topic.split("/"):
            child = path[-1][1].children.get(level)
            if child is None:
                return
            path.append((level, child))
        self._release(path[-1][1])
        if self.on_change is not None:
            self.on_change(topic, None, None)
        for (_, parent), (level, child) in zip(path[-2::-1], path[:0:-1], strict=True):
            if child.children or child.message is not None:
                break
            del parent.children[level]

    def matching(self, topic_filter: str) -> Iterator[Publish]:
        """Every retained message whose topic the filter matches."""
        levels = topic_filter.split("/")
        pending = [(self._root, 0)]
        while pending:
            leaf, depth = pending.pop()
            if depth == len(levels):
                if leaf.message is not None:
                    yield leaf.message
                continue
            level = levels[depth]
            if level == "#":
                yield from _all_below(leaf, is_root=depth == 0)
            elif level == "+":
                pending.extend((c, depth + 1) for name, c in leaf.children.items() if depth or name[:1] != "$")
            elif child := leaf.children.get(level):
                pending.append((child, depth + 1))


def _all_below(leaf: _Leaf, *, is_root: bool) -> Iterator[Publish]:
    pending = [child for name, child in leaf.children.items() if name[:1] != "$"] if is_root else [leaf]
    while pending:
        leaf = pending.pop()
        if leaf.message is not None:
            yield leaf.message
        pending.extend(leaf.children.values())
