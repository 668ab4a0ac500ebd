"""Calls to the Hugging Face Hub: patience with what passes, one line (without the token) for what doesn't."""

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import CheckFailed, UserError

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

_TRIES = 3
_LONGEST = 300  # seconds that a server may ask us to wait
_TOKEN = re.compile(r'hf_[A-Za-z0-9]{16,}|(?<=[Bb]earer )\S+')

_ADVICE = {
    401: "the Hub doesn't accept the token; log in (`hf auth login`) or set HF_TOKEN",
    403: 'the token has no right to this; use one that has, of a member of the organization',
    409: 'somebody else changes it at this moment; run it again',
    412: 'somebody else has published there meanwhile; run it again',
    413: 'the Hub takes no file of this size',
    429: 'too many requests; try again later',
    507: 'the Hub has no space left',
}


class Unreachable(UserError):
    """The Hub can't be reached, or has a fault of its own: it may work later, and another place may do."""


def redact(text: str) -> str:
    """``text`` without the user's token, and without anything else that has a token's form."""
    token = _token()
    return _TOKEN.sub('***', text.replace(token, '***') if token else text)


def has_token(data: bytes) -> bool:
    """Whether the user's own token is somewhere in ``data``."""
    token = _token()
    return bool(token) and token.encode() in data


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token() or ''
    return token if len(token) >= 8 else ''  # a shorter one is none, and is a part of many words


def patient(call: Callable[[], _T]) -> _T:
    """Call again, after the pause that the server asks for, what failed for a reason that may pass.

    huggingface_hub itself repeats HEAD requests, uploads to storage, and goes on where a download was cut; it doesn't
    repeat the calls of its API, nor a download that a reset connection or a 5xx ended. Only for calls whose repetition
    does no harm.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for attempt in range(1, _TRIES):
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            found = _cause(error)
            if not isinstance(found, HTTPError) or (_status(found) and not _passes(_status(found))):
                raise
            asked = found.response.headers.get('Retry-After', '') if isinstance(found, HfHubHTTPError) else ''
            pause = int(asked) if asked.isdecimal() else 2 ** (attempt - 1)
            if pause > _LONGEST:
                raise
        _logger.warning(f'the Hub failed; trying again in {pause} s ({attempt} of {_TRIES - 1})')
        time.sleep(pause)
    return call()


@contextmanager
def hf_errors(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises for ``repo`` into one `UserError` that says what to do."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # hf-xet: RuntimeError
        if isinstance(error, UserError | CheckFailed):
            raise
        raise _explained(error, repo) from None


def _explained(error: Exception, repo: str) -> UserError:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    error = _cause(error)
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and not _passes(_status(cause)):
            return _explained(cause, repo)
        why = f' ({_reason(cause)})' if isinstance(cause, Exception) else ''
        return Unreachable(f"{repo} is not in the cache and the Hub can't be reached{why}; try again online")
    said = _reason(error)
    if isinstance(error, LookupError | TypeError):  # huggingface_hub misses something in the answer
        return UserError(f"hf://{repo}: HF_ENDPOINT doesn't answer as a Hub does ({type(error).__name__}: {said})")
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"hf://{repo}: the Hub can't be asked while HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, HfHubHTTPError):
        status = _status(error)
        advice = _ADVICE.get(status, 'the Hub has a fault; try again later' if status >= 500 else '')
        text = f'hf://{repo}: {said}' + (f'; {advice}' if advice else '')
        return Unreachable(text) if _passes(status) else UserError(text)
    if isinstance(error, HTTPError):
        return Unreachable(f'hf://{repo}: the connection was cut ({said}); try again')
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS):
        reason = os.strerror(error.errno)
        return UserError(f"hf://{repo}: can't write to huggingface_hub's cache: {reason}; free space or set HF_HOME")
    if 'Consistency check failed' in str(error):
        return Unreachable(f'hf://{repo}: {said}; try again')
    if type(error) is RuntimeError or type(error).__module__ == 'hf_xet':
        shown = re.search(r'\b([45]\d\d) [A-Z]', said)
        said += f'; {_ADVICE.get(int(shown[1]) if shown else 0, "HF_HUB_DISABLE_XET=1 does without Xet")}'
    return UserError(f'hf://{repo}: {said}')


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    more = getattr(error, 'server_message', None)
    if more and more not in first:
        first += f' ({" ".join(more.split())})'
    return redact(first)[:300]


def _cause(error: Exception) -> Exception:
    """The failed request behind huggingface_hub's "Error while uploading"."""
    behind = error.__cause__
    return behind if type(error) is RuntimeError and isinstance(behind, Exception) else error


def _status(error: Exception) -> int:
    response = getattr(error, 'response', None)
    return response.status_code if response is not None else 0


def _passes(status: int) -> bool:
    return status in (408, 429, 500, 502, 503, 504)
