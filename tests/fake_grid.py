"""A Grid whose nodes are ClientApps in this process: what is pushed is done at once, and can be spoilt on its way."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Spoil = Callable[[int, Message, Message], "Message | None"]


class FakeGrid(Grid):
    """Node 100 + i is device i.

    Args:
        app: What every node runs.
        devices: How many there are.
        config: The run's configuration.
        node_config: Every node's, beside its `partition-id`.
    """

    def __init__(
        self, app: ClientApp, devices: int, config: dict | None = None, **node_config: object
    ) -> None:
        # Set where Flower starts a ServerApp; messages cannot be made without.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.app = app
        self.contexts = {
            100 + i: Context(1, 100 + i, {"partition-id": i, **node_config}, RecordDict(), dict(config or {}))
            for i in range(devices)
        }
        self.offline: set[int] = set()
        self.spoil: Spoil = lambda node, asked, answer: answer
        self.pushed: list[Message] = []
        self._answers: dict[str, Message] = {}

    def set_run(self, run) -> None: ...

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.offline]

    def push_messages(self, messages):
        ids = []
        for number, message in enumerate(messages, len(self.pushed)):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self.pushed.append(message)
            ids.append(f"m{number}")
            node = message.metadata.dst_node_id
            try:
                answer = self.app(message, self.contexts[node])
            except Exception as error:
                answer = Message(Error(2, str(error)), reply_to=message)
            spoilt = self.spoil(node, message, answer)
            if spoilt is not None:
                self._answers[f"m{number}"] = spoilt
        return ids

    def pull_messages(self, message_ids):
        return [self._answers.pop(i) for i in list(message_ids) if i in self._answers]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError
