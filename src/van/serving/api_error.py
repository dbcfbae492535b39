"""The error of the HTTP API: a status, a code for programs and a message for people."""


class ApiError(Exception):
    """A request, or one image of it, that gets an error instead of a prediction.

    Args:
        status: HTTP status code.
        code: error code, also the value of the metrics label ``reason``.
        message: what failed, the value got and the value expected.
        retry_after_s: value of the Retry-After header; 0 where a retry would not help.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def to_dict(self, request_id: str = "") -> dict[str, dict[str, str]]:
        """Return the JSON body of the response, or, without ``request_id``, the entry of one image."""
        fields = {"code": self.code, "message": self.message}
        return {"error": {**fields, "request_id": request_id} if request_id else fields}

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the status."""
        return {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {}
