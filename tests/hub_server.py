"""A Hugging Face Hub for tests: repositories in memory, the routes that huggingface_hub's reads and commits use.

Every file is a "regular" one (it travels inside the commit), so no Xet and no LFS storage is needed.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Files = dict[str, bytes]


@dataclass
class Hub:
    """``repos[repo]`` is its list of commits; the branch main is the last."""

    repos: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ''

    def commit(self, repo: str, files: Files) -> str:
        commits = self.repos.setdefault(repo, [])
        sha = hashlib.sha1(f'{repo} {len(commits)}'.encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repos.get(repo, [])
        return next((c for c in reversed(commits) if revision in ('main', c[0])), None)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes | dict, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {'Content-Length': str(len(data)), **headers}.items():
                self.send_header(key.replace('_', '-'), value)
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(data)

        def do_GET(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            parts = unquote(self.path.partition('?')[0]).strip('/').split('/')
            if parts[:2] == ['api', 'models']:
                repo, revision, file = '/'.join(parts[2:4]), parts[5] if len(parts) > 5 else 'main', ''
            else:
                repo, revision, file = '/'.join(parts[:2]), parts[3], '/'.join(parts[4:])
            if repo not in hub.repos:
                return self.answer(404, b'', X_Error_Code='RepoNotFound')
            found = hub.at(repo, revision)
            if found is None:
                return self.answer(404, b'', X_Error_Code='RevisionNotFound')
            sha, files = found
            if not file:
                return self.answer(200, {'id': repo, 'sha': sha, 'siblings': [{'rfilename': f} for f in files]})
            if file not in files:
                return self.answer(404, b'', X_Error_Code='EntryNotFound', X_Repo_Commit=sha)
            self.answer(200, files[file], X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"')

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
            parts = unquote(self.path.partition('?')[0]).strip('/').split('/')
            if parts[-1] == 'create':
                asked = json.loads(body)
                repo = f'{asked["organization"]}/{asked["name"]}'
                if repo not in hub.repos:
                    hub.commit(repo, {'.gitattributes': b''})
                return self.answer(200, {'url': f'{hub.endpoint}/{repo}', 'id': repo})
            if parts[-1] == 'validate-yaml':
                return self.answer(200, {'errors': [], 'warnings': []})
            repo = '/'.join(parts[2:4])
            if parts[4] == 'preupload':
                asked = json.loads(body)['files']
                plan = [{'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for f in asked]
                return self.answer(200, {'files': plan})
            assert parts[4] == 'commit', self.path
            head, files = hub.repos[repo][-1]
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                value = line['value']
                if line['key'] == 'header' and value.get('parentCommit', head) != head:
                    return self.answer(412, {'error': 'A commit has happened since. Please refresh and try again.'})
                if line['key'] == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                if line['key'] == 'deletedFile':
                    del files[value['path']]
            sha = hub.commit(repo, files)
            url = f'{hub.endpoint}/{repo}/commit/{sha}'
            self.answer(200, {'success': True, 'commitOid': sha, 'commitUrl': url, 'hookOutput': ''})

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
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
