"""Time that passes when code sleeps."""


class FakeTime:
    """A clock that runs when somebody sleeps; `at_sleep` is what others do meanwhile."""

    def __init__(self, at_sleep=lambda: None):
        self.seconds, self.at_sleep = 1000.0, at_sleep

    def clock(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds
        self.at_sleep()
