"""A Hugging Face Hub for tests: repositories in memory, the routes of reads and commits, and faults.

Weights and pictures travel by ``storage``: inside the commit ('regular'), by LFS (from another host name, as on the
Hub, so that it shows who sends a token where), or into hf_xet's own store in a folder ('xet').
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

_LARGE = ('.safetensors', '.png')


@dataclass
class File:
    data: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        blob = b'blob %d\0' % len(self.data) + self.data
        return self.sha256 if self.large else hashlib.sha1(blob).hexdigest()


@dataclass
class Repo:
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def at(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    def commit(self, branch: str, files: dict[str, File]) -> str:
        sha = hashlib.sha1(f'{id(self)} {len(self.commits)}'.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def __getitem__(self, branch: str) -> dict[str, bytes]:
        return {name: file.data for name, file in self.commits[self.branches[branch]].items()}


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of which 'METHOD /path' matches ``where``."""

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection ends after so many bytes of the body ...
    reset: bool = False  # ... with a reset
    longer: int = 0  # bytes by which Content-Length exceeds the body; negative: the body ends there
    flip: bool = False  # the last byte of the body is another
    unsized: bool = False  # the body comes in chunks, without its size
    times: int = 1
    reached: threading.Event | None = None  # set after ``cut`` bytes; the rest follows after ``go``
    go: threading.Event | None = None
    body: bytes = b'{"error": "a fault"}'


@dataclass
class Hub:
    storage: str = 'regular'
    store: Path | None = None  # hf_xet's
    elsewhere: Path | None = None  # what clients are told instead
    token: str = ''  # whoever writes, or reads a private repository, needs it
    endpoint: str = ''
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: int = 0  # bytes of the bodies so far
    token_seen_by: set[str] = field(default_factory=set)  # host names
    lock: Any = field(default_factory=threading.Lock)

    @property
    def cdn(self) -> str:
        return self.endpoint.replace('127.0.0.1', 'localhost')

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.where, request):
                    fault.times -= 1
                    return fault
        return None

    def count(self, where: str) -> int:
        return sum(bool(re.search(where, request)) for request in self.requests)

    def xet_hashes(self) -> dict[str, str]:
        """Xet's hash by sha256, from the shards (file information: 48-byte records after a 48-byte header)."""
        found = {}
        assert self.store is not None

        def words(data: bytes) -> str:
            return struct.pack('>4Q', *struct.unpack('<4Q', data)).hex()

        for path in self.store.rglob('shards/*.mdb'):
            data, at = path.read_bytes(), 48
            while data[at : at + 32] != b'\xff' * 32:
                xet, flags, count = struct.unpack_from('<32sII', data, at)
                at += 48 * (1 + count + (count if flags & 1 << 31 else 0))
                if flags & 1 << 30:
                    found[words(data[at : at + 32])] = words(xet)
                    at += 48
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: Hub
    now: Fault | None

    def log_message(self, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # --- Answers ---

    def answer(self, status: int, body: bytes | dict | list = b'', **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        span = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if status == 200 and span and data:
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            headers['Content_Range'] = f'bytes {first}-{last}/{len(data)}'
            data, status = data[first : last + 1], 206
        fault = self.now or Fault('')
        if fault.flip:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(status)
        size = {'Transfer-Encoding': 'chunked'} if fault.unsized else {'Content-Length': str(len(data) + fault.longer)}
        for key, value in {**size, **headers}.items():
            self.send_header(key.replace('_', '-'), value)
        self.end_headers()
        if self.command == 'HEAD':
            return
        if fault.longer:
            self.close_connection = True
            data = data[: len(data) + min(fault.longer, 0)]
        if fault.cut is None:
            for start in range(0, len(data), 1 << 16):
                piece = data[start : start + (1 << 16)]
                self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if fault.unsized else piece)
                self.hub.sent += len(piece)
            self.wfile.write(b'0\r\n\r\n' if fault.unsized else b'')
            return
        self.wfile.write(data[: fault.cut])
        self.wfile.flush()
        if fault.reached and fault.go:
            fault.reached.set()
            fault.go.wait(60)
            self.wfile.write(data[fault.cut :])
            return
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.connection.close()

    def refuse(self, status: int, code: str = '', **headers: str) -> None:
        self.answer(status, {'error': code}, **({'X_Error_Code': code} if code else {}), **headers)

    # --- Requests ---

    def begin(self) -> list[str] | None:
        """The parts of the path, or None if a fault has answered."""
        path, _, query = self.path.partition('?')
        self.query = parse_qs(query)
        self.body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if self.headers.get('Authorization'):
            self.hub.token_seen_by.add(self.headers['Host'].partition(':')[0])
        self.now = self.hub.fault(f'{self.command} {unquote(path)}')
        if self.now and self.now.status:
            headers = {key.replace('-', '_'): value for key, value in self.now.headers.items()}
            self.answer(self.now.status, self.now.body, **headers)
            return None
        return unquote(path).strip('/').split('/')

    def allowed(self, repo: Repo | None = None) -> bool:
        open_to_all = repo is not None and not repo.private
        return not self.hub.token or open_to_all or self.headers.get('Authorization') == f'Bearer {self.hub.token}'

    def do_GET(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        if parts[0] == 'lfs':
            return self.answer(200, self.hub.objects[parts[1]], ETag=f'"{parts[1]}"')
        if parts == ['api', 'models']:
            names = [n for n, r in self.hub.repos.items() if n.startswith(f'{self.query["author"][0]}/')]
            return self.answer(200, [{'id': n} for n in names if self.allowed(self.hub.repos[n])])
        api = parts[:2] == ['api', 'models']
        name = '/'.join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        repo = self.hub.repos.get(name)
        if repo is None or not self.allowed(repo):
            return self.refuse(401 if self.hub.token and not self.headers.get('Authorization') else 404, 'RepoNotFound')
        if api and rest and rest[0].startswith('xet-'):
            return self.xet_token(rest[0])
        sha = repo.at(rest[1] if rest[1:] else 'main')
        if sha is None:
            return self.refuse(404, 'RevisionNotFound')
        files = repo.commits[sha]
        if api and rest[:1] == ['tree']:
            return self.answer(200, [_entry(path, file) for path, file in files.items()])
        if api:
            siblings = [{'rfilename': path} for path in files]
            return self.answer(200, {'id': name, 'sha': sha, 'private': repo.private, 'siblings': siblings})
        self.resolve(name, sha, '/'.join(rest[2:]), files)

    do_HEAD = do_GET

    def resolve(self, name: str, sha: str, path: str, files: dict[str, File]) -> None:
        file = files.get(path)
        if file is None:
            return self.refuse(404, 'EntryNotFound', X_Repo_Commit=sha)
        headers = {'X_Repo_Commit': sha, 'ETag': f'"{file.etag}"'}
        if not file.large:
            return self.answer(200, file.data, **headers)
        headers = headers | {'X_Linked_Etag': f'"{file.sha256}"', 'X_Linked_Size': str(len(file.data))}
        if self.hub.storage == 'xet':
            headers['X_Xet_Hash'] = self.hub.xet_hashes()[file.sha256]
            headers['X_Xet_Refresh_Route'] = f'{self.hub.endpoint}/api/models/{name}/xet-read-token/{sha}'
        self.answer(302, b'', Location=f'{self.hub.cdn}/lfs/{file.sha256}', **headers)

    def xet_token(self, kind: str) -> None:
        if kind == 'xet-write-token' and not self.allowed():
            return self.refuse(401)
        url, expires = f'local://{self.hub.elsewhere or self.hub.store}', 4_000_000_000
        headers = {'X_Xet_Cas_Url': url, 'X_Xet_Access_Token': 'xet', 'X_Xet_Token_Expiration': str(expires)}
        self.answer(200, {'casUrl': url, 'accessToken': 'xet', 'exp': expires}, **headers)

    def do_PUT(self) -> None:
        parts = self.begin()
        if parts is not None:
            assert parts[0] == 'lfs' and hashlib.sha256(self.body).hexdigest() == parts[1]
            self.hub.objects[parts[1]] = self.body
            self.answer(200)

    def do_POST(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        if parts[-1] == 'validate-yaml':
            return self.answer(200, {'errors': [], 'warnings': []})
        repo = self.hub.repos.get('/'.join(parts[2:4]))
        if parts[-1] == 'paths-info' or parts[4:5] == ['paths-info']:
            assert repo is not None
            files = repo.commits[repo.at(parts[5]) or '']
            asked = parse_qs(self.body.decode())['paths'] if self.body[:1] != b'{' else json.loads(self.body)['paths']
            return self.answer(200, [_entry(path, files[path]) for path in asked if path in files])
        if not self.allowed():
            return self.refuse(401)
        asked = json.loads(self.body) if self.body[:1] == b'{' and b'\n' not in self.body.strip() else {}
        if parts[-1] == 'create':
            return self.create(f'{asked["organization"]}/{asked["name"]}', asked.get('visibility') == 'private')
        if parts[-2:] == ['objects', 'batch']:
            return self.answer(200, {'transfer': 'basic', 'objects': [self.upload(o) for o in asked['objects']]})
        assert repo is not None, self.path
        if parts[4] == 'branch':
            repo.branches[parts[5]] = repo.branches['main']
            return self.answer(200)
        if parts[4] == 'preupload':
            return self.answer(200, {'files': [self.plan(file['path']) for file in asked['files']]})
        assert parts[4] == 'commit', self.path
        self.commit('/'.join(parts[2:4]), repo, parts[5])

    def create(self, name: str, private: bool) -> None:
        if name in self.hub.repos:
            return self.answer(409, {'error': 'You already created this repo', 'url': f'{self.hub.endpoint}/{name}'})
        self.hub.repos[name] = repo = Repo(private=private)
        repo.commit('main', {'.gitattributes': File(b'')})
        self.answer(200, {'url': f'{self.hub.endpoint}/{name}', 'id': name})

    def plan(self, path: str) -> dict[str, Any]:
        large = self.hub.storage != 'regular' and path.endswith(_LARGE)
        return {'path': path, 'uploadMode': 'lfs' if large else 'regular', 'shouldIgnore': False}

    def upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked['oid'] in self.hub.objects:
            return asked
        return asked | {'actions': {'upload': {'href': f'{self.hub.cdn}/lfs/{asked["oid"]}'}}}

    def commit(self, name: str, repo: Repo, branch: str) -> None:
        head = repo.branches[branch]
        files = dict(repo.commits[head])
        for line in map(json.loads, self.body.splitlines()):
            value = line['value']
            if line['key'] == 'header' and value.get('parentCommit', head) != head:
                return self.answer(412, {'error': 'A commit has happened since. Please refresh and try again.'})
            if line['key'] == 'file':
                files[value['path']] = File(base64.b64decode(value['content']))
            if line['key'] == 'lfsFile':
                files[value['path']] = File(self.stored(value['oid'], value['size']), large=True)
            if line['key'] == 'deletedFile':
                del files[value['path']]
        sha = repo.commit(branch, files)
        url = f'{self.hub.endpoint}/{name}/commit/{sha}'
        self.answer(200, {'success': True, 'commitOid': sha, 'commitUrl': url, 'hookOutput': ''})

    def stored(self, oid: str, size: int) -> bytes:
        if self.hub.storage == 'xet':  # read back by another session, as from a content store of its own
            self.hub.objects[oid] = _from_xet(self.hub, oid, size)
        return self.hub.objects[oid]


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {'type': 'file', 'path': path, 'size': len(file.data), 'oid': file.etag}
    if file.large:
        entry['lfs'] = {'oid': file.sha256, 'size': len(file.data), 'pointerSize': 134}
    return entry


def _from_xet(hub: Hub, oid: str, size: int) -> bytes:
    import hf_xet

    target = Path(str(hub.store)) / oid
    with hf_xet.XetSession().new_file_download_group(endpoint=f'local://{hub.store}') as group:
        group.start_download_file(hf_xet.XetFileInfo(hub.xet_hashes()[oid], size), str(target))
    data = target.read_bytes()
    target.unlink()
    return data


@contextmanager
def serve(**options: Any) -> Iterator[Hub]:
    hub = Hub(**options)
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('Bound', (Handler,), {'hub': hub}))
    server.daemon_threads = True
    hub.endpoint = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
