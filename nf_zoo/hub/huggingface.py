"""Calls to the Hugging Face Hub: repeated where a failure may pass, else one line that never shows the token."""

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckFailed, UserError
from ..text import clean

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

_TRIES = 3
_LONGEST = 60  # seconds of pause that a server may ask for
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
    """The Hub cannot be reached, or has a fault of its own. It may work later, or another place may do."""


def redact(text: str) -> str:
    """``text`` without the user's token, and without any other text of a token's form."""
    token = _token()
    return _TOKEN.sub('***', text.replace(token, '***') if token else text)


def has_token(data: bytes) -> bool:
    """Whether ``data`` contains the user's own token."""
    token = _token()
    return bool(token) and token.encode() in data


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token() or ''
    return token if len(token) >= 8 else ''  # a shorter text is not a token, and occurs in many words


def patient(call: Callable[[], _T]) -> _T:
    """Call again what failed for a reason that may pass, after the pause that the server asks for.

    huggingface_hub itself repeats HEAD requests and uploads to storage, and resumes a download that was cut. It repeats
    neither the calls of its API, nor a download that a reset connection or a 5xx ended. Only for calls that may be
    repeated without harm.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for attempt in range(1, _TRIES):
        try:
            with _short_pauses():
                return call()
        except (HTTPError, RuntimeError) as error:
            found = _cause(error)
            if not isinstance(found, HTTPError) or (_status(found) and not _passes(_status(found))):
                raise
            asked = _pause(found.response.headers) if isinstance(found, HfHubHTTPError) else None
            pause = 2 ** (attempt - 1) if asked is None else asked
            if pause > _LONGEST:
                raise
        _logger.warning(f'the Hub failed; trying again in {pause} s ({attempt} of {_TRIES - 1})')
        time.sleep(pause)
    with _short_pauses():
        return call()


@contextmanager
def _short_pauses() -> Iterator[None]:
    """Fail at once where a server asks huggingface_hub for a pause of more than a minute.

    Its `http_backoff` sleeps for as long as a server says, without a limit of its own
    (https://github.com/huggingface/huggingface_hub/pull/4460).
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError

    def check(response: Any) -> None:
        pause = _pause(response.headers)
        if response.status_code >= 400 and pause is not None and pause > _LONGEST:
            raise HfHubHTTPError(f'{response.status_code}: the Hub asks for a pause of {pause} s', response=response)

    client = get_session()
    client.event_hooks = _with_hooks(client, [*client.event_hooks['response'], check])
    try:
        yield
    finally:
        client.event_hooks = _with_hooks(client, [hook for hook in client.event_hooks['response'] if hook is not check])


def _with_hooks(client: Any, hooks: list[Any]) -> dict[str, list[Any]]:
    return {**client.event_hooks, 'response': hooks}


def _pause(headers: Mapping[str, str]) -> int | None:
    """The seconds of pause that a response asks for."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = headers.get('Retry-After', '')
    return int(asked[:18]) if asked.isascii() and asked.isdecimal() else None


def limited(limit: int, what: str, error: type[Exception] = UserError) -> type:
    """A progress bar for huggingface_hub that raises ``error`` when the file ``what`` has more than ``limit`` bytes.

    It sees the size that the server announces before the first byte, and then every piece before it is written: the
    library has no other way to bound a download.
    """
    from huggingface_hub.utils import tqdm

    class Limited(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.received = kwargs.get('initial') or 0
            self.check(kwargs.get('total') or 0)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            self.check(self.received)
            return super().update(n)

        def check(self, size: float) -> None:
            if size > limit:
                raise error(f'hf://{what} has more than {limit:,} bytes; its download was stopped')

    return Limited


@contextmanager
def hf_errors(repo: str) -> Iterator[None]:
    """Turn any error of huggingface_hub about ``repo`` into one `UserError` that says what to do."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # hf-xet: RuntimeError
        if isinstance(error, UserError | CheckFailed):
            raise
        raise _explained(error, repo) from None


@contextmanager
def timms_download(name: str, pretrained: bool = True) -> Iterator[None]:
    """Around timm's own loading of the model ``name``: one line where the Hub can't be reached.

    timm asks for two names of a file, and huggingface_hub repeats each request for half a minute. One request that is
    not repeated comes first, where nothing of the repository is in the cache.

    Raises:
        Unreachable: the weights are not in the cache, and the Hub can't be reached.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo = timms_repository(name) if pretrained else ''
    if repo:
        _ask_once(repo)
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _not_here(repo or name, error.__cause__ or error) from None


def timms_repository(name: str) -> str:
    """The repository that timm reads for a name; empty if it reads none."""
    import timm

    scheme, colon, rest = name.partition(':')
    if colon:
        return rest.partition('@')[0] if scheme in ('hf-hub', 'hf_hub') else ''
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return getattr(cfg, 'hf_hub_id', None) or ''


def _ask_once(repo: str) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.file_download import repo_folder_name

    if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type='model') / 'snapshots').exists():
        return
    if constants.HF_HUB_OFFLINE:
        raise _not_here(repo, OfflineModeIsEnabled())
    try:
        file = hf_hub_url(repo, constants.SAFETENSORS_SINGLE_FILE)
        get_hf_file_metadata(file, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError:  # it answers: timm says what is wrong
        pass
    except HTTPError as error:
        raise _not_here(repo, error) from None
    except (OSError, ValueError):
        pass


def _not_here(repo: str, cause: BaseException) -> Unreachable:
    from huggingface_hub.errors import OfflineModeIsEnabled

    offline = isinstance(cause, OfflineModeIsEnabled)
    why = 'HF_HUB_OFFLINE is set' if offline else _reason(cause if isinstance(cause, Exception) else OSError(cause))
    return Unreachable(
        f"the Hub can't be reached ({why}), and hf://{repo} is not in its cache; take weights that are here: a name "
        'with an accuracy in `nf-zoo list --pretrained`, a hub on NF_ZOO_HUB, or a file (`nf-zoo train '
        '--initial-checkpoint FILE`, `nf-zoo convert --weights FILE`)'
        + ('' if offline else '; HF_HUB_OFFLINE=1 asks the cache alone')
    )


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
        first += f' ({more})'
    return clean(redact(first))[:300]


def _cause(error: Exception) -> Exception:
    """The failed request behind huggingface_hub's "Error while uploading"."""
    behind = error.__cause__
    return behind if type(error) is RuntimeError and isinstance(behind, Exception) else error


def _status(error: Exception) -> int:
    response = getattr(error, 'response', None)
    return response.status_code if response is not None else 0


def _passes(status: int) -> bool:
    return status in (408, 429, 500, 502, 503, 504)
