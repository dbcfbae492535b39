"""What a client is told when it is not answered: a status, a code that programs read, and a message for people."""


class Refused(Exception):
    """A request, or one picture of it, is not answered.

    Args:
        status: of HTTP.
        code: a word for it, also the label under which it is counted.
        message: names the thing, the value seen and the value wanted.
        retry_after_s: when to come again; 0 where that would not help.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def to_dict(self, request_id: str = "") -> dict[str, dict[str, str]]:
        """The body of the answer, or what stands in a picture's place."""
        plain = {"code": self.code, "message": self.message}
        return {"error": {**plain, "request_id": request_id} if request_id else plain}

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to the status."""
        return {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {}
