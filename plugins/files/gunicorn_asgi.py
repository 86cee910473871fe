# What nginx and a restart want of gunicorn's own worker for ASGI. Other workers, uvicorn's for
# instance, have ways of their own. This is a part of gunicorn's settings.
import asyncio
import ipaddress
import signal


def post_worker_init(worker):
    """Tell the app who its visitor is, and websockets at once that the slot ends.

    They come back to another one.
    """
    if not hasattr(worker, "asgi"):
        return
    app, cfg, ending = worker.asgi, worker.cfg, asyncio.Event()

    def end():
        worker.handle_exit_signal()
        for server in worker.servers:
            server.close()
        ending.set()

    def trusts(peer):
        # A unix socket has no address: only the web server can connect.
        if peer is None or "*" in cfg.forwarded_allow_ips:
            return True
        address = ipaddress.ip_address(peer[0])
        return any(address in network for network in cfg.forwarded_allow_networks())

    async def close(send):
        await ending.wait()
        await send({"type": "websocket.close", "code": 1012, "reason": "service restart"})

    async def informed(scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await app(scope, receive, send)
        peer = scope["client"]
        if peer is None:
            # gunicorn takes the path of a unix socket for a host and a port.
            scope["server"] = None
        if trusts(peer):
            told = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1")
            if visitor := told.rpartition(",")[2].strip():
                scope["client"] = (visitor, 0)
        if scope["type"] == "http":
            return await app(scope, receive, send)
        closer = None

        async def accepting(message):
            nonlocal closer
            await send(message)
            if message["type"] == "websocket.accept":
                closer = asyncio.ensure_future(close(send))

        try:
            await app(scope, receive, accepting)
        finally:
            if closer:
                closer.cancel()

    worker.asgi = informed
    worker.loop.add_signal_handler(signal.SIGTERM, end)
