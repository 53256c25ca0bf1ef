"""A small stand-in of the hub's HTTP API: repositories, preupload, git-LFS batch and uploads, commits, resolve, tree."""

import asyncio
import base64
import hashlib
import json
import threading
from types import SimpleNamespace


def start():
    """A running stand-in: `files` by repository, `lfs` by SHA-256, `puts` in order, `kill` is called at upload number `kill_at`."""
    from aiohttp import web

    state = SimpleNamespace(
        files={},
        lfs={},
        puts=[],
        commits=[],
        titles=[],
        tokens=set(),
        created=[],
        asked=0,
        kill_at=0,
        kill=None,
        refuse=None,
    )

    def known(request):
        state.tokens.add(request.headers.get("Authorization", ""))
        if state.refuse:
            raise web.HTTPException(reason="refused") if state.refuse == 500 else web.HTTPForbidden()
        return state.files.get(f"{request.match_info['owner']}/{request.match_info['name']}")

    async def create(request):
        state.tokens.add(request.headers.get("Authorization", ""))
        if state.refuse:
            return web.json_response({"error": "no"}, status=state.refuse)
        body = await request.json()
        repo = f"{body['organization']}/{body['name']}"
        if repo in state.files:
            return web.json_response({"url": repo}, status=409)
        state.created.append(body)
        state.files[repo] = {}
        return web.json_response({"url": f"{state.url}/{repo}", "name": repo})

    async def preupload(request):
        body = await request.json()
        big = [f["path"].endswith((".safetensors", "tokenizer.json")) for f in body["files"]]
        answer = [
            {"path": f["path"], "uploadMode": "lfs" if b else "regular", "shouldIgnore": False}
            for f, b in zip(body["files"], big, strict=True)
        ]
        return web.json_response({"files": answer})

    async def batch(request):
        known(request)
        body = await request.json()
        objects = []
        for item in body["objects"]:
            upload = {"upload": {"href": f"{state.url}/upload/{item['oid']}", "header": {}}}
            objects.append({**item, **({} if item["oid"] in state.lfs else {"actions": upload})})
        return web.json_response({"transfer": "basic", "objects": objects})

    async def put(request):
        oid = request.match_info["oid"]
        state.asked += 1
        if state.asked == state.kill_at:
            await asyncio.sleep(0.5)  # those beside it arrive
            state.kill()
            raise web.HTTPServiceUnavailable  # what was under way is lost
        data = await request.read()
        assert hashlib.sha256(data).hexdigest() == oid
        state.puts.append(oid)
        state.lfs[oid] = data
        return web.Response()

    async def commit(request):
        files = known(request)
        lines = [json.loads(line) for line in (await request.read()).splitlines()]
        changed = []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = state.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            changed.append((line["key"], value["path"]))
        state.commits.append(changed)
        state.titles.append(lines[0]["value"]["summary"])
        return web.json_response(
            {
                "commitUrl": f"{state.url}/{request.match_info['owner']}/{request.match_info['name']}/commit/{len(state.commits):040x}",
                "commitOid": f"{len(state.commits):040x}",
                "success": True,
            }
        )

    async def resolve(request):
        files = known(request) or {}
        path = request.match_info["path"]
        if path not in files:
            return web.json_response({"error": "none"}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        return web.Response(body=files[path])

    async def tree(request):
        found = [
            {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
            for p, d in (known(request) or {}).items()
        ]
        return web.json_response(found)

    async def info(request):
        files = known(request)
        if files is None:
            return web.json_response({"error": "none"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response(
            {"id": repo, "sha": f"{len(state.commits):040x}", "siblings": [{"rfilename": p} for p in files]}
        )

    async def commits(request):
        known(request)
        one = {"authors": [], "date": "2026-11-24T10:00:00.000Z", "message": ""}
        return web.json_response([{**one, "id": f"{n:040x}", "title": t} for n, t in enumerate(state.titles)][::-1])

    async def valid(request):
        return web.json_response({"errors": [], "warnings": []})

    repo = "/api/models/{owner}/{name}"
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([
        web.post("/api/repos/create", create), web.post("/api/validate-yaml", valid), web.post(repo + "/preupload/{revision}", preupload),
        web.post("/{owner}/{name}.git/info/lfs/objects/batch", batch), web.put("/upload/{oid}", put), web.post(repo + "/commit/{revision}", commit),
        web.get("/{owner}/{name}/resolve/{revision}/{path:.+}", resolve), web.get(repo + "/tree/{revision}", tree), web.get(repo + "/commits/{revision}", commits), web.get(repo, info),
        web.get(repo + "/revision/{revision}", info),
    ])  # fmt: skip
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    state.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def stop():
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    return state, stop
