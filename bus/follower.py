"""Follows the broker's events without a gap: events are hints, the version table is the truth. Pure."""

from .ids import RequestId, new_request_id
from .messages import AdapterDeleted, AdapterPublished, Message, VersionRetired, VersionTable

Event = AdapterPublished | VersionRetired | AdapterDeleted
News = Event | VersionTable

# A question that is not answered for so long is taken for lost.
ANSWER_S = 10.0


class EventFollower:
    """Decides which of what arrives is news, in which order, and when the table is needed.

    `behind` is True at the start and after a gap, until a table that covers it has come.
    """

    def __init__(self) -> None:
        self.behind = True
        self._last = -1
        # Came after a gap; a table may be older than some of them.
        self._early: dict[int, Event] = {}

    def hear(self, message: Message) -> list[News]:
        """Take in an event or a table; anything else, such as a refusal, is no news."""
        match message:
            case VersionTable():
                return self.hear_table(message)
            case AdapterPublished() | VersionRetired() | AdapterDeleted():
                return self.hear_event(message)
            case _:
                return []

    def hear_event(self, event: Event) -> list[News]:
        if event.number <= self._last:
            return []
        self._early[event.number] = event
        if not self.behind and event.number != self._last + 1:
            self.behind = True
        return self._in_order() if not self.behind else []

    def hear_table(self, table: VersionTable) -> list[News]:
        """A table that tells nothing new, or is older than what is known, is no news."""
        if table.last_event < self._last or (table.last_event == self._last and not self.behind):
            return []
        self._last = table.last_event
        self._early = {number: event for number, event in self._early.items() if number > self._last}
        news: list[News] = [table, *self._in_order()]
        self.behind = bool(self._early)
        return news

    def _in_order(self) -> list[News]:
        news: list[News] = []
        while (event := self._early.pop(self._last + 1, None)) is not None:
            self._last += 1
            news.append(event)
        return news


class TableQuestions:
    """When to ask for the table, which may be megabytes: one question at a time, however many want to know.

    What was wanted while a question was under way is asked once, when its answer has come: the table may have
    been read before what it was wanted for happened.
    """

    def __init__(self) -> None:
        self.under_way: RequestId | None = None
        self._since = 0.0
        self._wanted = False

    def ask(self, now: float) -> RequestId | None:
        """The question to send now; None while another is under way."""
        if self.under_way is not None and now < self._since + ANSWER_S:
            self._wanted = True
            return None
        self.under_way, self._since, self._wanted = new_request_id(), now, False
        return self.under_way

    def answered(self, request: RequestId, now: float) -> RequestId | None:
        """An answer has come, perhaps to a question that was taken for lost. The question to send now."""
        if request != self.under_way:
            return None
        self.under_way = None
        return self.ask(now) if self._wanted else None
